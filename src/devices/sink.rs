//! Where devices send what the guest told them.

use crate::units::{Gfn, GfnRange};

/// Receives what the guest's balloon driver says. Implemented by the VM's pager.
///
/// Every gfn and range was checked against the guest's RAM by the device. Calls come from vCPU or
/// device threads and may take as long as a page-table operation; they never touch guest memory
/// through a host address.
pub trait BalloonSink: Send + Sync {
    /// The driver put these pages into its balloon: their content is dead.
    fn inflate(&self, gfns: &[Gfn]);
    /// The driver took these pages out of its balloon.
    fn deflate(&self, gfns: &[Gfn]);
    /// Free page reporting: the content of the range is dead until the guest's next write.
    fn report_free(&self, range: GfnRange);
}
