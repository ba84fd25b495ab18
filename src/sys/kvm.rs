//! The parts of KVM that kvm-ioctls leaves unsafe, and the vCPU kick.
//!
//! The kick is a real-time signal whose handler sets `immediate_exit` of the vCPU that its thread
//! runs. A signal that arrives before KVM_RUN is thereby not lost: the thread clears the flag, then
//! looks whether it may run, then enters; a kick after the look makes KVM_RUN return at once.
#![expect(unsafe_code)]
// UNSAFETY: registers memslots, reads the union in kvm_run, and lets a signal handler write a byte
// of kvm_run.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler, unblock_signal};

use super::ram::GuestRam;
use crate::units::Gfn;

/// What went wrong between us and KVM's memory or signals.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM refused a memslot.
    #[error("KVM refused memslot {memslot} of {bytes} bytes at {start}")]
    Memslot {
        /// Number of the memslot.
        memslot: u32,
        /// First frame.
        start: Gfn,
        /// Length.
        bytes: usize,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// The kick's signal handler was refused.
    #[error("cannot install the handler of the vCPU kick signal")]
    KickHandler {
        /// The kernel's answer.
        source: vmm_sys_util::errno::Error,
    },
}

/// The type of KVM's requests, `KVMIO` of `include/uapi/linux/kvm.h`.
pub const REQUEST_TYPE: u32 = 0xae;

const fn read_request(number: u64, bytes: usize) -> u64 {
    (2 << 30) | ((bytes as u64) << 16) | ((REQUEST_TYPE as u64) << 8) | number
}

/// What is asked of a vCPU once its machine is built: KVM_RUN, and KVM_GET_REGS and KVM_GET_SREGS to
/// say where a guest failed.
pub const VCPU_REQUESTS: [u64; 3] = [
    ((REQUEST_TYPE as u64) << 8) | 0x80,
    read_request(0x81, size_of::<kvm_regs>()),
    read_request(0x83, size_of::<kvm_sregs>()),
];

/// Frequency of the time-stamp counter that guests read, kHz; `None` where KVM does not say.
pub fn tsc_khz() -> Option<u32> {
    let vm = Kvm::new().ok()?.create_vm().ok()?;
    vm.create_vcpu(0).ok()?.get_tsc_khz().ok()
}

/// A KVM VM together with the memory its memslots point into.
pub struct GuestVm {
    // Declared first, so closed first: memory is unmapped only when no memslot names it. The vCPU
    // descriptors keep the kernel's VM alive as well, so whoever has one keeps a `GuestVm`.
    vm: VmFd,
    ram: Arc<GuestRam>,
}

impl GuestVm {
    /// Gives `vm` the guest's RAM: one memslot for each range of its layout.
    ///
    /// # Errors
    /// When KVM refuses a memslot.
    pub fn new(vm: VmFd, ram: Arc<GuestRam>) -> Result<GuestVm, Error> {
        let guest = GuestVm { vm, ram };
        for (memslot, range) in (0..).zip(guest.ram.layout().ranges()) {
            let region = kvm_userspace_memory_region {
                slot: memslot,
                flags: 0,
                guest_phys_addr: range.start.gpa(),
                memory_size: range.bytes() as u64,
                userspace_addr: guest.ram.hva(range.start) as u64,
            };
            // SAFETY: the range is mapped for as long as `guest.ram` lives, and `GuestVm` closes
            // the VM before it lets go of the RAM.
            unsafe { guest.vm.set_user_memory_region(region) }.map_err(|source| {
                Error::Memslot {
                    memslot,
                    start: range.start,
                    bytes: range.bytes(),
                    source,
                }
            })?;
        }
        Ok(guest)
    }

    /// The VM.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// The RAM.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs. Plain data without a
    /// destructor, so a signal handler may read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `KickableVcpu` sets the pointer to a byte of the vCPU's mapped kvm_run and
        // clears it before the mapping goes; this handler runs on the thread that owns both.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the kick's handler, once per process.
///
/// # Errors
/// When the kernel refuses it.
pub fn install_kick_handler() -> Result<(), Error> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        register_signal_handler(SIGRTMIN(), on_kick).map_err(|error| error.errno())
    });
    installed.map_err(|errno| Error::KickHandler {
        source: vmm_sys_util::errno::Error::new(errno),
    })
}

/// Makes the vCPU of that thread leave KVM_RUN, or not enter it. The thread may have ended.
pub fn kick<T>(thread: &JoinHandle<T>) {
    if let Err(error) = thread.kill(SIGRTMIN()) {
        log::warn!("vCPU kick failed: {error}");
    }
}

/// A vCPU bound to the thread that runs it; other threads can [`kick`] it.
pub struct KickableVcpu {
    fd: VcpuFd,
    /// Not `Send`: the thread-local pointer belongs to this thread.
    _thread: std::marker::PhantomData<*mut u8>,
}

impl KickableVcpu {
    /// Binds `fd` to the calling thread.
    ///
    /// # Panics
    /// When the thread runs another vCPU already.
    pub fn new(mut fd: VcpuFd) -> KickableVcpu {
        let flag = &raw mut fd.get_kvm_run().immediate_exit;
        let before = IMMEDIATE_EXIT.replace(flag);
        assert!(before.is_null(), "a thread runs one vCPU");
        // The thread that started this one may have blocked signals for itself.
        if let Err(error) = unblock_signal(SIGRTMIN()) {
            log::error!("the vCPU kick stays blocked: {error:?}");
        }
        KickableVcpu {
            fd,
            _thread: std::marker::PhantomData,
        }
    }

    /// The vCPU.
    pub fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Forgets kicks so far. The caller looks for their reason afterwards, before it enters.
    pub fn clear_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }

    /// KVM's suberror after KVM_EXIT_INTERNAL_ERROR.
    pub fn internal_suberror(&mut self) -> Option<u32> {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
            return None;
        }
        // SAFETY: the exit reason says that this member of the union is the valid one; it is
        // plain integers besides.
        Some(unsafe { run.__bindgen_anon_1.internal.suberror })
    }
}

impl Drop for KickableVcpu {
    fn drop(&mut self) {
        // Before `fd` unmaps kvm_run.
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}
