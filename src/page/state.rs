//! The states of a guest page and every legal way from one to another.
//!
//! | state | memory | what a touch does |
//! |---|---|---|
//! | unbacked | none | missing fault: the pager fills it |
//! | private | none until the first write, then one page | nothing: the kernel serves it |
//! | shared(frame) | a pool frame, with others | read: nothing. Write: the kernel copies, unseen |
//! | broken(frame) | one page, inside a pool mapping | nothing |
//! | staged(slot) | one page, in the staging area | missing fault: the pager gives it back |
//! | busy | a thread of ours is at work on it, or it is read ahead | waits; the worker wakes it |
//! | compressed(slot) | part of a page, in the compressed store | missing fault: decompress |
//! | swapped(slot) | none | missing fault: read |
//!
//! *Broken* is a shared page whose copy on write was found: private in every account, but its mapping
//! is still the pool's. Whether a page is *ballooned* is a flag beside the state: a ballooned page is
//! normally unbacked, and a touch makes it private like any other.

use crate::units::{FrameId, SwapSlot};

/// A slot of the staging area or of the compressed store.
pub type SmallSlot = u32;

/// The state of one page. See the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageState {
    /// Nothing is mapped.
    Unbacked,
    /// The kernel serves the page from armed anonymous memory.
    Private,
    /// A pool frame is mapped copy-on-write.
    Shared(FrameId),
    /// An anonymous page lies over this frame's mapping; the frame is no longer ours.
    Broken(FrameId),
    /// Taken out of the guest into this stage slot.
    Staged(SmallSlot),
    /// One thread is changing the mapping or reading the content.
    Busy,
    /// In the compressed store.
    Compressed(SmallSlot),
    /// In the swap file.
    Swapped(SwapSlot),
}

/// What happens to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageEvent {
    /// The zero page was mapped.
    Fill,
    /// The content is dead and nothing is mapped any more.
    Discard,
    /// The page went into a stage slot.
    Take(SmallSlot),
    /// The page came back from its stage slot.
    GiveBack,
    /// A frame was mapped over the hole.
    Share(FrameId),
    /// The kernel was found to have copied the page on a write.
    Break,
    /// The staged content was written to this swap slot.
    SwapOut(SwapSlot),
    /// The staged content was compressed into this slot.
    Compress(SmallSlot),
    /// A thread starts work on the page.
    Begin,
    /// The thread is done: the content is in place, in armed memory.
    Install,
    /// The thread gave up, and the page maps this frame as before.
    KeepShared(FrameId),
    /// The thread gave up, and the page lies over this frame's mapping as before.
    KeepBroken(FrameId),
    /// The thread gave up, and the content is in this swap slot as before.
    KeepSwapped(SwapSlot),
}

impl PageState {
    /// The state after `event`, or `None` where the event is illegal.
    pub fn after(self, event: PageEvent) -> Option<PageState> {
        use PageEvent as E;
        use PageState as S;
        Some(match (self, event) {
            (S::Unbacked, E::Fill) => S::Private,
            // A page that is dead already stays so; one whose content is stored elsewhere is
            // forgotten. Pool mappings must be replaced first (Begin), and a busy page is the
            // working thread's alone.
            (
                S::Unbacked
                | S::Private
                | S::Staged(_)
                | S::Compressed(_)
                | S::Swapped(_)
                | S::Busy,
                E::Discard,
            ) => S::Unbacked,
            (S::Private | S::Busy, E::Take(slot)) => S::Staged(slot),
            (S::Staged(_), E::GiveBack) => S::Private,
            // A broken page that equals a frame again is mapped over in place, and so is one that
            // maps a frame of a pool whose owner is gone.
            (S::Staged(_) | S::Broken(_) | S::Shared(_), E::Share(frame)) => S::Shared(frame),
            (S::Shared(frame), E::Break) => S::Broken(frame),
            (S::Staged(_), E::SwapOut(slot)) => S::Swapped(slot),
            (S::Staged(_), E::Compress(slot)) => S::Compressed(slot),
            (S::Shared(_) | S::Broken(_) | S::Swapped(_) | S::Compressed(_), E::Begin) => S::Busy,
            (S::Busy, E::Install) => S::Private,
            (S::Busy, E::KeepShared(frame)) => S::Shared(frame),
            (S::Busy, E::KeepBroken(frame)) => S::Broken(frame),
            (S::Busy, E::KeepSwapped(slot)) => S::Swapped(slot),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PageEvent as E;
    use PageState as S;

    const STATES: [S; 8] = [
        S::Unbacked,
        S::Private,
        S::Shared(FrameId(7)),
        S::Broken(FrameId(7)),
        S::Staged(3),
        S::Busy,
        S::Compressed(4),
        S::Swapped(SwapSlot(5)),
    ];
    const EVENTS: [E; 13] = [
        E::Fill,
        E::Discard,
        E::Take(3),
        E::GiveBack,
        E::Share(FrameId(9)),
        E::Break,
        E::SwapOut(SwapSlot(5)),
        E::Compress(4),
        E::Begin,
        E::Install,
        E::KeepShared(FrameId(9)),
        E::KeepBroken(FrameId(9)),
        E::KeepSwapped(SwapSlot(5)),
    ];

    /// Every cell of the table: rows as [`STATES`], columns as [`EVENTS`]. `-` is illegal, else the
    /// initial of the next state (K: broken, Y: busy).
    const TABLE: [&str; 8] = [
        "PU-----------", // unbacked
        "-US----------", // private
        "----HK--Y----", // shared
        "----H---Y----", // broken
        "-U-PH-WC-----", // staged
        "-US------PHKW", // busy
        "-U------Y----", // compressed
        "-U------Y----", // swapped
    ];

    fn initial(state: Option<S>) -> char {
        match state {
            None => '-',
            Some(S::Unbacked) => 'U',
            Some(S::Private) => 'P',
            Some(S::Shared(_)) => 'H',
            Some(S::Broken(_)) => 'K',
            Some(S::Staged(_)) => 'S',
            Some(S::Busy) => 'Y',
            Some(S::Compressed(_)) => 'C',
            Some(S::Swapped(_)) => 'W',
        }
    }

    #[test]
    fn every_cell_is_as_the_table_says() {
        for (state, row) in STATES.iter().zip(TABLE) {
            let found: String = EVENTS
                .iter()
                .map(|event| initial(state.after(*event)))
                .collect();
            assert_eq!(found, row, "{state:?}");
        }
    }

    #[test]
    fn content_is_never_dropped_without_a_discard() {
        // The only event after which nothing holds the content is Discard.
        for state in STATES {
            for event in EVENTS {
                if state.after(event) == Some(S::Unbacked) {
                    assert_eq!(event, E::Discard, "{state:?}");
                }
            }
        }
    }
}
