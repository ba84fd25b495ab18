//! VM processes without VMs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::*;
use crate::link::door;

pub(super) fn registration(name: &str) -> Registration {
    Registration {
        name: name.to_owned(),
        allocation: Allocation {
            reservation: Pages::mib(1),
            shares: 10,
            dynamic_min: Pages::ZERO,
            ..Allocation::of(Pages::mib(64))
        },
        share_group: Some("demo".to_owned()),
        sharing: Sharing::default(),
        managed: true,
        lease: None,
    }
}

/// A process for a VM to live and die with.
pub(super) struct Body {
    child: Child,
    /// At which it listens.
    pub door: Option<(OwnedFd, u32)>,
}

/// Says to the child of [`Body::listening`] that it is one.
const LISTENS: &str = "TIDEMARK_TEST_BODY";

/// No test, but the process of a VM that has a door: who listens at a socket is what the kernel tells
/// whoever connects.
#[test]
fn a_body_that_listens() {
    if std::env::var_os(LISTENS).is_none() {
        return;
    }
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    net::listen(io::stdin(), 16).unwrap();
    println!("\n{LISTENS}");
    loop {
        std::thread::park();
    }
}

impl Body {
    pub fn new() -> Body {
        let mut command = Command::new("cat");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null());
        Body {
            child: command.spawn().unwrap(),
            door: None,
        }
    }

    /// One with a door beside the host manager's `socket`.
    pub fn listening(socket: &Path) -> Body {
        let number = fastrand::u32(..);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let path = door::path(socket, number);
        net::bind(&fd, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host::server::tests::fakes::a_body_that_listens"])
            .arg("--nocapture")
            .env(LISTENS, "1")
            .stdin(Stdio::from(fd.try_clone().unwrap()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map(Result::unwrap).find(|line| line == LISTENS);
        assert!(said.is_some(), "the child has ended");
        let door = Some((fd, number));
        Body { child, door }
    }

    pub fn process(&self) -> Process {
        let pid = Pid::from_child(&self.child);
        Process::child(pidfd_open(pid, PidfdFlags::empty()).unwrap(), pid).unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A VM process without a VM. The link goes first, as when a process ends.
pub(super) struct Fake {
    pub link: Link,
    pub body: Body,
    pub token: Option<Token>,
}

/// A link of the VM of that registration, which lives in `body`.
pub(super) fn link(server: &mut Server, registration: Registration, body: &Body) -> Link {
    let (fd, vm) = socket::pair().unwrap();
    let expected = Expected {
        registration,
        process: body.process(),
        door: body.door.as_ref().map(|(_, number)| *number),
    };
    let since = None;
    let launched = Connection::Launched {
        fd,
        expected,
        since,
    };
    server.connect(launched).unwrap();
    Link::new(vm).unwrap()
}

impl Fake {
    /// A VM that is registered and has not said hello. It has a door where the server has a socket.
    pub fn connect(server: &mut Server, name: &str) -> Fake {
        Fake::launch(server, registration(name))
    }

    pub fn launch(server: &mut Server, registration: Registration) -> Fake {
        let body = match &server.listener {
            Some(listener) => Body::listening(&listener.path),
            None => Body::new(),
        };
        let link = link(server, registration, &body);
        let token = None;
        Fake { link, body, token }
    }

    /// Connects, says hello; the terms and the pool.
    pub fn join(server: &mut Server, name: &str) -> (Fake, Welcome, fs::File) {
        Fake::connect(server, name).joined(server)
    }

    /// Says hello; the terms and the pool.
    pub fn joined(mut self, server: &mut Server) -> (Fake, Welcome, fs::File) {
        self.link.send(&ToHost::Hello).unwrap();
        pump(server);
        match self.link.recv(Some(Duration::ZERO)).unwrap() {
            Received::Message(ToVm::Welcome(welcome), Some(pool)) => {
                self.token = welcome.token;
                (self, welcome, fs::File::from(pool))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Sends, lets the host work; what came back, orders left out.
    pub fn say(&self, server: &mut Server, message: &ToHost) -> Vec<ToVm> {
        self.link.send(message).unwrap();
        pump(server);
        self.hear().0
    }

    pub fn hear(&self) -> (Vec<ToVm>, bool) {
        hear(&self.link)
    }

    /// Closes the link and waits for the host manager at the door; the token that it says.
    pub fn knocked(mut self, server: &mut Server) -> (Fake, Token) {
        // Whatever other process a test has just started has a copy of it for a while.
        self.link.close();
        let (door, _) = self.body.door.as_ref().unwrap();
        let mut visitor = None;
        pump_until(server, "a knock", |_| {
            visitor = net::accept_with(door, SocketFlags::CLOEXEC).ok();
            visitor.is_some()
        });
        self.link = Link::new(visitor.unwrap()).unwrap();
        match self.link.recv(Some(Duration::ZERO)).unwrap() {
            Received::Message(ToVm::Knock { token }, None) => (self, token),
            other => panic!("{other:?}"),
        }
    }
}

/// The same VM over a new link: it says what it holds, and hands its pool back.
pub(super) fn again(server: &mut Server, fake: Fake, held: u64, pool: &fs::File) -> Fake {
    let (fake, token) = fake.knocked(server);
    assert_eq!(Some(token), fake.token);
    let held = Pages(held);
    let again = ToHost::Again { token, held };
    fake.link.send_first(&again, pool.as_fd()).unwrap();
    pump(server);
    fake
}

/// What came, orders left out, and whether the link is still up.
pub(super) fn hear(link: &Link) -> (Vec<ToVm>, bool) {
    let mut heard = Vec::new();
    loop {
        match link.recv(Some(Duration::ZERO)) {
            Ok(Received::Message(ToVm::Orders(_), _)) => {}
            Ok(Received::Message(message, _)) => heard.push(message),
            Ok(Received::TimedOut) => return (heard, true),
            Ok(Received::Closed) => return (heard, false),
            Err(error) => panic!("{error}"),
        }
    }
}
