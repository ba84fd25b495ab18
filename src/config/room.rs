//! Whether the folder of the swap files has room for what a fleet may have to swap.

use super::spec::FleetSpec;
use crate::units::Pages;

impl FleetSpec {
    /// What all VMs have together, as they see it.
    pub fn memory(&self) -> Pages {
        self.vms.iter().map(|vm| vm.allocation.size).sum()
    }

    /// What the VMs may have to swap, at most: memory that is managed and that the budget does not
    /// hold. Compression, sharing and balloons can only make it less.
    fn swapped_max(&self) -> Pages {
        let managed = self.vms.iter().filter(|vm| vm.management.is_managed());
        let beyond = self.memory().saturating_sub(self.host.memory);
        beyond.min(managed.map(|vm| vm.allocation.size).sum())
    }

    /// What is wrong with the folder of the swap files, in a line; `None` when it has room, or does
    /// not say how much.
    pub fn swap_shortage(&self) -> Option<String> {
        let wanted = self.swapped_max();
        let folder = &self.host.swap_dir;
        let stat = rustix::fs::statvfs(folder).ok()?;
        let free = Pages::in_bytes(stat.f_bavail.saturating_mul(stat.f_frsize));
        (wanted > free).then(|| {
            format!(
                "swap_dir {} has {free} free, and {wanted} may have to be swapped there (VMs of {} in \
                 a budget of {}): a VM for whose pages there is no room stalls",
                folder.display(),
                self.memory(),
                self.host.memory,
            )
        })
    }
}
