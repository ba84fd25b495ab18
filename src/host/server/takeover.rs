//! What an earlier host manager left, and what this one leaves: see [`crate::host::record`].

use super::Server;
use crate::host::manager::VmRecord;
use crate::host::process::Process;
use crate::host::record::{Found, Record};

impl Server {
    /// Takes over from the host manager that listened here before: its VMs whose processes still
    /// live keep what they were promised, and may join again. From here on a record is kept for the
    /// next one. Returns how many VMs are expected. Call it once, after [`Server::listen`].
    ///
    /// A record that cannot be read or kept is no reason not to serve: its VMs are strangers then.
    pub fn take_over(&mut self) -> usize {
        let Some(listener) = &self.listener else {
            return 0;
        };
        let path = Record::path(&listener.path);
        let found = match Record::read(&path) {
            Ok(found) => found,
            Err(error) => {
                log::warn!("{error}");
                Found::default()
            }
        };
        if found.ignored > 0 {
            log::warn!("{} lines of {} ignored", found.ignored, path.display());
        }
        let mut expected = 0;
        for vm in found.vms.into_values() {
            expected += usize::from(self.expect(vm));
        }
        if let Some(host) = found.host.filter(|_| expected > 0) {
            self.manager.restore_host(&host);
        }
        self.manager.take_notes();
        match Record::create(&path, &self.manager.all_notes()) {
            Ok(record) => self.record = Some(record),
            Err(error) => log::warn!("{error}: VMs will not be known after a restart"),
        }
        expected
    }

    /// Expects the VM of a record, if its process lives.
    fn expect(&mut self, vm: VmRecord) -> bool {
        let name = vm.name.clone();
        let Ok(process) = Process::find(vm.process) else {
            return false;
        };
        match self.manager.restore(vm, process.anonymous()) {
            Ok(id) => {
                log::info!("{name} is expected to join again");
                self.hold(id, process);
                true
            }
            Err(reason) => {
                log::warn!("the record of {name:?} is ignored: {reason}");
                false
            }
        }
    }

    /// Records what has changed; before anything is answered.
    pub(super) fn keep_record(&mut self) {
        let notes = self.manager.take_notes();
        let Some(record) = &mut self.record else {
            return;
        };
        let manager = &self.manager;
        if let Err(error) = record.append(&notes, || manager.all_notes()) {
            self.complain(|| error.to_string());
        }
    }
}
