//! What is done with guest pages that lie in mappings of pool frames.
#![expect(unsafe_code)]
// UNSAFETY: maps files and moves mappings over guest memory that the space owns.

use rustix::io::Errno;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

use super::{Error, GuestSpace, Mapping, guest_error, map_anonymous, unmap};
use crate::sys::pool_view::PoolView;
use crate::sys::staging::StageSlot;
use crate::units::{FrameId, Gfn, GfnRange, PAGE_SIZE};

impl GuestSpace {
    /// Maps the frames from `frame` copy-on-write over `range` and wakes.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the number of mappings.
    ///
    /// # Panics
    /// When the frames lie outside the pool.
    pub fn map_frames(
        &self,
        range: GfnRange,
        pool: &PoolView,
        frame: FrameId,
    ) -> Result<Mapping, Error> {
        assert!(
            pool.contains(frame, range.count),
            "frame {frame:?} + {}",
            range.count
        );
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        let hva = self.hva(range) as *mut _;
        // SAFETY: the target is guest RAM that this value owns; what it held was taken out or is
        // dead, as the pager's books say. A private mapping of a read-only descriptor: writes
        // copy.
        let answer =
            unsafe { rustix::mm::mmap(hva, range.bytes(), prot, flags, pool.fd(), frame.offset()) };
        match answer {
            Ok(_) => {
                self.wake(range)?;
                Ok(Mapping::Done)
            }
            Err(Errno::NOMEM) => Ok(Mapping::Full),
            Err(source) => Err(guest_error("map frames over", range, source)),
        }
    }

    /// Write-protects a page inside a pool mapping, so that its content is stable.
    /// [`GuestSpace::thaw`] lifts it.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the number of mappings.
    pub fn freeze(&self, gfn: Gfn) -> Result<Mapping, Error> {
        let range = GfnRange::one(gfn);
        let hva = self.hva(range);
        match self.uffd.register_protection(hva, PAGE_SIZE) {
            Ok(()) => {}
            Err(Errno::NOMEM) => return Ok(Mapping::Full),
            Err(source) => return Err(guest_error("arm for protection", range, source)),
        }
        self.uffd
            .protect(hva, PAGE_SIZE)
            .map_err(|source| guest_error("write-protect", range, source))?;
        Ok(Mapping::Done)
    }

    /// Ends [`GuestSpace::freeze`]: the page is writable again and whoever waits goes on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&self, gfn: Gfn) -> Result<(), Error> {
        let range = GfnRange::one(gfn);
        let hva = self.hva(range);
        self.uffd
            .unprotect(hva, PAGE_SIZE)
            .map_err(|source| guest_error("unprotect", range, source))?;
        self.uffd
            .unregister(hva, PAGE_SIZE)
            .map_err(|source| guest_error("disarm", range, source))?;
        self.wake(range)
    }

    /// Copies a page that [`GuestSpace::freeze`] made stable into a stage slot, one of
    /// [`GuestSpace::slots_for_copies`].
    pub fn copy_frozen(&self, gfn: Gfn, slot: StageSlot) {
        let hva = self.hva(GfnRange::one(gfn));
        self.staging.copy_in(hva, slot, 1);
    }

    /// Replaces whatever is mapped over `range` by an armed empty mapping, in one step as the guest
    /// sees it. **Waits until a thread has read an event**: the caller must hold no lock that the
    /// fault threads may want. Wakes nobody: the caller updates its books first.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the number of mappings.
    pub fn rearm(&self, range: GfnRange) -> Result<Mapping, Error> {
        let target = self.hva(range);
        let bytes = range.bytes();
        let spare = match map_anonymous(bytes, "rearming") {
            Ok(spare) => spare,
            Err(Error::Map {
                source: Errno::NOMEM,
                ..
            }) => return Ok(Mapping::Full),
            Err(error) => return Err(error),
        };
        let armed = self.uffd.register(spare, bytes).and_then(|()| {
            // SAFETY: `spare` was mapped above and is nobody else's; the target is guest RAM that
            // this value owns and whose content the caller gave up. The kernel looks at the number
            // of mappings before it touches the target.
            unsafe {
                rustix::mm::mremap_fixed(
                    spare as *mut _,
                    bytes,
                    bytes,
                    MremapFlags::MAYMOVE,
                    target as *mut _,
                )
            }
            .map(|_| ())
        });
        match armed {
            Ok(()) => Ok(Mapping::Done),
            Err(source) => {
                unmap(spare, bytes);
                match source {
                    Errno::NOMEM => Ok(Mapping::Full),
                    _ => Err(guest_error("rearm", range, source)),
                }
            }
        }
    }
}
