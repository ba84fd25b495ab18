//! What many connections may cost: nobody waits behind those who say nothing, and descriptors are
//! never out.

use std::collections::HashMap;

use rustix::process::{Resource, getrlimit};

use super::Server;
use crate::host::manager::VMS_MAX;
use crate::link::socket;

/// Connections that have not said yet what they are, or whose reply is unread, at most.
pub(super) const IDLE_MAX: usize = 64;
/// Descriptors for everything that is no VM's: those of [`IDLE_MAX`], and our own.
const DESCRIPTORS_BESIDE: u64 = IDLE_MAX as u64 + 32;
/// Descriptors of a VM: its link, its process, its pool, and what `tidemark run` has of it (its
/// output, its process again); and one while it joins.
const DESCRIPTORS_A_VM: u64 = 6;

impl Server {
    /// Closes one of the connections that owe us a word: the oldest of the process that has the most
    /// of them, so that a crowd makes way for others and not the other way round. False when there
    /// is none.
    pub(super) fn make_way(&mut self) -> bool {
        let mut crowds: HashMap<i32, Vec<_>> = HashMap::new();
        for (&token, connection) in &self.connections {
            if let Some(since) = connection.idle_since() {
                let peer = socket::peer(connection).map_or(0, |peer| peer.pid.as_raw_pid());
                crowds.entry(peer).or_default().push((since, token));
            }
        }
        let most = crowds.into_values().max_by_key(Vec::len);
        let Some(&(_, oldest)) = most.as_ref().and_then(|crowd| crowd.iter().min()) else {
            return false;
        };
        self.complain(|| "closed a silent connection: others want to be heard".to_owned());
        self.hang_up(oldest);
        true
    }
}

/// VMs for which there are descriptors under the present limit, at most [`VMS_MAX`]. Of a small limit
/// half is for VMs.
pub(super) fn vms_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let vms = (limit - DESCRIPTORS_BESIDE.min(limit / 2)) / DESCRIPTORS_A_VM;
    usize::try_from(vms).map_or(VMS_MAX, |vms| vms.min(VMS_MAX))
}
