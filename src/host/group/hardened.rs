//! Hardened groups: pages that others have and pages that nobody has behave alike.
//!
//! A guest that times a write to a page of its own learns whether the write had to copy a frame. Where
//! only equal pages get frames, it so learns what others have. Here each page that is offered gets one:
//!
//! | a group knows of a key | an offer of that key | its content |
//! |---|---|---|
//! | nothing | asks the offerer for the content | becomes a frame, of which the offerer has the only reference |
//! | frame | the same | is dropped, and the offerer is lent a reference |
//!
//! So the VM is asked, answers, and merges in either case, and neither is done without room for a
//! frame. There are no hints and nobody waits for another's content. The page of memory behind a frame
//! is drawn by chance (`pool/reserve`), whose ever the content is. After Oliverio et al., "Secure Page
//! Fusion with VUsion" (SOSP 2017), without its rule that a shared page is copied when it is read.

use std::time::Duration;

use super::{Group, Memory};
use crate::host::share::{ContentAnswer, Lent, OfferAnswer};
use crate::policy::types::VmId;
use crate::units::{FrameId, Gfn};
use crate::words::{Key, Sharing};

impl ContentAnswer {
    /// Of the room for frames, what was used up. In a hardened group a known content uses as much as a
    /// new one: with and without room, both fare alike.
    pub(super) fn spent(&self, sharing: Sharing) -> u64 {
        match sharing {
            Sharing::Plain => u64::from(self.made),
            Sharing::Hardened => self.lent.len() as u64,
        }
    }
}

impl Group {
    /// A hardened group draws its frames.
    pub(super) fn harden(&mut self) {
        if let (Sharing::Hardened, Memory::Held(pool)) = (self.sharing, &mut self.memory) {
            pool.draw_frames(self.secrets.draws);
        }
    }

    /// Asks for the content of every page.
    pub(super) fn offer_hardened(
        &mut self,
        vm: VmId,
        pages: &[(Gfn, Key)],
        now: Duration,
    ) -> OfferAnswer {
        let mut answer = OfferAnswer::default();
        let Some(member) = self.members.get_mut(&vm) else {
            return answer;
        };
        for &(gfn, key) in pages {
            if member.may_want(gfn) && member.may_hold() {
                member.wants.insert(gfn, (key, now));
                answer.wants.push(gfn);
            }
        }
        answer
    }

    /// What is lent for a content that a hardened group has; `None`: it is to become a frame.
    pub(super) fn lend_known(&mut self, vm: VmId, gfn: Gfn, key: Key) -> Option<Option<Lent>> {
        if !self.sharing.is_hardened() {
            return None;
        }
        let frame: FrameId = self.frames.with_key(key)?;
        let lent = Lent { vm, gfn, frame };
        Some(self.lend(vm, frame).then_some(lent))
    }

    /// # Panics
    /// When a hardened group has what only others have: a bug.
    pub(super) fn audit_hardened(&self) {
        if self.sharing.is_hardened() {
            assert!(self.awaited.is_empty(), "a content is awaited");
            for vm in self.members.keys() {
                assert_eq!(self.hints.of(*vm), 0, "hints of {vm:?}");
            }
        }
    }
}
