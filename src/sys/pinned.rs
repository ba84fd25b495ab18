//! A value that stays in memory: the host's kernel neither swaps it nor dumps it.
#![expect(unsafe_code)]
// UNSAFETY: a mapping of its own, whose memory the value lives in.

use std::ffi::c_void;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::{fmt, io};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::units::PAGE_SIZE;

/// A secret in a locked page of its own. The page goes back to the kernel, which clears it, when the
/// value is dropped.
pub struct Pinned<T> {
    value: NonNull<T>,
}

impl<T> Pinned<T> {
    /// Moves a value of a page at most to a locked page.
    ///
    /// # Errors
    /// When the kernel gives no page, or locks none (`RLIMIT_MEMLOCK`).
    pub fn new(value: T) -> io::Result<Pinned<T>> {
        const { assert!(size_of::<T>() <= PAGE_SIZE && align_of::<T>() <= PAGE_SIZE) };
        let page = LockedPage::new()?;
        let at = page.0.cast();
        // SAFETY: a page of ours, large enough and aligned for the value; nobody else has its address.
        unsafe { at.write(value) };
        // Unmapped when the value is dropped.
        std::mem::forget(page);
        Ok(Pinned { value: at })
    }
}

impl<T> Deref for Pinned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` wrote it, and only `drop` ends it.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above; and whoever may change the `Pinned` is the only one who has it.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let _unmapped = LockedPage(self.value.cast());
        // SAFETY: a value that `new` wrote, and that nobody can reach any more.
        unsafe { self.value.drop_in_place() };
    }
}

// SAFETY: a `Pinned` owns its value as a `Box` does.
unsafe impl<T: Send> Send for Pinned<T> {}

// SAFETY: a `Pinned` gives out references to its value as a `Box` does.
unsafe impl<T: Sync> Sync for Pinned<T> {}

/// Says nothing of the value, which is a secret.
impl<T> fmt::Debug for Pinned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

/// A page that is mapped as long as this lives.
struct LockedPage(NonNull<c_void>);

impl LockedPage {
    fn new() -> io::Result<LockedPage> {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let page = unsafe { mm::mmap_anonymous(ptr::null_mut(), PAGE_SIZE, prot, flags) }?;
        let page = LockedPage(NonNull::new(page).expect("the kernel maps nothing at 0"));
        // SAFETY: the mapping made above, which nobody uses yet.
        unsafe { mm::mlock(page.0.as_ptr(), PAGE_SIZE) }?;
        // SAFETY: as above.
        unsafe { mm::madvise(page.0.as_ptr(), PAGE_SIZE, Advice::LinuxDontDump) }?;
        Ok(page)
    }
}

impl Drop for LockedPage {
    fn drop(&mut self) {
        // SAFETY: a mapping of ours, whose value is gone or moved into a `Pinned` before.
        let unmapped = unsafe { mm::munmap(self.0.as_ptr(), PAGE_SIZE) };
        unmapped.expect("a page of our own can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_value_is_kept_changed_and_dropped_once() {
        let witness = Rc::new(());
        let mut pinned = Pinned::new((1, witness.clone())).unwrap();
        pinned.0 += 1;
        assert_eq!(pinned.0, 2);
        assert_eq!(format!("{pinned:?}"), "Pinned { .. }");
        drop(pinned);
        assert_eq!(Rc::strong_count(&witness), 1);
    }

    #[test]
    fn its_page_is_locked() {
        let pinned = Pinned::new(7_u64).unwrap();
        let address = ptr::from_ref(&*pinned) as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mapping = maps.split("VmFlags:").find(|text| {
            let mut words = text.lines().filter_map(|line| line.split_once('-'));
            words.any(|(start, _)| usize::from_str_radix(start, 16) == Ok(address))
        });
        let after = maps
            .split_once(mapping.expect("a mapping of its own"))
            .unwrap()
            .1;
        let flags = after.lines().next().unwrap();
        assert!(flags.contains(" lo") && flags.contains(" dd"), "{flags}");
    }
}
