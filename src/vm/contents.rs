//! Pages whose content the host manager wants, to make frames of.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::uplink::Uplink;
use crate::link::message::{CONTENT_PAGES_MAX, LIST_MAX, ToHost};
use crate::mem::{self, Pager};
use crate::units::Gfn;

/// How long a wish for content is worth an answer: the host manager forgets it as soon.
const AGE_MAX: Duration = Duration::from_secs(5);
/// Wishes that wait while the host manager does not read, at most.
const WAITING_MAX: usize = 2 * LIST_MAX;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// With the time since when.
    wanted: VecDeque<(Instant, Gfn)>,
}

impl Contents {
    /// The host manager wants these.
    pub fn want(&mut self, gfns: Vec<Gfn>) {
        let now = Instant::now();
        self.wanted.extend(gfns.into_iter().map(|gfn| (now, gfn)));
        let most = self.wanted.len().min(WAITING_MAX);
        self.wanted.drain(..self.wanted.len() - most);
    }

    /// Nobody is there any more who wants them.
    pub fn forget(&mut self) {
        self.wanted.clear();
    }

    /// Sends as much as there is room for.
    ///
    /// # Errors
    /// The VM cannot go on.
    pub fn tell(&mut self, host: &Uplink, pager: &Pager) -> Result<(), mem::Error> {
        while host.has_room() && !self.wanted.is_empty() {
            let count = self.wanted.len().min(CONTENT_PAGES_MAX);
            let fresh = self.wanted.drain(..count);
            let fresh = fresh.filter(|(since, _)| since.elapsed() < AGE_MAX);
            let gfns: Vec<Gfn> = fresh.map(|(_, gfn)| gfn).collect();
            let pages = pager.copies(&gfns)?;
            if !pages.is_empty() {
                host.send(&ToHost::Content { pages });
            }
        }
        Ok(())
    }
}
