//! Who somebody is, is said by its launcher and by the kernel, never by itself.

use super::*;
use crate::host::control::{CallError, Request, call, join};
use crate::link::door::{self, Door};

fn listening() -> (tempfile::TempDir, PathBuf, Server) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.sock");
    let mut server = server();
    server.listen(&path).unwrap();
    server.take_over().unwrap();
    (folder, path, server)
}

/// Registers a VM in this process, as `tidemark vm` does; its link.
fn launch(
    server: &mut Server,
    path: &Path,
    registration: Registration,
    door: Option<u32>,
) -> Result<Link, CallError> {
    let (ours, theirs) = socket::pair().unwrap();
    let link = Link::new(ours).unwrap();
    link.send(&ToHost::Hello).unwrap();
    let path = path.to_owned();
    serve_while(server, move || join(&path, registration, door, theirs)).map(|()| link)
}

fn refusal(link: &Link) -> String {
    match &hear(link).0[..] {
        [ToVm::Refused { reason }] => reason.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vm_is_who_its_launcher_said_and_nobody_asks_it() {
    let (_folder, path, mut server) = listening();
    let door = Door::open(&path).unwrap();
    let said = registration("a");
    let link = launch(&mut server, &path, said.clone(), Some(door.number())).unwrap();
    let Received::Message(ToVm::Welcome(welcome), Some(_)) =
        link.recv(Some(Duration::ZERO)).unwrap()
    else {
        panic!("not welcomed")
    };
    let id = server.manager().find("a").unwrap();
    assert_eq!(server.manager().allocation(id), Some(said.allocation));
    let way = server.manager().way_back(id).unwrap();
    assert_eq!((way.door, Some(way.token)), (door.number(), welcome.token));
    // It was recorded before the VM was answered, for nobody else to read.
    let record = Record::path(&path);
    assert!(
        fs::read_to_string(&record)
            .unwrap()
            .contains(&way.token.digits())
    );
    assert_eq!(
        fs::metadata(record).unwrap().permissions().mode() & 0o777,
        0o600
    );
    // This process is a VM's now: it gets no answer here, and no second VM.
    let asked = {
        let path = path.clone();
        serve_while(&mut server, move || call(&path, &Request::Ps))
    };
    assert!(
        matches!(asked, Err(CallError::NoAnswer { .. })),
        "{asked:?}"
    );
    assert!(launch(&mut server, &path, registration("b"), None).is_err());
    assert_eq!(server.manager().live(), 1);
}

#[test]
fn a_name_that_somebody_has_is_not_to_be_had() {
    let (_folder, path, mut server) = listening();
    let (a, ..) = Fake::join(&mut server, "a");
    let squatter = launch(&mut server, &path, registration("a"), None).unwrap();
    assert!(refusal(&squatter).contains("runs already"));
    // Nor is the door at which another VM is found.
    let door = a.body.door.as_ref().map(|(_, number)| *number);
    let squatter = launch(&mut server, &path, registration("b"), door).unwrap();
    assert!(refusal(&squatter).contains("listens there"));
    assert!(a.hear().1 && server.manager().live() == 1);
}

#[test]
fn a_lease_is_redeemed_by_its_token_alone() {
    let (_folder, path, mut server) = listening();
    let leased = server
        .manager()
        .reserve(Pages::mib(32), None, OwnerId(77), Duration::MAX);
    let (id, token, _) = leased.unwrap();
    let with = |lease: Token| Registration {
        lease: Some(lease),
        ..registration("a")
    };
    // Its number, which is no secret, is no token.
    let thief = launch(&mut server, &path, with(Token::of([0, id.0])), None).unwrap();
    assert!(refusal(&thief).contains("no lease"));
    assert!(server.manager().has_lease(OwnerId(77)));
    let heir = launch(&mut server, &path, with(token), None).unwrap();
    assert!(matches!(&hear(&heir).0[..], [ToVm::Welcome(_)]));
    assert!(!server.manager().has_lease(OwnerId(77)));
    let request = format!(r#"{{"verb":"join","registration":{{"lease":{}}}}}"#, id.0);
    assert!(control::read(request.as_bytes()).is_err());
}

#[test]
fn no_connection_to_the_socket_becomes_a_link() {
    let (_folder, path, mut server) = listening();
    let client = Link::new(socket::connect(&path).unwrap()).unwrap();
    client.send(&ToHost::Hello).unwrap();
    pump(&mut server);
    assert!(refusal(&client).contains("launcher"));
    assert_eq!(server.manager().live(), 0);
    // A registration without a link, and with something else.
    let request = Request::Join {
        registration: registration("a"),
        door: None,
    };
    let without = {
        let (path, request) = (path.clone(), request.clone());
        serve_while(&mut server, move || call(&path, &request))
    };
    assert!(without.unwrap_err().to_string().contains("link"));
    let json = serde_json::to_vec(&request).unwrap();
    let file = tempfile::tempfile().unwrap();
    let client = socket::connect(&path).unwrap();
    socket::send_datagram(&client, &json, Some(file.as_fd())).unwrap();
    pump(&mut server);
    let mut reply = vec![0; 1024];
    let said = socket::recv_datagram(&client, &mut reply, socket::TakeFd::Never).unwrap();
    assert!(String::from_utf8_lossy(&reply[..said.bytes]).contains("error"));
    assert_eq!(server.manager().live(), 0);
}

#[test]
fn control_over_a_vms_link_ends_the_vm() {
    let (_folder, _path, mut server) = listening();
    let (_good, ..) = Fake::join(&mut server, "good");
    for request in [r#"{"verb":"stop","vm":"good"}"#, r#"{"verb":"ps"}"#] {
        let (mut rogue, ..) = Fake::join(&mut server, "rogue");
        socket::send_datagram(&rogue.link, request.as_bytes(), None).unwrap();
        pump_until(&mut server, "its end", |server| {
            server.manager().live() == 1
        });
        assert!(rogue.body.has_ended());
    }
}

#[test]
fn a_token_is_worth_nothing_to_another_process() {
    let (_folder, path, mut server) = listening();
    let (a, _, pool) = Fake::join(&mut server, "a");
    let token = a.token.unwrap();
    drop(server);
    // We take the place of the VM at its door, and know what it knows.
    let (_, number) = *a.body.door.as_ref().unwrap();
    let place = door::path(&path, number);
    fs::rename(&place, place.with_extension("away")).unwrap();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let thief = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    net::bind(&thief, &SocketAddrUnix::new(&place).unwrap()).unwrap();
    net::listen(&thief, 4).unwrap();
    let mut second = self::server();
    second.listen(&path).unwrap();
    assert_eq!(second.take_over().unwrap(), 1);
    let visitor = net::accept_with(&thief, SocketFlags::CLOEXEC).unwrap();
    let link = Link::new(visitor).unwrap();
    let again = ToHost::Again {
        token,
        held: Pages::ZERO,
    };
    // It is told nothing and heard by nobody.
    assert!(link.send_first(&again, pool.as_fd()).is_err() || hear(&link) == (vec![], false));
    pump(&mut second);
    assert_eq!(hear(&link), (vec![], false));
    let figures = second.manager().figures();
    assert_eq!(figures.vms[0].state.name(), "detached");
    // The VM is found where it is.
    drop(thief);
    fs::rename(place.with_extension("away"), &place).unwrap();
    let a = super::again(&mut second, a, 0, &pool);
    assert!(matches!(&hear(&a.link).0[..], [ToVm::Welcome(_)]));
}

#[test]
fn the_token_of_a_dead_process_is_forgotten_and_its_door_removed() {
    let (folder, path, mut server) = listening();
    let (mut a, ..) = Fake::join(&mut server, "a");
    let (mut b, ..) = Fake::join(&mut server, "b");
    let files = || fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files(), 4, "the socket, the record and two doors");
    a.body.kill();
    pump_until(&mut server, "its end", |server| {
        server.manager().live() == 1
    });
    assert_eq!(files(), 3);
    drop(server);
    // Dead while nobody looked.
    b.body.kill();
    let mut second = self::server();
    second.listen(&path).unwrap();
    assert_eq!(second.take_over().unwrap(), 0);
    assert_eq!(second.manager().live(), 0);
    drop(second);
    assert_eq!(files(), 0);
}
