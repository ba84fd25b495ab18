//! The table: a row a thread, in the order in which they start.

use super::Need::{
    Alarms, Build, Disk as GuestDisk, Door, Image, Keys, Link, Memory, Spawn, Swap, Vcpu,
};
use super::Stack::{Bytes, Process};
use super::Thread;
use super::Wait::{Clock, Disk, Events, Gate, Idle, Page, Terminal, Transport};

/// Carries out the host manager's orders, and lets the next one in when it was restarted.
pub static MAIN: Thread = Thread {
    name: "main",
    stack: Process,
    waits_for: &[Disk, Events, Clock],
    needs: &[Memory, Swap, Link, Door, Alarms],
};

/// Serve userfaultfd events until the process ends, several at once. While one reads the swap file
/// the others serve.
pub static FAULTS: Thread = Thread {
    name: "faults",
    stack: Bytes(256 << 10),
    waits_for: &[Disk],
    needs: &[Memory, Swap],
};

/// Runs one vCPU and the devices that it touches. The deepest path of these threads, a balloon
/// notification into the pager with a 4 KiB list on the stack, needs a fraction of their stack.
pub static VCPU: Thread = Thread {
    name: "vcpu",
    stack: Bytes(128 << 10),
    waits_for: &[Page, Transport, Gate, Idle, Disk],
    needs: &[Vcpu, Memory, GuestDisk],
};

/// Builds the machine and loads the guest, once all others are there and confined, and before anything of
/// the guest runs. The first that reads what somebody else wrote.
pub static BUILDER: Thread = Thread {
    name: "builder",
    stack: Bytes(256 << 10),
    waits_for: &[Page, Disk],
    needs: &[Image, Build, Spawn],
};

/// Asks the guest's balloon driver for statistics.
pub static STATISTICS: Thread = Thread {
    name: "statistics",
    stack: Bytes(64 << 10),
    waits_for: &[Page, Transport, Clock],
    needs: &[],
};

/// Reads the terminal for the guest's serial port.
pub static KEYS: Thread = Thread {
    name: "keys",
    stack: Bytes(64 << 10),
    waits_for: &[Terminal, Clock],
    needs: &[Keys],
};

/// Writes the guest's text.
pub static CONSOLE: Thread = Thread {
    name: "console",
    stack: Bytes(64 << 10),
    waits_for: &[Terminal],
    needs: &[],
};

/// Writes the process's own text.
pub static LOG: Thread = Thread {
    name: "log",
    stack: Bytes(64 << 10),
    waits_for: &[Terminal],
    needs: &[],
};

/// Looks at the files of a fleet before its VMs start: the only thread of a process of its own.
pub static INSPECTOR: Thread = Thread {
    name: "inspector",
    stack: Process,
    waits_for: &[Disk, Clock],
    needs: &[Image, Link],
};

/// Every row.
pub static TABLE: &[&Thread] = &[
    &MAIN,
    &FAULTS,
    &VCPU,
    &BUILDER,
    &STATISTICS,
    &KEYS,
    &CONSOLE,
    &LOG,
    &INSPECTOR,
];
