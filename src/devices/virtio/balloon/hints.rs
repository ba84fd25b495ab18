//! Free page hinting (virtio 1.2, section 5.5.6.6): the guest's free memory, in one go.
//!
//! A round has a number, which the driver reads in the configuration space and echoes in the queue.
//! Then it allocates all the free blocks of 4 MiB that there are, hints at each, and ends with a
//! zero. Told that the device is done, it frees them.
//!
//! **When a block is dead.** Hinting was made for migration, and Linux does not wait for the
//! device: its shrinker may give a block to somebody as soon as it stands in `free_page_list`. Yet
//! in `get_free_page_and_send` (`drivers/virtio/virtio_balloon.c`; read in trees of about 5.4, in
//! 6.1 and 6.6, and in patches of 2025) a block is allocated, added to the queue, *kicked*, and only
//! then put on that list: until the kick returns nobody but the driver's own stack knows of it. A
//! kick is a write to QUEUE_NOTIFY, and the vCPU that makes it runs on only when [`Hints::serve`]
//! has returned. So what is dropped before that is nobody's, and other vCPUs cannot have written it
//! since; what is dropped later may be somebody's data. A device that is notified by an eventfd is
//! always late: Firecracker therefore asks drivers to wait (HINT_WAIT_ON_ACK, a patch of 2026).
//!
//! So a block is dropped in its own notification or not at all:
//!
//! - Every kick arrives: no event index is offered, and the used ring's flags stay zero.
//! - A notification that finds more than one chain drops nothing: of some the kick is past.
//! - Nothing is dropped but in a round that is on at both ends. At DRIVER_OK the transport serves
//!   every queue, with no kick; there is no round then.

use std::sync::atomic::Ordering;

use super::super::Used;
use super::super::chain::{Buffer, Chain, Direction, Malformed};
use super::super::ring::{Ring, read};
use super::Shared;
use crate::devices::sink::BalloonSink;
use crate::sys::guest_range::frames_inside;

/// Not a round: the driver has no more, or there never was one.
const STOP: u32 = 0;
/// Not a round: the driver may free its blocks.
const DONE: u32 = 1;
/// The first number that can be a round's.
pub(super) const FIRST: u32 = 2;

/// The rounds of one driver.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// The round that the driver works on.
    round: u32,
}

impl Hints {
    /// Serves one notification, and ends the round when the driver has no more.
    ///
    /// # Errors
    /// At the first chain that is malformed.
    pub fn serve(
        &mut self,
        ring: &mut Ring<'_>,
        shared: &Shared,
        sink: &dyn BalloonSink,
    ) -> Result<Used, Malformed> {
        let chains = ring.take(Direction::Both)?;
        let its_own = chains.len() == 1;
        let mut used = Used::Nothing;
        for chain in &chains {
            let word = read_word(ring, chain)?;
            match word {
                Some(word) if self.ends(word, shared) => used = Used::BuffersAndConfig,
                None if its_own && self.is_on(shared) => drop_blocks(ring, chain, shared, sink)?,
                _ => {}
            }
            ring.give_back(chain.head, 0)?;
            used = used.max(Used::Buffers);
        }
        Ok(used)
    }

    fn is_on(&self, shared: &Shared) -> bool {
        self.round >= FIRST && self.round == shared.hint_command.load(Ordering::Acquire)
    }

    /// Takes what the driver says; whether that ends the round that is on.
    fn ends(&mut self, word: u32, shared: &Shared) -> bool {
        let before = std::mem::replace(&mut self.round, word);
        // Another round may have been asked for meanwhile.
        word == STOP
            && before >= FIRST
            && shared
                .hint_command
                .compare_exchange(before, DONE, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }
}

/// What the driver says of the round: all that goes to the device in this queue.
fn read_word(ring: &Ring<'_>, chain: &Chain) -> Result<Option<u32>, Malformed> {
    let Some(Buffer { gpa, length, .. }) = chain
        .buffers
        .iter()
        .find(|it| it.way == Direction::ToDevice)
    else {
        return Ok(None);
    };
    let mut word = [0; 4];
    let length = word.len().min(*length as usize);
    read(ring.ram(), *gpa, &mut word[..length])?;
    Ok(Some(u32::from_le_bytes(word)))
}

fn drop_blocks(
    ring: &Ring<'_>,
    chain: &Chain,
    shared: &Shared,
    sink: &dyn BalloonSink,
) -> Result<(), Malformed> {
    for Buffer { gpa, length, .. } in &chain.buffers {
        if let Some(range) = frames_inside(ring.ram().layout(), *gpa, (*length).into())? {
            sink.report_free(range);
            shared
                .hinted_pages
                .fetch_add(range.count.into(), Ordering::Relaxed);
        }
    }
    Ok(())
}
