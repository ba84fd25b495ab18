//! Whether the folder of the swap files has room for what a fleet may have to swap.

use super::spec::FleetSpec;
use crate::units::Pages;

impl FleetSpec {
    /// What the VMs may have to swap, at most: memory that is managed and that the budget does not
    /// hold. Compression, sharing and balloons can only make it less.
    fn swapped_max(&self) -> Pages {
        let sum = |managed_only: bool| -> Pages {
            let vms = self.vms.iter();
            vms.filter(|vm| !managed_only || vm.management.is_managed())
                .map(|vm| vm.allocation.size)
                .sum()
        };
        let beyond = sum(false).saturating_sub(self.host.memory);
        beyond.min(sum(true))
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
                self.vms.iter().map(|vm| vm.allocation.size).sum::<Pages>(),
                self.host.memory,
            )
        })
    }
}
