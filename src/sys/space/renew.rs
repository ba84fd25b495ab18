//! Large pages where the kernel does not let go of a page table: chunks are mapped afresh.
//!
//! A missing fault leaves an empty page table, beside which no large page can be mapped, and before
//! Linux 6.14 the kernel frees it with the mapping alone. So an empty chunk is mapped anew where it lies
//! ([`GuestSpace::renew`]): the new mapping has the flags and the offset of its neighbours and no
//! `anon_vma`, so that the kernel joins it to them when it is registered, and no mapping is left over.
//!
//! Where pages are not moved either, a chunk becomes large by letting the kernel fill it while it is not
//! registered ([`GuestSpace::populate_large`]). It is registered in between, because a mapping that is
//! filled before it has ever been joined to its neighbours gets an `anon_vma` of its own, and stays apart
//! for good.
//!
//! # While a chunk is not registered
//!
//! Another vCPU that touches it gets a page from the kernel, without a fault that the pager hears of. That is
//! harmless, since
//!
//! - all of the chunk is unbacked in the books, so that there is no content which a touch should have
//!   found: what it finds, zeros, is what the pager would have given;
//! - the caller holds the memory's lock and has 512 pages of credit for the chunk, and nobody can look at
//!   the books until it lets go;
//! - when the chunk is registered again, no page comes without the pager: so the page tables are read
//!   then, and every page that they show becomes the guest's in the books, whoever brought it about.
//!
//! A chunk that was touched before it was registered for the first time has an `anon_vma` of its own and
//! stays apart ([`Renewed::Apart`]): the caller counts that, until the chunk is mapped afresh again.
//!
//! Memory that holds anything, as a large page that is out for a sample does, is never mapped afresh:
//! there a touch would find zeros.
//!
//! One small page is asked for: the kernel gives a large one instead if it has one, and else what was not
//! asked for costs nothing.
//!
//! # Known gaps
//!
//! - Linux 6.1 mapped 50 to 96 of 104 MiB of large pages whole, in the emulated host with two nodes; the
//!   others, large by their page flags, were mapped by small entries. The cause is not known.
//! - Where the kernel is short of large pages it may look for one while the memory's lock is held.
#![expect(unsafe_code)]
// UNSAFETY: maps memory over guest memory that the space owns, and advises the kernel on it.

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::large::{Given, Renewed};
use super::{Error, GuestSpace, Mapping, guest_error};
use crate::sys::pagemap::Backing;
use crate::units::{GfnRange, PAGE_SIZE};

impl GuestSpace {
    /// Maps an empty chunk afresh, so that it has no page table; `None` where there is no mapping to be
    /// had. What a vCPU touches meanwhile is there afterwards: see the module documentation. Takes two
    /// kernel mappings, which it gives back where it is joined.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than the number of mappings.
    pub(super) fn renew(&self, chunk: GfnRange) -> Result<Option<Renewed>, Error> {
        let hva = self.hva(chunk);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the range is guest RAM that this value owns, mapped in the same way, and empty.
        let mapped =
            unsafe { rustix::mm::mmap_anonymous(hva as *mut _, chunk.bytes(), prot, flags) };
        match mapped {
            Ok(_) => {}
            Err(Errno::NOMEM) => return Ok(None),
            Err(source) => return Err(guest_error("map afresh", chunk, source)),
        }
        // As its neighbours are: where all memory may be large, others would be in the chunk.
        let _ = self.advise(chunk, Advice::LinuxNoHugepage)?;
        self.arm(chunk)?;
        Ok(Some(match self.is_bare(chunk)? {
            true => Renewed::Joined,
            false => Renewed::Apart,
        }))
    }

    fn is_bare(&self, chunk: GfnRange) -> Result<bool, Error> {
        let backing = self.backing(chunk)?;
        Ok(backing.iter().all(|page| *page == Backing::Nothing))
    }

    /// Makes `chunk`, a whole one and all of it missing, a large page without moving one, and wakes.
    /// Takes two kernel mappings, which it gives back where it is joined.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn populate_large(&self, chunk: GfnRange) -> Result<Given, Error> {
        let renewed = match self.is_bare(chunk)? {
            true => self.renew(chunk)?,
            false => None,
        };
        // Before it is unregistered: a vCPU that waits there is woken by that, and would touch it first.
        if renewed != Some(Renewed::Joined)
            || self.advise(chunk, Advice::LinuxHugepage)? == Mapping::Full
        {
            return self.given(chunk, renewed);
        }
        let hva = self.hva(chunk);
        let disarmed = self.uffd.unregister(hva, chunk.bytes());
        disarmed.map_err(|source| guest_error("disarm", chunk, source))?;
        // SAFETY: the range lies in guest RAM that this value owns; a page that is there is left as it
        // is, and one that is not becomes zeros.
        let populated =
            unsafe { rustix::mm::madvise(hva as *mut _, PAGE_SIZE, Advice::LinuxPopulateWrite) };
        let _ = self.advise(chunk, Advice::LinuxNoHugepage)?;
        self.arm(chunk)?;
        if let Err(errno) = populated {
            log::debug!("no memory for a large page: {errno}");
        }
        self.given(chunk, renewed)
    }

    /// Makes a large page of a chunk that is all there in small pages, and says whether it is one now. Its
    /// content stays; what of it is the zero page takes memory afterwards. Takes two kernel mappings, which
    /// it gives back.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than that there is no large page, or that one of the
    /// small ones is in use.
    pub fn collapse(&self, chunk: GfnRange) -> Result<bool, Error> {
        let backing = self.backing(chunk)?;
        // The kernel has none for a chunk with the zero page in it, and a page that is missing would wait
        // for the pager for ever.
        let is_there = |page: &Backing| matches!(page, Backing::Anonymous | Backing::Common);
        if !backing.iter().all(is_there)
            || self.advise(chunk, Advice::LinuxHugepage)? == Mapping::Full
        {
            return Ok(false);
        }
        let hva = self.hva(chunk) as *mut _;
        // SAFETY: the range is guest RAM that this value owns; neither advice changes content.
        let answer = unsafe { rustix::mm::madvise(hva, chunk.bytes(), Advice::LinuxPopulateWrite) };
        if let Err(errno) = answer {
            log::debug!("no memory for a large page: {errno}");
        }
        // SAFETY: as above.
        let answer = unsafe { libc::madvise(hva, chunk.bytes(), libc::MADV_COLLAPSE) };
        if answer != 0 {
            let error = std::io::Error::last_os_error();
            log::debug!("small pages from {} stay small: {error}", chunk.start);
        }
        let _ = self.advise(chunk, Advice::LinuxNoHugepage)?;
        Ok(answer == 0)
    }

    fn arm(&self, chunk: GfnRange) -> Result<(), Error> {
        let armed = self.uffd.register(self.hva(chunk), chunk.bytes());
        armed.map_err(|source| guest_error("arm", chunk, source))
    }

    /// Says whether there may be large pages in a chunk, which may take two kernel mappings when it is
    /// said of a part of one.
    fn advise(&self, chunk: GfnRange, advice: Advice) -> Result<Mapping, Error> {
        let hva = self.hva(chunk) as *mut _;
        // SAFETY: the range is guest RAM that this value owns; neither advice changes content.
        let advised = unsafe { rustix::mm::madvise(hva, chunk.bytes(), advice) };
        match advised {
            Ok(()) => Ok(Mapping::Done),
            // madvise(2) says AGAIN for what is NOMEM elsewhere.
            Err(Errno::NOMEM | Errno::AGAIN) => Ok(Mapping::Full),
            Err(source) => Err(guest_error("advise on", chunk, source)),
        }
    }
}
