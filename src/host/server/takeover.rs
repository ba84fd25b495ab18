//! What an earlier host manager left, and what this one leaves: see [`crate::host::record`].
//!
//! A frame that nobody claims is punched, so the record must name every VM that maps a pool. Hence no
//! VM is let in that cannot be recorded; and where a record has a line that cannot be read, or a VM that
//! cannot be looked for, its promises count but its pools are not taken over: each VM starts over with a
//! new one, and keeps what it maps of the old one for itself.

use super::{Error, Server};
use crate::host::manager::VmRecord;
use crate::host::pool::PoolId;
use crate::host::process::{self, Process};
use crate::host::record::{self, Found, Record};

impl Server {
    /// Takes over from the host manager that listened here before: its VMs whose processes still
    /// live keep what they were promised, and are asked to join again. From here on a record is kept for the
    /// next one. Returns how many VMs are expected. Call it once, after [`Server::listen`].
    ///
    /// # Errors
    /// When no record can be kept, or another host manager keeps it. One that cannot be read is
    /// replaced: its VMs are strangers then.
    pub fn take_over(&mut self) -> Result<usize, Error> {
        let Some(listener) = &self.listener else {
            return Ok(0);
        };
        let path = Record::path(&listener.path);
        let found = match Record::read(&path) {
            Ok(found) => found,
            Err(error @ record::Error::InUse { .. }) => return Err(error.into()),
            Err(error) => {
                log::warn!("{error}");
                Found::default()
            }
        };
        let mut whole = found.ignored == 0;
        let (mut living, mut ended) = (Vec::new(), Vec::new());
        for vm in found.vms.into_values() {
            match Process::find(vm.process) {
                Ok(process) => {
                    whole &= vm.check().is_ok();
                    living.push((vm, process));
                }
                Err(process::Error::Ended) => ended.extend(vm.way),
                Err(error) => {
                    log::warn!("{:?}: {error}", vm.name);
                    whole = false;
                }
            }
        }
        if !whole {
            log::warn!(
                "{} is damaged: its frame pools are left alone",
                path.display()
            );
        }
        let mut expected = 0;
        for (mut vm, process) in living {
            if !whole {
                vm.pool = PoolId::UNKNOWN;
            }
            expected += usize::from(self.expect(vm, process));
        }
        if let Some(host) = found.host.filter(|_| expected > 0) {
            self.manager.restore_host(&host);
        }
        self.manager.take_notes();
        self.record = Some(Record::create(&path, &self.manager.all_notes())?);
        for way in ended {
            if !self.manager.has_door(way.door) {
                self.remove_door(way);
            }
        }
        self.find_lost();
        Ok(expected)
    }

    /// Expects the VM of a record, whose process lives.
    fn expect(&mut self, vm: VmRecord, process: Process) -> bool {
        let name = vm.name.clone();
        match self.manager.restore(vm, process.anonymous()) {
            Ok(id) => {
                log::info!("{name} is expected to join again");
                self.mind_process(id, process);
                true
            }
            Err(reason) => {
                log::warn!("the record of {name:?} is ignored: {reason}");
                false
            }
        }
    }

    /// Records what has changed; before anything is answered. Whether that is done.
    pub(super) fn keep_record(&mut self) -> bool {
        let notes = self.manager.take_notes();
        let Some(record) = &mut self.record else {
            return true;
        };
        let manager = &self.manager;
        match record.append(&notes, || manager.all_notes()) {
            Ok(()) => true,
            Err(error) => {
                self.complain(|| error.to_string());
                false
            }
        }
    }
}
