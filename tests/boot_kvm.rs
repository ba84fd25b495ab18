//! Tiny ring-3 guests on the host's KVM: how they start, talk and end.

mod common;

use std::time::{Duration, Instant};

use common::asm::Code;
use common::{Capability::Kvm, TestVm, require};
use tidemark::boot::image::Image;
use tidemark::machine::gate::Hold;
use tidemark::words::{Exit, ExitReason};
use tidemark_guest_protocol::PORT_IDLE;
use vm_memory::{Bytes, GuestAddress};

fn image(code: Code) -> Image {
    Image::Owned(code.ring3())
}

fn guest_exit(code: u32) -> Exit {
    Exit {
        reason: ExitReason::GuestExit,
        code,
        message: None,
    }
}

#[test]
fn a_guest_prints_its_command_line_and_exits_with_a_code() {
    let Some(host) = require(&[Kvm]) else { return };
    let code = Code::default()
        .sse()
        .print("hello\n")
        .print_cmdline()
        .print("\n")
        .out(0xf4, 0x1234_5678);
    let vm = TestVm::start(host, image(code), "seed=7", 4);
    assert_eq!(vm.wait(), guest_exit(0x1234_5678));
    let expected = "hello\nseed=7 virtio_mmio.device=4K@0xd0000000:5\n";
    assert_eq!(vm.log.text(), expected);
    assert!(vm.machine.console().first_byte() > vm.machine.first_run());
}

#[test]
fn report_lines_are_taken_out_of_the_console() {
    let Some(host) = require(&[Kvm]) else { return };
    let code = Code::default()
        .print("tidemark: pages_verified=5 pages_corrupt=1\nend\n")
        .out(0xf4, 0);
    let vm = TestVm::start(host, image(code), "", 4);
    assert_eq!(vm.wait(), guest_exit(0));
    assert_eq!(vm.log.text(), "end\n");
    let report = vm.machine.console().report().unwrap();
    assert_eq!((report.pages_verified, report.pages_corrupt), (5, 1));
}

#[test]
fn a_fault_in_ring_3_names_its_place() {
    let Some(host) = require(&[Kvm]) else { return };
    let lead = Code::default().out(0x80, 1);
    let at = lead.here();
    let culprits = [
        ("hlt", lead.clone().halt()),
        ("ud2", lead.clone().undefined()),
        ("store outside memory", lead.clone().store(0x4000_0000)),
    ];
    for (name, code) in culprits {
        let vm = TestVm::start(host, image(code), "", 4);
        let exit = vm.wait();
        assert_eq!(exit.reason, ExitReason::Error, "{name}: {exit:?}");
        let message = exit.message.unwrap();
        // AMD's hardware resets the CPU on a triple fault and the place is lost.
        let lost = message.contains("unknown rip");
        assert!(
            lost || message.contains(&format!("rip {at:#x}")),
            "{name}: {message}"
        );
    }
}

#[test]
fn the_balloons_registers_answer_and_empty_windows_read_ones() {
    let Some(host) = require(&[Kvm]) else { return };
    let magic = TestVm::start(host, image(Code::default().exit_with(0xd000_0000)), "", 4);
    assert_eq!(magic.wait(), guest_exit(u32::from_le_bytes(*b"virt")));
    let empty = TestVm::start(host, image(Code::default().exit_with(0xd000_6000)), "", 4);
    assert_eq!(empty.wait(), guest_exit(u32::MAX));
}

#[test]
fn an_endless_guest_is_stopped() {
    let Some(host) = require(&[Kvm]) else { return };
    let vm = TestVm::start(host, image(Code::default().count_forever(0x20_0000)), "", 4);
    vm.until("counting", |vm| counter(vm) > 0);
    let start = Instant::now();
    vm.machine.stop();
    assert_eq!(vm.wait().reason, ExitReason::Stopped);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_stop_at_any_moment_of_the_start_is_not_lost() {
    let Some(host) = require(&[Kvm]) else { return };
    let code = Code::default().count_forever(0x20_0000);
    for wait_us in (0..400).step_by(4) {
        let vm = TestVm::start(host, image(code.clone()), "", 4);
        std::thread::sleep(Duration::from_micros(wait_us));
        vm.machine.stop();
        assert!(vm.machine.join(common::DEADLINE), "after {wait_us} us");
    }
}

#[test]
fn a_guest_asleep_on_the_idle_port_is_stopped() {
    let Some(host) = require(&[Kvm]) else { return };
    let mut code = Code::default().print("asleep\n");
    for _ in 0..100 {
        code = code.out(PORT_IDLE, u32::MAX);
    }
    let vm = TestVm::start(host, image(code), "", 4);
    vm.until("sleep", |vm| vm.log.text() == "asleep\n");
    vm.machine.stop();
    let exit = vm.wait();
    assert_eq!(exit.reason, ExitReason::Stopped, "{exit:?}");
}

#[test]
fn a_closed_gate_holds_the_guest_until_every_hold_is_gone() {
    let Some(host) = require(&[Kvm]) else { return };
    let vm = TestVm::start(host, image(Code::default().count_forever(0x20_0000)), "", 4);
    vm.until("counting", |vm| counter(vm) > 0);
    for _ in 0..50 {
        let gate = vm.machine.gate();
        gate.close(Hold::Paused);
        gate.close(Hold::Blocked);
        assert!(gate.wait_empty(common::DEADLINE));
        let before = counter(&vm);
        gate.open(Hold::Paused);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(counter(&vm), before);
        gate.open(Hold::Blocked);
        vm.until("counting on", |vm| counter(vm) != before);
    }
    vm.machine.gate().close(Hold::Blocked);
    vm.machine.stop();
    assert_eq!(vm.wait().reason, ExitReason::Stopped);
}

fn counter(vm: &TestVm) -> u32 {
    vm.ram
        .memory()
        .read_obj(GuestAddress(0x20_0000))
        .expect("RAM")
}
