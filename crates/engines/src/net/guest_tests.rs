//! Networks of guests on the real kernel: on hosts and internets that are namespaces, with guests whose packets another
//! kernel's network stack makes. Needs root.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, mpsc},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags},
    pipe::PipeFlags,
    thread::LinkNameSpaceType,
};
use sandhaus_sandbox::types::NetworkPolicy;

use super::{
    Guest, NetworkConfig, Networks, Tenants,
    guard::{GATEWAY, GUEST},
    inside, tap,
};

/// How long something may take that is to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a connection may take that nobody answers.
const SILENCE: Duration = Duration::from_secs(2);

const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 7);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Tells whoever connects where they come from, then says again what it hears.
const TALK_PORT: u16 = 80;

/// Keeps what it is sent.
const RECORD_PORT: u16 = 9;

/// A network namespace.
struct Space(OwnedFd);

impl Space {
    fn new() -> Self {
        // The namespace is made by a thread that may end there.
        let made = std::thread::spawn(|| {
            let home = inside::own().expect("it has one");
            inside::make(&home, Tenants::Processes).expect("made").0.namespace
        });
        Self(made.join().expect("made"))
    }

    fn enter(&self) {
        rustix::thread::move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("root may enter");
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn ip(&self, commands: &[&str]) {
        self.within(|| commands.iter().for_each(|command| drop(run(&format!("ip {command}")))));
    }
}

#[track_caller]
fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("installed");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn settles(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what} does not happen");
        std::thread::yield_now();
    }
}

/// A host with an uplink, and an internet.
struct World {
    host: Space,
    internet: Space,
    heard: mpsc::Receiver<String>,
    scratch: tempfile::TempDir,
    instance: String,
}

impl World {
    fn new() -> Self {
        let (host, internet) = (Space::new(), Space::new());
        let there = format!("/proc/{}/fd/{}", std::process::id(), internet.0.as_raw_fd());
        host.ip(&[
            &format!("link add up0 type veth peer name in0 netns {there}"),
            "addr add 203.0.113.2/24 dev up0",
            "link set up0 up",
            "route add default via 203.0.113.1",
        ]);
        internet.ip(&[
            "addr add 203.0.113.1/24 dev in0",
            "link set in0 up",
            // As a sly neighbour would.
            "route add 10.55.0.0/16 via 203.0.113.2",
            "addr add 198.51.100.10/32 dev lo",
            "addr add 9.9.9.9/32 dev lo",
            "addr add 192.168.77.7/32 dev lo",
            "addr add 169.254.169.254/32 dev lo",
        ]);
        let (sender, heard) = mpsc::channel();
        internet.within(|| {
            listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), TALK_PORT));
            listen(SocketAddr::new(RESOLVER.into(), 53));
            let socket = UdpSocket::bind((RESOLVER, 53)).expect("bound");
            std::thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                    let answer = format!("{} {}", from.ip(), String::from_utf8_lossy(&buffer[..bytes]));
                    let _ = socket.send_to(answer.as_bytes(), from);
                }
            });
            let socket = UdpSocket::bind(("0.0.0.0", RECORD_PORT)).expect("bound");
            std::thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
                    if sender.send(format!("{} {text}", from.ip())).is_err() {
                        return;
                    }
                }
            });
        });
        let mut random = [0; 6];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).expect("random");
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let scratch = tempfile::tempdir().expect("a directory");
        // As the engine of virtual machines calls itself.
        Self { host, internet, heard, scratch, instance: format!("v{}", &digits[1..]) }
    }

    fn config() -> NetworkConfig {
        NetworkConfig { resolvers: vec![RESOLVER.into()], ..NetworkConfig::default() }
    }

    fn open(&self) -> Networks {
        let machines: Vec<PathBuf> = fs_err::read_dir(self.scratch.path())
            .expect("readable")
            .flatten()
            .filter(|entry| entry.file_type().expect("known").is_dir())
            .map(|entry| entry.path())
            .collect();
        let (instance, memory) = (&self.instance, self.scratch.path().join("forwarding"));
        self.host
            .within(|| Networks::open_for_guests(instance, Self::config(), memory, machines).expect("opened"))
    }

    fn guest(&self, networks: &Networks, machine: &str, policy: &NetworkPolicy) -> Playing {
        let directory = self.scratch.path().join(machine);
        fs_err::create_dir(&directory).expect("made");
        let guest = networks.guest(machine, policy, &directory).unwrap_or_else(|error| panic!("{error:?}"));
        Playing::new(guest, &self.instance, machine.to_owned(), directory)
    }

    fn rules(&self) -> String {
        self.host.within(|| run("nft list ruleset"))
    }

    fn links(&self) -> BTreeSet<String> {
        let text = self.host.within(|| run("ip -o link"));
        let names = text.lines().filter_map(|line| line.split([':', '@']).nth(1));
        names.map(|name| name.trim().to_owned()).collect()
    }

    /// Nothing of the instance is left on the host.
    fn assert_empty(&self) {
        settles("the end of all interfaces", || self.links().len() == 2);
        assert_eq!(self.rules(), "");
        let forwards = self.host.within(|| {
            fs_err::read_to_string("/proc/thread-self/root/proc/sys/net/ipv4/conf/up0/forwarding")
                .expect("up0")
        });
        assert_eq!(forwards.trim(), "0");
    }

    /// Whatever was heard until `text`, which must come.
    fn heard_until(&self, text: &str) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            let one = self.heard.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{text} after {all:?}"));
            all.push(one);
            if all.last().is_some_and(|one| one == text) {
                return all;
            }
        }
    }
}

fn listen(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let peer = stream.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
                let _ = stream.write_all(format!("{peer}\n").as_bytes());
                let mut buffer = [0; 2048];
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..bytes]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn line(stream: &mut TcpStream) -> io::Result<String> {
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        text.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Connects and gives what the other side sees as the address.
fn connect(address: Ipv4Addr, port: u16) -> io::Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), SILENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let seen = line(&mut stream)?;
    Ok((stream, seen))
}

/// A guest: a network namespace with a tap of its own, whose packets are carried to and from the tap under test.
struct Playing {
    guest: Guest,
    machine: String,
    directory: PathBuf,
    space: Space,
    wire: Option<Wire>,
    /// The guest's own end, kept while it is moved.
    own: Arc<OwnedFd>,
    _named: Named,
}

/// Has the name of a namespace go also where a test fails.
struct Named {
    instance: String,
    machine: String,
    directory: PathBuf,
}

impl Drop for Named {
    fn drop(&mut self) {
        let Some(record) = super::record::read(&self.directory) else { return };
        let namespace = record.split(' ').next().and_then(|word| word.parse().ok());
        let _ = super::name::take_back(&self.instance, &self.machine, namespace.unwrap_or_default());
    }
}

impl Playing {
    fn new(guest: Guest, instance: &str, machine: String, directory: PathBuf) -> Self {
        let _named =
            Named { instance: instance.to_owned(), machine: machine.clone(), directory: directory.clone() };
        let space = Space::new();
        let own = Arc::new(space.within(|| tap::make("vm0").expect("a tap")));
        space.ip(&[
            "link set vm0 address 02:53:48:00:00:02",
            "addr add 192.168.0.2/24 dev vm0",
            "link set vm0 up",
            "route add default via 192.168.0.1",
        ]);
        let wire = Some(Wire::new(&own, &guest.tap));
        Self { guest, machine, directory, space, wire, own, _named }
    }

    /// The name of the namespace under test.
    fn name(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        let own = rustix::fs::fstat(&self.guest.namespace).expect("it is open").st_ino;
        let named = |name: &String| {
            fs_err::metadata(Path::new("/run/netns").join(name)).is_ok_and(|found| found.ino() == own)
        };
        entries("/run/netns").into_iter().find(named)
    }

    /// Plugs the guest, as it is, into another network: as a machine that is restored elsewhere.
    fn move_to(&mut self, other: &mut Self) {
        drop((self.wire.take(), other.wire.take()));
        self.wire = Some(Wire::new(&self.own, &other.guest.tap));
    }

    fn connect(&self, address: Ipv4Addr, port: u16) -> io::Result<(TcpStream, String)> {
        self.space.within(|| connect(address, port))
    }

    #[track_caller]
    fn assert_reached(&self, address: Ipv4Addr) {
        let (_, seen) = self.connect(address, TALK_PORT).unwrap_or_else(|error| panic!("{address}: {error}"));
        assert_eq!(seen, HOST.to_string(), "with the host's address");
    }

    #[track_caller]
    fn assert_out_of_reach(&self, address: Ipv4Addr, port: u16) {
        let reached = self.connect(address, port);
        assert!(reached.is_err(), "{address}:{port}: {reached:?}");
    }

    /// Within the namespace under test, as whoever runs the guest.
    fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = Space(self.guest.namespace.try_clone().expect("another descriptor"));
        space.within(work)
    }

    fn address(&self) -> Ipv4Addr {
        let text = fs_err::read_link(self.directory.join("network")).expect("a record");
        let text = text.to_str().expect("plain text");
        text.split(' ').nth(2).and_then(|word| word.parse().ok()).expect("an address")
    }

    /// The end of the machine.
    fn end(self, networks: &Networks) {
        let Self { guest, machine, directory, .. } = self;
        drop(guest);
        networks.release_guest(&machine, &directory);
        fs_err::remove_dir_all(directory).expect("removed");
    }
}

/// Carries packets between two taps while it is there.
struct Wire {
    life: Option<OwnedFd>,
    carriers: Vec<std::thread::JoinHandle<()>>,
}

impl Wire {
    fn new(one: &OwnedFd, other: &OwnedFd) -> Self {
        let (end, life) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        let pairs = [(one, other), (other, one)];
        let carriers = pairs.map(|(from, to)| {
            let copy = |of: &OwnedFd| of.try_clone().expect("another descriptor");
            let (from, to, end) = (copy(from), copy(to), copy(&end));
            std::thread::spawn(move || carry(&from, &to, &end))
        });
        Self { life: Some(life), carriers: carriers.into() }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.life.take());
        self.carriers.drain(..).for_each(|carrier| carrier.join().expect("it only carries"));
    }
}

fn carry(from: &OwnedFd, to: &OwnedFd, end: &OwnedFd) {
    let mut packet = vec![0; 70_000];
    loop {
        let mut polled = [PollFd::new(from, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
        let _ = rustix::event::poll(&mut polled, None);
        if !polled[1].revents().is_empty() {
            return;
        }
        if let Ok(bytes) = rustix::io::read(from, &mut packet[..]) {
            // One that does not fit is lost, as on every wire.
            let _ = rustix::io::write(to, &packet[..bytes]);
        }
    }
}

fn allow(network: &str) -> NetworkPolicy {
    NetworkPolicy::Allow(vec![network.parse().expect("a network")])
}

/// A name whose first characters nobody else has.
fn machine() -> String {
    format!("{}.1", sandhaus_sandbox::types::SandboxId::random())
}

#[test]
fn a_guest_reaches_the_internet_through_the_host_and_nothing_else() {
    let world = World::new();
    let networks = world.open();
    let one = world.guest(&networks, &machine(), &NetworkPolicy::Bridge);
    let two = world.guest(&networks, &machine(), &NetworkPolicy::Bridge);
    one.assert_reached(SERVER);
    two.assert_reached(SERVER);

    // Names are asked of the gateway, by either protocol.
    one.space.within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
        socket.connect((GATEWAY, 53)).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket.send(b"a question").expect("sent");
        let mut buffer = [0; 512];
        let bytes = socket.recv(&mut buffer).expect("answered");
        assert_eq!(String::from_utf8_lossy(&buffer[..bytes]), format!("{HOST} a question"));
    });
    assert_eq!(one.connect(GATEWAY, 53).expect("reached").1, HOST.to_string());

    // The host, others, what is never reached, private networks.
    world.host.within(|| listen((Ipv4Addr::UNSPECIFIED, 8099).into()));
    assert!(world.host.within(|| connect(HOST, 8099)).is_ok(), "the host's listener works");
    for address in [HOST, Ipv4Addr::new(10, 55, 0, 1), one.address()] {
        one.assert_out_of_reach(address, 8099);
    }
    two.space.within(|| listen((Ipv4Addr::UNSPECIFIED, 8099).into()));
    one.assert_out_of_reach(two.address(), 8099);
    one.assert_out_of_reach(METADATA, TALK_PORT);
    one.assert_out_of_reach(NEIGHBOUR, TALK_PORT);

    // Whoever else listens in its namespace.
    one.outside(|| listen((Ipv4Addr::UNSPECIFIED, 9000).into()));
    assert!(one.outside(|| connect(GATEWAY, 9000)).is_ok(), "the listener works");
    for address in [GATEWAY, one.address(), Ipv4Addr::new(192, 168, 0, 255), Ipv4Addr::new(192, 0, 0, 53)] {
        one.assert_out_of_reach(address, 9000);
    }
    one.assert_out_of_reach(GATEWAY, TALK_PORT);
    // Nobody comes in by the other side.
    let address = one.address();
    one.space.within(|| listen((Ipv4Addr::UNSPECIFIED, 8099).into()));
    for space in [&world.host, &world.internet] {
        for port in [8099, 9000] {
            assert!(space.within(|| connect(address, port)).is_err());
        }
    }

    one.end(&networks);
    two.end(&networks);
    networks.close().expect("closed");
    world.assert_empty();
}

#[test]
fn a_guest_speaks_as_itself_only() {
    let world = World::new();
    let networks = world.open();
    let guest = world.guest(&networks, &machine(), &NetworkPolicy::Bridge);
    guest.space.ip(&["addr add 192.168.0.3/24 dev vm0", "addr add 203.0.113.77/32 dev vm0"]);
    let speak = |from: &str, text: &str| {
        guest.space.within(|| {
            let socket = UdpSocket::bind((from, 0)).expect("bound");
            socket.send_to(text.as_bytes(), (SERVER, RECORD_PORT)).expect("sent");
        });
    };
    speak("192.168.0.3", "a lie");
    speak("203.0.113.77", "a lie");
    guest.space.ip(&[
        "link set vm0 address 02:53:48:00:00:03",
        // It need not ask first, so what it says is on the wire at once.
        "neigh replace 192.168.0.1 lladdr 02:53:48:00:00:01 dev vm0 nud permanent",
    ]);
    speak("192.168.0.2", "from another device");
    guest.space.ip(&["link set vm0 address 02:53:48:00:00:02"]);
    speak("192.168.0.2", "the truth");
    assert_eq!(world.heard_until(&format!("{HOST} the truth")), [format!("{HOST} the truth")]);

    // Nor does anybody remember whom it pretended to be.
    guest.space.ip(&["neigh flush dev vm0"]);
    speak("192.168.0.3", "a lie");
    guest.space.ip(&["neigh flush dev vm0"]);
    speak("192.168.0.2", "again");
    assert_eq!(world.heard_until(&format!("{HOST} again")), [format!("{HOST} again")]);
    let neighbours = guest.outside(|| run("ip neigh show dev tap0"));
    assert_eq!(neighbours.trim(), "192.168.0.2 lladdr 02:53:48:00:00:02 PERMANENT");

    // IPv6 is no way around: there is none behind the tap, and none comes in by it.
    let addresses = guest.outside(|| fs_err::read_to_string("/proc/thread-self/net/if_inet6"));
    assert_eq!(addresses.expect("readable").lines().filter(|line| !line.ends_with(" lo")).count(), 0);
    guest.outside(|| {
        for interface in ["all", "tap0", "eth0"] {
            let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            fs_err::write(path, "0").expect("a host without the setting");
        }
        drop(run("ip -6 addr add fd00::1/64 dev tap0 nodad"));
    });
    let namespace = &guest;
    namespace.outside(|| {
        let listener = TcpListener::bind("[fd00::1]:7000").expect("bound");
        std::thread::spawn(move || drop(listener.accept()));
    });
    guest.space.within(|| {
        fs_err::write("/proc/sys/net/ipv6/conf/vm0/disable_ipv6", "0").expect("set");
        drop(run("ip -6 addr add fd00::2/64 dev vm0 nodad"));
        drop(run("ip -6 neigh add fd00::1 lladdr 02:53:48:00:00:01 dev vm0"));
        let address = "[fd00::1]:7000".parse().expect("an address");
        assert!(TcpStream::connect_timeout(&address, SILENCE).is_err());
    });
    guest.end(&networks);
    networks.close().expect("closed");
    world.assert_empty();
}

#[test]
fn the_host_speaks_with_a_guest_that_reaches_nothing() {
    let world = World::new();
    let networks = world.open();
    let guest = world.guest(&networks, &machine(), &NetworkPolicy::None);
    guest.space.within(|| listen((Ipv4Addr::UNSPECIFIED, 2280).into()));
    assert_eq!(guest.outside(|| connect(GUEST, 2280)).expect("reached").1, GATEWAY.to_string());
    for address in [SERVER, HOST, METADATA, Ipv4Addr::new(10, 55, 0, 1)] {
        guest.assert_out_of_reach(address, TALK_PORT);
    }
    guest.outside(|| listen((Ipv4Addr::UNSPECIFIED, 9000).into()));
    for port in [53, 80, 9000] {
        guest.assert_out_of_reach(GATEWAY, port);
    }
    assert_eq!(guest.outside(|| run("ip -o link")).lines().count(), 2, "loopback and the tap");
    networks.change_guest(&NetworkPolicy::None, &guest.directory).expect("it is so already");
    networks.change_guest(&NetworkPolicy::Bridge, &guest.directory).expect_err("there is no pair");
    assert_eq!(world.rules(), "", "nothing was made that nobody needs");
    guest.end(&networks);
    networks.close().expect("closed");
    world.assert_empty();
}

#[test]
fn what_a_guest_may_reach_changes_and_outlives_the_server() {
    let world = World::new();
    let networks = world.open();
    let guest = world.guest(&networks, &machine(), &NetworkPolicy::Bridge);
    let gone = world.guest(&networks, &machine(), &NetworkPolicy::Bridge);
    let name = gone.name().expect("a name");
    let (mut stream, _) = guest.connect(SERVER, TALK_PORT).expect("reached");
    let change = |networks: &Networks, policy: &NetworkPolicy| {
        networks.change_guest(policy, &guest.directory).unwrap_or_else(|error| panic!("{error:?}"));
    };
    change(&networks, &allow("192.0.2.0/24"));
    guest.assert_out_of_reach(SERVER, TALK_PORT);
    change(&networks, &allow("198.51.100.0/24"));
    guest.assert_reached(SERVER);
    networks.change_guest(&NetworkPolicy::Host, &guest.directory).expect_err("never");

    // The server dies; a machine does so meanwhile, and a reload of the host's own rules takes ours along.
    drop(networks);
    let Playing { guest: ended, machine: ended_machine, directory: ended_directory, .. } = gone;
    drop(ended);
    assert!(Path::new("/run/netns").join(&name).exists());
    world.host.within(|| run("nft flush ruleset"));
    let networks = world.open();
    networks.release_guest(&ended_machine, &ended_directory);
    fs_err::remove_dir_all(ended_directory).expect("removed");
    assert!(!Path::new("/run/netns").join(&name).exists());
    settles("the filters", || world.rules().contains("198.51.100.0/24"));
    stream.write_all(b"again\n").expect("written");
    assert_eq!(line(&mut stream).expect("answered"), "again", "the connection goes on");
    guest.assert_reached(SERVER);
    assert_eq!(
        guest.connect(GATEWAY, 53).expect("the owner's name servers serve every list").1,
        HOST.to_string()
    );
    change(&networks, &NetworkPolicy::None);
    guest.assert_out_of_reach(SERVER, TALK_PORT);
    change(&networks, &NetworkPolicy::Bridge);
    guest.assert_reached(SERVER);

    guest.end(&networks);
    networks.close().expect("closed");
    world.assert_empty();
}

#[test]
fn connections_of_a_copied_guest_die_at_once() {
    let world = World::new();
    let networks = world.open();
    let mut guest = world.guest(&networks, &machine(), &NetworkPolicy::Bridge);
    let mut elsewhere = world.guest(&networks, &machine(), &NetworkPolicy::Bridge);
    let (mut stream, _) = guest.connect(SERVER, TALK_PORT).expect("reached");
    guest.space.within(|| listen((Ipv4Addr::UNSPECIFIED, 2280).into()));
    let (mut from_host, _) = guest.outside(|| connect(GUEST, 2280)).expect("reached");
    guest.move_to(&mut elsewhere);
    stream.write_all(b"is anybody there\n").expect("written");
    let error = line(&mut stream).expect_err("nobody is");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    // New ones work, in both directions.
    guest.assert_reached(SERVER);
    assert_eq!(elsewhere.outside(|| connect(GUEST, 2280)).expect("reached").1, GATEWAY.to_string());
    guest.move_to(&mut elsewhere);
    from_host.set_read_timeout(Some(SILENCE)).expect("set");
    from_host.write_all(b"nobody\n").expect("written");
    assert!(line(&mut from_host).is_err(), "it was cut off");
    guest.end(&networks);
    elsewhere.end(&networks);
    networks.close().expect("closed");
    world.assert_empty();
}

#[test]
fn names_are_short_where_nobody_has_them_and_go_with_their_machine() {
    let world = World::new();
    let networks = world.open();
    let first = machine();
    let second = format!("{}-fff.1", &first[..8]);
    let short = format!("ns-{}", &first[..8]);
    let one = world.guest(&networks, &first, &NetworkPolicy::None);
    let two = world.guest(&networks, &second, &NetworkPolicy::None);
    assert_eq!(one.name().as_deref(), Some(short.as_str()));
    let long = two.name().expect("a name");
    assert_ne!(long, short);
    let listed = run("ip netns list");
    for name in [&short, &long] {
        assert!(listed.contains(name.as_str()), "{listed}");
    }
    assert!(run(&format!("ip netns exec {short} ip -o link")).contains("tap0"));
    // The second goes, then the first; each takes its own.
    two.end(&networks);
    let at = |name: &str| Path::new("/run/netns").join(name);
    assert!(at(&short).exists() && !at(&long).exists());
    one.end(&networks);
    assert!(!at(&short).exists());

    // Somebody else's stays: whether a file or a namespace.
    fs_err::write(at(&short), "somebody's").expect("written");
    let three = world.guest(&networks, &first, &NetworkPolicy::None);
    assert_ne!(three.name().as_deref(), Some(short.as_str()));
    three.end(&networks);
    assert_eq!(fs_err::read_to_string(at(&short)).expect("there"), "somebody's");
    fs_err::remove_file(at(&short)).expect("removed");
    run(&format!("ip netns add {short}"));
    let four = world.guest(&networks, &first, &NetworkPolicy::None);
    let other = four.name().expect("a name");
    assert_ne!(other, short);
    four.end(&networks);
    assert!(at(&short).exists() && !at(&other).exists());
    run(&format!("ip netns delete {short}"));
    networks.close().expect("closed");
}

/// A guest's network from beginning to end. The sweep below runs this test in other processes, which die on the way.
#[test]
fn a_guests_network_is_made_changed_and_released() {
    let instance = std::env::var(SWEPT_INSTANCE);
    let world = World::new();
    match &instance {
        Err(_) => {
            live(&world.host, &world.instance, world.scratch.path());
            world.assert_empty();
        }
        Ok(instance) => {
            let scratch = PathBuf::from(std::env::var_os(SWEPT_DIRECTORY).expect("it comes with the other"));
            let home = inside::own().expect("it has one");
            live(&Space(home), instance, &scratch);
        }
    }
}

fn live(host: &Space, instance: &str, scratch: &Path) {
    let memory = scratch.join("forwarding");
    let networks = host
        .within(|| Networks::open_for_guests(instance, World::config(), memory, Vec::new()).expect("opened"));
    for (generation, policy) in [NetworkPolicy::None, NetworkPolicy::Bridge].iter().enumerate() {
        let name = format!("{}-5ee.{generation}", swept_id(instance));
        let directory = scratch.join(&name);
        fs_err::create_dir(&directory).expect("made");
        drop(networks.guest(&name, policy, &directory).expect("made"));
        networks.change_guest(&NetworkPolicy::None, &directory).expect("changed");
        networks.release_guest(&name, &directory);
        fs_err::remove_dir(&directory).expect_err("its record is in it");
        fs_err::remove_dir_all(&directory).expect("removed");
    }
    networks.close().expect("closed");
}

const SWEPT_INSTANCE: &str = "SANDHAUS_TEST_INSTANCE";
const SWEPT_DIRECTORY: &str = "SANDHAUS_TEST_DIRECTORY";

/// What the sandbox of a sweep is called, as its namespace is.
fn swept_id(instance: &str) -> &str {
    &instance[1..9]
}

#[test]
fn wherever_a_server_dies_the_next_leaves_nothing() {
    let world = World::new();
    let points: Vec<String> = super::fault_points().chain(super::guest_fault_points()).collect();
    for point in &points {
        let mut command = Command::new(std::env::current_exe().expect("it runs"));
        command
            .args(["--exact", "net::guest_tests::a_guests_network_is_made_changed_and_released"])
            .env("SANDHAUS_FAULT", format!("{point}=self"))
            .env(SWEPT_INSTANCE, &world.instance)
            .env(SWEPT_DIRECTORY, world.scratch.path());
        let output = world.host.within(move || command.output()).expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), None, "{point} is passed, and kills: {said}");
        let networks = world.open();
        for entry in fs_err::read_dir(world.scratch.path()).expect("readable").flatten() {
            if entry.file_type().expect("known").is_dir() {
                networks.release_guest(&entry.file_name().to_string_lossy(), &entry.path());
                fs_err::remove_dir_all(entry.path()).expect("removed");
            }
        }
        networks.close().expect("closed");
        world.assert_empty();
        let names = entries("/run/netns");
        assert!(!names.iter().any(|name| name.contains(swept_id(&world.instance))), "{point}: {names:?}");
    }
}

fn entries(directory: &str) -> Vec<String> {
    let entries = fs_err::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn instances_that_end_at_the_same_time_leave_no_forwarding() {
    let world = World::new();
    let ids: Vec<String> = (0..4).map(|number| format!("{number}{}", &world.instance[1..])).collect();
    let scratch = world.scratch.path();
    for _ in 0..8 {
        let all: Vec<Networks> = ids
            .iter()
            .map(|id| {
                let memory = scratch.join(format!("forwarding-of-{id}"));
                let open = || Networks::open(id, World::config(), memory, Vec::new()).expect("opened");
                let networks = world.host.within(open);
                let connected = networks.connect("a machine", super::Reach::Internet).expect("connected");
                networks.release(&connected.attachment.interface);
                networks
            })
            .collect();
        std::thread::scope(|scope| {
            all.iter().for_each(|networks| drop(scope.spawn(|| networks.close().expect("closed"))));
        });
        world.assert_empty();
    }
}

#[test]
fn forwarding_that_another_instance_turns_off_is_turned_on_again() {
    let world = World::new();
    let networks = world.open();
    let guest = world.guest(&networks, &machine(), &NetworkPolicy::Bridge);
    guest.assert_reached(SERVER);
    world.host.within(|| {
        fs_err::write("/proc/thread-self/root/proc/sys/net/ipv4/conf/up0/forwarding", "0").expect("set");
    });
    // What was seen of the host counts for a second.
    let mut more = Vec::new();
    settles("forwarding", || {
        more.extend((more.len() < 64).then(|| world.guest(&networks, &machine(), &NetworkPolicy::Bridge)));
        guest.connect(SERVER, TALK_PORT).is_ok()
    });
    more.into_iter().chain([guest]).for_each(|guest| guest.end(&networks));
    networks.close().expect("closed");
    world.assert_empty();
}

#[test]
fn two_engines_on_one_host_leave_each_other_alone() {
    let world = World::new();
    let guests = world.open();
    let guest = world.guest(&guests, &machine(), &NetworkPolicy::Bridge);
    let other = format!("0{}", &world.instance[1..]);
    let memory = world.scratch.path().join("forwarding-of-processes");
    let open = || {
        world
            .host
            .within(|| Networks::open(&other, World::config(), memory.clone(), Vec::new()))
            .expect("opened")
    };
    let processes = open();
    let connected = processes.connect("a machine", super::Reach::Internet).expect("connected");
    guest.assert_reached(SERVER);
    // Each looks for what is left over, and finds nothing of the other's.
    drop(processes);
    let processes = open();
    processes.close().expect("closed");
    drop(connected);
    guest.assert_reached(SERVER);
    drop(guests);
    let guests = world.open();
    guest.assert_reached(SERVER);
    let connected = {
        let processes = open();
        let connected = processes.connect("a machine", super::Reach::Internet).expect("connected");
        guest.end(&guests);
        guests.close().expect("closed");
        let space = Space(connected.namespace.namespace.try_clone().expect("another"));
        let seen = space.within(|| connect(SERVER, TALK_PORT)).expect("the host still forwards").1;
        assert_eq!(seen, HOST.to_string());
        drop(space);
        processes.release(&connected.attachment.interface);
        processes.close().expect("closed");
        connected
    };
    drop(connected);
    world.assert_empty();
}
