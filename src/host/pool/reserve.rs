//! Frames of which chance says what they hold: the pool of a hardened share group.
//!
//! So many frames have their memory before there is a content for them, and each new content goes into
//! one of them that is drawn. So neither the number of a frame nor the page of memory behind it says
//! whose content came when, and a guest that frees a page of memory cannot have the next content of
//! its choice put there: that one is in any of the reserve's, at equal odds. Neighbours get frames that
//! are none, so every page is mapped alone, whether its content is known or new.
//!
//! A frame that is freed goes to the reserve, which gives up others, drawn as well, beyond twice its
//! size. A hole in the file takes the shadow entry of whatever lies over it, also where the guest has
//! long written a copy: it would tell by its next touch that nobody else had the frame.
//!
//! The reserve is charged with what the pool takes beside its frames ([`FramePool::slack`]).

use super::{Error, FramePool, error};
use crate::units::{FrameId, PAGE_SIZE};

/// Frames of a reserve at most: 4 MiB, ten bits. Chosen.
const FRAMES_MAX: u32 = 1024;
/// And at most this part of the pool.
const PART: u32 = 64;
/// Times its size that a reserve has at most.
const FREED: usize = 2;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Reserve {
    rng: fastrand::Rng,
    frames: Vec<FrameId>,
    /// So many before a content is put in.
    size: usize,
}

impl Reserve {
    /// Frames in it.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Takes frames in that nobody holds any more; gives up as many, drawn, as are too many then.
    pub(super) fn exchange(&mut self, freed: Vec<FrameId>) -> Vec<FrameId> {
        self.frames.extend(freed);
        let most = self.size * FREED;
        let over = self.frames.len().saturating_sub(most);
        (0..over).map(|_| self.draw()).collect()
    }

    fn draw(&mut self) -> FrameId {
        let place = self.rng.usize(..self.frames.len());
        self.frames.swap_remove(place)
    }
}

impl FramePool {
    /// From now on contents go into frames that are drawn, in an order that follows from `seed`.
    pub fn draw_frames(&mut self, seed: u64) {
        self.reserve = Some(Reserve {
            rng: fastrand::Rng::with_seed(seed),
            frames: Vec::new(),
            size: (self.frames() / PART).clamp(1, FRAMES_MAX) as usize,
        });
    }

    /// Copies a page into a frame that is drawn. `None` when there is none.
    pub(super) fn store_drawn(
        &mut self,
        content: &[u8; PAGE_SIZE],
    ) -> Result<Option<FrameId>, Error> {
        self.fill_reserve()?;
        let reserve = self.reserve.as_mut().filter(|held| held.len() > 0);
        let Some(reserve) = reserve else {
            return Ok(None);
        };
        let frame = reserve.draw();
        if let Err(source) = self.memory.write(frame, content) {
            reserve.frames.push(frame);
            return Err(error("write to")(source));
        }
        self.in_use += 1;
        Ok(Some(frame))
    }

    /// Brings the reserve to its size, as far as the pool goes.
    fn fill_reserve(&mut self) -> Result<(), Error> {
        let wants = |held: &Reserve| held.len() < held.size;
        while self.reserve.as_ref().is_some_and(wants)
            && let Some(frame) = self.any_free()
        {
            self.take(frame, &[0; PAGE_SIZE])?;
            let reserve = self.reserve.as_mut().expect("found above");
            reserve.frames.push(frame);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::policy::types::VmId;
    use crate::units::{Gfn, Pages};

    const VM: VmId = VmId(1);

    fn pool(mib: u64) -> FramePool {
        let mut pool = FramePool::new(Pages::mib(mib)).unwrap();
        pool.draw_frames(7);
        pool
    }

    fn store(pool: &mut FramePool, gfn: u32) -> Option<FrameId> {
        let fill = gfn.to_le_bytes()[0];
        pool.store(VM, Gfn(gfn), &[fill; PAGE_SIZE]).unwrap()
    }

    #[test]
    fn frames_are_drawn_and_hold_what_they_were_given() {
        let mut pool = pool(64);
        let frames: Vec<FrameId> = (0..200).map(|gfn| store(&mut pool, gfn).unwrap()).collect();
        let distinct: HashSet<FrameId> = frames.iter().copied().collect();
        assert_eq!(distinct.len(), frames.len());
        // Of 64 MiB a 64th: 256 frames.
        assert_eq!((pool.in_use(), pool.slack()), (200, Pages(255)));
        let runs = frames.windows(2).filter(|pair| pair[0].0 + 1 == pair[1].0);
        assert!(runs.count() < 20, "{frames:?}");
        let mut page = [0; PAGE_SIZE];
        for (gfn, frame) in (0_u32..).zip(&frames) {
            pool.read(*frame, &mut page).unwrap();
            assert_eq!(page, [gfn.to_le_bytes()[0]; PAGE_SIZE]);
        }
        pool.free(frames);
        assert_eq!((pool.in_use(), pool.slack()), (0, Pages(455)));
        // Beyond twice its size the reserve gives up others, and not those that were freed alone.
        let more: Vec<FrameId> = (0..400).map(|gfn| store(&mut pool, gfn).unwrap()).collect();
        pool.free(more.clone());
        assert_eq!((pool.in_use(), pool.slack()), (0, Pages(512)));
        let kept = |frame: &&FrameId| pool.is_used(**frame);
        let kept = more.iter().filter(kept).count();
        assert!((200..400).contains(&kept), "{kept} of 400 are kept");
    }

    #[test]
    fn a_pool_is_used_to_its_last_frame() {
        let mut pool = pool(2);
        let frames: Vec<FrameId> = (0..512).map_while(|gfn| store(&mut pool, gfn)).collect();
        assert_eq!(frames.len(), 512);
        assert_eq!(store(&mut pool, 512), None);
        pool.retire(frames);
        while pool.give_back(64) > Pages::ZERO {}
        assert!(store(&mut pool, 513).is_some());
    }
}
