//! Runs inside a Linux host, emulated or not, and tests tidemark with stock Debian guests.
//!
//!     lab_runner GUEST_FOLDER [TEST...]
//!
//! Without names it runs all tests but those of `list::BY_NAME`, otherwise these in this order; one that
//! is named twice runs twice.
//! Prints `PASS name seconds` or `FAIL name seconds` followed by the reason, for each test.

mod cgroups;
#[path = "../../pager/faults.rs"]
mod faults;
mod fleet;
mod hints;
mod kernel;
mod large;
mod list;
mod rig;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    env_logger::init();
    let mut arguments = std::env::args().skip(1);
    let guest = PathBuf::from(arguments.next().unwrap_or_else(|| "/guest".into()));
    // What the tests make lies in their working folder.
    let guest = std::path::absolute(guest).expect("a working folder");
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::env::set_current_dir(&folder).expect("enter the temporary folder");
    let mut tests = list::TESTS.to_vec();
    let wanted: Vec<String> = arguments.collect();
    if !wanted.is_empty() {
        let find = |name: &String| {
            let mut all = list::TESTS.into_iter().chain(list::BY_NAME);
            all.find(|test| test.0 == name)
        };
        tests = wanted
            .iter()
            .map(|name| find(name).unwrap_or_else(|| panic!("there is no test {name}")))
            .collect();
    }
    let mut failures = 0;
    for (name, test) in tests {
        let start = Instant::now();
        let outcome = test(&guest);
        let seconds = start.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => println!("PASS {name} {seconds:.1}"),
            Err(failure) => {
                failures += 1;
                println!("FAIL {name} {seconds:.1} {failure}");
            }
        }
    }
    println!("LAB DONE failures={failures}");
    if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
