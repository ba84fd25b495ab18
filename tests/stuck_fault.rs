//! A vCPU that waits in a page fault which nobody serves: nothing that the VMM does may wait with
//! it.

mod common;

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use common::asm::Code;
use common::{Capability::Kvm, Capability::Uffd, TestVm, require};
use tidemark::boot::image::Image;
use tidemark::machine::gate::Hold;
use tidemark::units::{Gfn, PAGE_SIZE};
use tidemark::words::ExitReason;

/// Guest frame that stays unserved: 3 MiB.
const STUCK: Gfn = Gfn(0x300);

/// userfaultfd's requests and structures (include/uapi/linux/userfaultfd.h).
mod abi {
    pub const API: u64 = 0xc018_aa3f;
    pub const REGISTER: u64 = 0xc020_aa00;
    pub const VERSION: u64 = 0xaa;
    pub const REGISTER_MISSING: u64 = 1;
}

/// Arms one page so that touching it waits for a handler that does not exist.
#[expect(unsafe_code)]
// UNSAFETY: raw ioctls on a userfaultfd.
fn arm(hva: usize) -> OwnedFd {
    let flags = rustix::mm::UserfaultfdFlags::CLOEXEC | rustix::mm::UserfaultfdFlags::NONBLOCK;
    // SAFETY: the descriptor is only used for the two requests below.
    let fd = unsafe { rustix::mm::userfaultfd(flags) }.expect("checked by `require`");
    let mut api = [abi::VERSION, 0, 0];
    // SAFETY: the request takes three words.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), abi::API, api.as_mut_ptr()) };
    assert_eq!(done, 0);
    let mut register = [hva as u64, PAGE_SIZE as u64, abi::REGISTER_MISSING, 0];
    // SAFETY: the request takes four words and arms a page of the test's own guest.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), abi::REGISTER, register.as_mut_ptr()) };
    assert_eq!(done, 0);
    fd
}

fn stuck_vm(_: common::Host) -> (TestVm, OwnedFd) {
    let code = Code::default().count_forever(0x30_0000);
    let mut vm = TestVm::build(Image::Owned(code.ring3()), "", 4);
    let uffd = arm(vm.ram.hva(STUCK));
    vm.machine.start().expect("threads");
    vm.until("the fault", |_| {
        let mut message = [0; 32];
        rustix::io::read(&uffd, &mut message).is_ok_and(|read| read == message.len())
    });
    (vm, uffd)
}

#[test]
fn closing_the_gate_and_stopping_do_not_wait_for_the_fault() {
    let Some(host) = require(&[Kvm, Uffd]) else {
        return;
    };
    let (vm, uffd) = stuck_vm(host);
    let start = Instant::now();
    vm.machine.gate().close(Hold::Paused);
    let left = vm.machine.gate().wait_empty(Duration::from_millis(200));
    vm.machine.gate().open(Hold::Paused);
    vm.machine.stop();
    let joined = vm.machine.join(Duration::from_millis(200));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(
        vm.machine.exit().map(|exit| exit.reason),
        Some(ExitReason::Stopped)
    );
    // Which depends on the kernel: 6.18 lets a signal interrupt the wait.
    eprintln!("vCPU left the fault when kicked: gate {left}, end {joined}");
    // Whoever waits in the fault is let go when the descriptor closes.
    drop(uffd);
    assert!(vm.machine.join(common::DEADLINE));
}
