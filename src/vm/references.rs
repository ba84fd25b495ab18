//! The references to frames that this VM holds, as far as the host manager must hear of them.
//!
//! Not one may get lost: what finds no room on the link waits here.

use super::uplink::Uplink;
use crate::link::message::{LIST_MAX, ToHost};
use crate::mem::Pager;
use crate::units::FrameId;

/// Steps over the page map in which frames are claimed, in one turn.
const CLAIMS_A_TURN: usize = 64;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct References {
    /// To be given back.
    released: Vec<FrameId>,
    /// The host manager has not been told of all of them yet.
    claiming: bool,
}

impl References {
    /// The host manager is to be told anew which frames the VM maps, its *claims*, before anything
    /// else is said of frames.
    pub fn begin_claims(&mut self, pager: &Pager) {
        pager.begin_claims();
        self.claiming = true;
    }

    /// Whether claims are still to be told.
    pub fn is_claiming(&self) -> bool {
        self.claiming
    }

    /// Nobody is there any more who lent them.
    pub fn forget(&mut self) {
        self.released.clear();
        self.claiming = false;
    }

    /// Gives these back as well.
    pub fn release(&mut self, frames: Vec<FrameId>) {
        self.released.extend(frames);
    }

    /// Tells as much as there is room for.
    pub fn tell(&mut self, host: &Uplink, pager: &Pager) {
        self.claim(host, pager);
        self.released.extend(pager.take_released());
        if !host.is_joined() {
            self.released.clear();
        }
        while host.has_room() && !self.released.is_empty() {
            let rest = self.released.len().saturating_sub(LIST_MAX);
            let frames = self.released.split_off(rest);
            host.send(&ToHost::Release { frames });
        }
    }

    fn claim(&mut self, host: &Uplink, pager: &Pager) {
        for _ in 0..CLAIMS_A_TURN {
            if !self.claiming || !host.has_room() {
                return;
            }
            match pager.next_claims(LIST_MAX / 2) {
                // All of them, before any of them can be released.
                Some(frames) => frames.chunks(LIST_MAX).for_each(|part| {
                    let frames = part.to_vec();
                    host.send(&ToHost::Claim { frames });
                }),
                None => {
                    host.send(&ToHost::Claimed);
                    self.claiming = false;
                }
            }
        }
    }
}
