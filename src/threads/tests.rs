use std::fs::File;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::mpsc;

use super::table::TABLE;
use super::*;

/// What the kernel answers to one try of each guarded call, and to two that nobody may make.
#[derive(Debug, PartialEq)]
struct Answers {
    open: bool,
    connect: bool,
    spawn: bool,
    rename: bool,
    run: bool,
}

/// Whether the answer is another one than the filter's.
fn allowed<T>(result: io::Result<T>) -> bool {
    !result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
}

fn try_all() -> Answers {
    Answers {
        open: allowed(File::open("/dev/null")),
        connect: allowed(UnixStream::connect("/nobody/listens/here")),
        spawn: allowed(Builder::new().spawn(|| ()).map(JoinHandle::join)),
        rename: allowed(std::fs::rename("/nobody/has/this", "/nor/that")),
        run: allowed(Command::new("/bin/true").status()),
    }
}

#[test]
fn every_thread_can_do_what_its_row_says_and_no_more() {
    for row in TABLE {
        let (tell, told) = mpsc::channel();
        let thread = row.spawn(move || tell.send(try_all()).unwrap()).unwrap();
        let expected = Answers {
            open: row.needs.contains(&Guarded::Open),
            connect: row.needs.contains(&Guarded::Connect),
            spawn: row.needs.contains(&Guarded::Spawn),
            rename: false,
            run: false,
        };
        assert_eq!(told.recv().unwrap(), expected, "{}", row.name);
        thread.join().unwrap();
    }
    // Nothing of it came back to the thread that started them.
    assert_eq!(
        try_all(),
        Answers {
            open: true,
            connect: true,
            spawn: true,
            rename: true,
            run: true
        }
    );
}

#[test]
fn a_thread_may_do_no_more_than_the_one_that_started_it() {
    let opener = Thread {
        name: "opener",
        stack: Stack::Bytes(64 << 10),
        waits_for: &[],
        needs: &[Guarded::Open, Guarded::Connect],
    };
    let (tell, told) = mpsc::channel();
    let start = move || {
        let inner = opener.spawn(move || tell.send(try_all()).unwrap());
        inner.unwrap().join().unwrap();
    };
    BUILDER.spawn(start).unwrap().join().unwrap();
    let answers = told.recv().unwrap();
    assert!(answers.open && !answers.connect, "{answers:?}");
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
    let careless = Thread {
        name: "careless",
        stack: Stack::Process,
        waits_for: &[Wait::Transport],
        needs: &[],
    };
    assert!(waits_at_last(&careless).contains(&Wait::Page));
}
