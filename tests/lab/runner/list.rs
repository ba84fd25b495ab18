//! The tests.

use std::path::Path;
use std::time::Duration;

use tidemark::link::message::ExitReason;
use tidemark::mem::credit::CreditBook;
use tidemark::units::Pages;

use super::rig::{Failure, Plan, Rig};

type Test = fn(&Path) -> Result<(), Failure>;

/// Name and body of each test, in the order in which they run.
pub const TESTS: [(&str, Test); 1] = [("boot_and_power_off", boot_and_power_off)];

fn plan(guest: &Path, cpus: u8) -> Plan {
    Plan {
        guest: guest.into(),
        memory: Pages::mib(160),
        cpus,
        cmdline: "quiet".into(),
        credit: CreditBook::unlimited(),
        swap: "/tmp".into(),
    }
}

fn boot_and_power_off(guest: &Path) -> Result<(), Failure> {
    let mut rig = Rig::boot(&plan(guest, 1))?;
    println!("  {}", rig.run("uname -r")?);
    println!("  {}", rig.run("cat /proc/interrupts")?);
    rig.send("poweroff -f\n")?;
    let exit = rig.wait_exit(Duration::from_secs(30))?;
    if exit.reason != ExitReason::Shutdown {
        return Err(format!("{exit:?}").into());
    }
    Ok(())
}
