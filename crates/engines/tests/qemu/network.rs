//! What a real guest reaches, on a host and an internet that are network namespaces of this test.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    process::{Child, Command, Stdio},
};

use sandhaus_engines::net::NetworkConfig;
use sandhaus_sandbox::{
    engine::{Change, Engine, MachineSpec},
    types::NetworkPolicy,
};

use crate::support::{Host, possible, sh};

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// What the server of the internet serves, many times what fits into one packet.
const CONTENT_BYTES: usize = 4 << 20;

/// A network namespace, as long as the process that holds it.
struct Space(Child);

impl Space {
    fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is installed");
        // Once it answers, it is where it is to be.
        holder.stdin.as_mut().expect("piped").write_all(b"there\n").expect("it reads");
        let answer = holder.stdout.as_mut().expect("piped");
        BufReader::new(answer).read_line(&mut String::new()).expect("it answers");
        let space = Self(holder);
        space.ip(&["link set lo up"]);
        space
    }

    fn file(&self) -> fs_err::File {
        fs_err::File::open(format!("/proc/{}/ns/net", self.0.id())).expect("it lives")
    }

    fn enter(&self) {
        rustix::thread::move_into_link_name_space(self.file().as_fd(), None).expect("root may");
    }

    fn ip(&self, commands: &[&str]) {
        for command in commands {
            let mut inside = Command::new("nsenter");
            inside.args(["--target", &self.0.id().to_string(), "--net", "ip"]).args(command.split(' '));
            assert!(inside.status().expect("nsenter is installed").success(), "ip {command}");
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host, which the calling thread moves to, and an internet.
fn on_a_host() -> (Space, Space) {
    let (host, internet) = (Space::new(), Space::new());
    let file = internet.file();
    let there = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    host.ip(&[
        &format!("link add up0 type veth peer name in0 netns {there}"),
        "addr add 203.0.113.2/24 dev up0",
        "link set up0 up",
        "route add default via 203.0.113.1",
    ]);
    internet.ip(&[
        "addr add 203.0.113.1/24 dev in0",
        "link set in0 up",
        "addr add 198.51.100.10/32 dev lo",
        "addr add 9.9.9.9/32 dev lo",
        "addr add 169.254.169.254/32 dev lo",
    ]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            internet.enter();
            serve(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 80));
            answer_questions();
        });
    });
    host.enter();
    serve(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 80));
    (host, internet)
}

/// Tells whoever asks where they come from, in a line, and sends much content after it.
fn serve(address: SocketAddr) {
    let listener = TcpListener::bind(address).expect("nobody else is there");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || drop(answer(stream)));
        }
    });
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let peer = stream.peer_addr()?.ip();
    let mut asked = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while asked.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = format!("{peer}\n{}", "x".repeat(CONTENT_BYTES));
    write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A name server for which every name is [`SERVER`].
fn answer_questions() {
    const HEADER_BYTES: usize = 12;
    let socket = UdpSocket::bind((RESOLVER, 53)).expect("nobody else is there");
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((bytes, from)) = socket.recv_from(&mut question) {
            let name = question[HEADER_BYTES..bytes].iter().position(|byte| *byte == 0).expect("a name ends");
            let end = HEADER_BYTES + name + 5;
            let plain = question[end - 4..end - 2] == [0, 1];
            let mut answer = question[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(plain), 0, 0, 0, 0]);
            answer.extend(&question[HEADER_BYTES..end]);
            if plain {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(SERVER.octets());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("it is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_guest_reaches_what_its_policy_says_and_loses_it_at_once() {
    let test = "a_guest_reaches_what_its_policy_says_and_loses_it_at_once";
    // Where the internet is the test's own, nothing could be fetched to make a guest of.
    if !possible(test) {
        return;
    }
    let (_host, _internet) = on_a_host();
    let network = NetworkConfig { resolvers: vec![RESOLVER.into()], ..NetworkConfig::default() };
    let Some(mut host) = Host::with_network(test, network).await else { return };
    let (bridged, alone) = (MachineSpec { network: NetworkPolicy::Bridge, ..host.spec() }, host.spec());
    let (inside, apart) = tokio::join!(host.up(&bridged), host.up(&alone));

    let fetch = |address: Ipv4Addr| {
        format!(
            "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 20 {address} 80 2>&1 | head -n 4 | tail -n 1 | head -c 15"
        )
    };
    let reached = format!("{HOST}\n");
    let answer = sh(&inside, &fetch(SERVER)).await;
    assert!(answer.starts_with(&reached), "with the host's address: {answer}");
    let whole =
        sh(&inside, &fetch(SERVER).replace("head -n 4 | tail -n 1 | head -c 15", "tail -n 1 | wc -c")).await;
    assert_eq!(whole.trim(), CONTENT_BYTES.to_string(), "all of it comes");
    let resolved = sh(&inside, "nslookup some.name.test || true").await;
    assert!(resolved.contains(&SERVER.to_string()), "{resolved}");
    for address in [HOST, METADATA, Ipv4Addr::new(192, 168, 0, 1), Ipv4Addr::new(10, 55, 0, 1)] {
        let answer = sh(&inside, &fetch(address)).await;
        assert!(answer.starts_with("nc: "), "{address}: {answer}");
    }

    // The one without a network hears so at once.
    for address in [SERVER, HOST, METADATA] {
        let answer = sh(&apart, &fetch(address)).await;
        assert!(answer.starts_with("nc: "), "{address}: {answer}");
    }

    // Each namespace can be found by its name.
    for spec in [&bridged, &alone] {
        let name = format!("ns-{}", &spec.id.as_str()[..8]);
        assert!(said("ip", &["netns", "exec", &name, "ip", "link"]).contains("tap0"), "{name}");
    }

    // What was granted is taken away, also from a connection that is there, and given back; a server that comes later
    // finds it so.
    let change = async |host: &Host, policy: NetworkPolicy| {
        host.engine.update(&bridged.id, Change::Network(policy)).await.expect("changed");
    };
    change(&host, NetworkPolicy::None).await;
    assert!(sh(&inside, &fetch(SERVER)).await.starts_with("nc: "));
    // Each keeps the engine that it was made with.
    drop((inside, apart));
    host.reopen().await;
    let fetched = async |host: &Host| sh(&host.toolbox(&bridged.id), &fetch(SERVER)).await;
    assert!(fetched(&host).await.starts_with("nc: "));
    change(&host, NetworkPolicy::Allow(vec!["198.51.100.0/24".parse().expect("a network")])).await;
    assert!(fetched(&host).await.starts_with(&reached));
    host.reopen().await;
    assert!(fetched(&host).await.starts_with(&reached));
    host.end().await;
    assert_eq!(said("nft", &["list", "ruleset"]), "");
    for spec in [&bridged, &alone] {
        assert!(!said("ip", &["netns", "list"]).contains(&spec.id.as_str()[..8]));
    }
}
