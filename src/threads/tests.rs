use std::fs::File;
use std::sync::mpsc;

use super::table::TABLE;
use super::*;

// What ends the process is tried in `tests/escape.rs`, each in a process of its own.

fn opens() -> bool {
    File::open("/dev/null").is_ok()
}

#[test]
fn no_thread_opens_files() {
    for row in TABLE {
        let (tell, told) = mpsc::channel();
        let thread = row.spawn(move || tell.send(opens()).unwrap()).unwrap();
        assert!(!told.recv().unwrap(), "{}", row.name);
        thread.join().unwrap();
    }
    // Nothing of it came back to the thread that started them.
    assert!(opens());
}

#[test]
fn threads_have_their_rows_names_and_room() {
    let (tell, told) = mpsc::channel();
    let name = move || {
        // The stack is there: half of it is written.
        let array = [1u8; 64 << 10];
        let sum: usize = std::hint::black_box(array)
            .iter()
            .map(|byte| usize::from(*byte))
            .sum();
        tell.send((std::thread::current().name().map(str::to_owned), sum))
            .unwrap();
    };
    VCPU.spawn_nth(3, name).unwrap().join().unwrap();
    assert_eq!(told.recv().unwrap(), (Some("vcpu3".to_owned()), 64 << 10));
    for (place, row) in TABLE.iter().enumerate() {
        // Linux cuts names after 15 bytes; a number follows.
        assert!(row.name.len() <= 12, "{}", row.name);
        assert!(TABLE[..place].iter().all(|other| other.name != row.name));
    }
}

/// All that a thread may come to wait for, through the threads that it waits for.
fn waits_at_last(thread: &Thread) -> Vec<Wait> {
    let mut found: Vec<Wait> = thread.waits_for.to_vec();
    let mut next = 0;
    while let Some(wait) = found.get(next) {
        for ender in wait.ended_by() {
            for wait in ender.waits_for {
                if !found.contains(wait) {
                    found.push(*wait);
                }
            }
        }
        next += 1;
    }
    found
}

#[test]
fn nobody_who_serves_a_page_waits_for_one() {
    for server in Wait::Page.ended_by() {
        let waits = waits_at_last(server);
        assert!(!waits.contains(&Wait::Page), "{}: {waits:?}", server.name);
    }
    // The search follows threads: a vCPU holds a transport while it waits for a page.
    static CARELESS: Thread = Thread {
        name: "careless",
        stack: Stack::Process,
        waits_for: &[Wait::Transport],
        needs: &[],
    };
    assert!(waits_at_last(&CARELESS).contains(&Wait::Page));
}
