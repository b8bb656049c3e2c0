//! Networks for tests: a host and an internet of their own, far from the machine's. The binary under test runs in the
//! one, listeners of the test in the other; nothing here touches an interface, a route or a rule of the machine.
//!
//! ```text
//!  the host (the calling thread, and whatever it starts)      the internet
//!    lo 127.0.0.1   up0 203.0.113.2, 2001:db8:1::2 ──────────── in0 203.0.113.1, 2001:db8:1::1
//!                                                               lo  all that is listened on
//! ```

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The host's own address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// A server of the internet.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// A name server of the internet; it knows every name as [`SERVER`].
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// A machine of the local network.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 7);

/// Where clouds keep their secrets.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// A server of the internet by IPv6.
pub const SERVER_IPV6: &str = "2001:db8:2::10";

/// Tells whoever connects where they come from.
pub const WHO_PORT: u16 = 80;

/// Says again what it hears.
pub const ECHO_PORT: u16 = 7;

/// Keeps what it is sent.
pub const RECORD_PORT: u16 = 9;

/// A network namespace.
#[derive(Debug)]
pub struct Space(OwnedFd);

impl Space {
    /// An empty one, with loopback up.
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start unshare");
        // Once it answers, it is where it is to be.
        let mut lines = BufReader::new(holder.stdout.take().expect("piped"));
        let mut stdin = holder.stdin.take().expect("piped");
        stdin.write_all(b"there\n").expect("it reads");
        lines.read_line(&mut String::new()).expect("it answers");
        let space = Self::of(holder.id());
        drop(stdin);
        holder.wait().expect("it ends with its input");
        space.within(|| run("ip", &["link", "set", "lo", "up"]));
        space
    }

    /// That of a process.
    pub fn of(pid: u32) -> Self {
        Self(fs_err::File::open(format!("/proc/{pid}/ns/net")).expect("a process").into_parts().0.into())
    }

    /// Moves the calling thread there. What it starts from now on starts there.
    pub fn enter(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
    }

    /// Does something in there, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the program is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The internet of a test.
#[derive(Debug)]
pub struct Internet {
    space: Space,
    heard: Arc<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    datagrams: Mutex<Vec<String>>,
    more: Condvar,
}

/// Runs `body` on a host of its own that has an uplink to an internet of its own.
pub fn on_a_host(body: impl FnOnce(&Internet) + Send) {
    Space::new().within(|| {
        let internet = Internet::new();
        body(&internet);
    });
}

impl Internet {
    fn new() -> Self {
        let space = Space::new();
        let there = format!("/proc/{}/fd/{}", std::process::id(), {
            use std::os::fd::AsRawFd as _;
            space.0.as_raw_fd()
        });
        run("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "in0", "netns", &there]);
        for step in [
            "addr add 203.0.113.2/24 dev up0",
            "addr add 2001:db8:1::2/64 dev up0 nodad",
            "link set up0 up",
            "route add default via 203.0.113.1",
        ] {
            run("ip", &step.split(' ').collect::<Vec<_>>());
        }
        let heard = Arc::new(Heard::default());
        let ears = Arc::clone(&heard);
        space.within(move || {
            for step in [
                "addr add 203.0.113.1/24 dev in0",
                "addr add 2001:db8:1::1/64 dev in0 nodad",
                "link set in0 up",
                "addr add 2001:db8:2::10/128 dev lo nodad",
                // As a sly neighbour would.
                "route add 10.55.0.0/16 via 203.0.113.2",
            ] {
                run("ip", &step.split(' ').collect::<Vec<_>>());
            }
            for address in [SERVER, RESOLVER, NEIGHBOUR, METADATA] {
                run("ip", &["addr", "add", &format!("{address}/32"), "dev", "lo"]);
            }
            listen("[::]:80".parse().expect("an address"), tell_who);
            listen((Ipv4Addr::UNSPECIFIED, ECHO_PORT).into(), echo);
            answer_questions();
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, RECORD_PORT)).expect("bind");
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while let Ok((bytes, _)) = socket.recv_from(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
                    ears.datagrams.lock().expect("no reader panics").push(text);
                    ears.more.notify_all();
                }
            });
        });
        run("ip", &["-6", "route", "add", "default", "via", "2001:db8:1::1"]);
        Self { space, heard }
    }

    /// Its namespace.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Waits for a datagram at [`RECORD_PORT`] and gives all until then.
    pub fn heard_until(&self, text: &str) -> Vec<String> {
        let heard = self.heard.datagrams.lock().expect("no writer panics");
        let (heard, timeout) = self
            .heard
            .more
            .wait_timeout_while(heard, crate::PATIENCE, |heard| !heard.iter().any(|one| one == text))
            .expect("no writer panics");
        assert!(!timeout.timed_out(), "{text:?} did not come, but {heard:?}");
        heard.clone()
    }
}

/// Serves every connection on a thread of its own; all end with the test.
pub fn listen(address: SocketAddr, serve: fn(TcpStream)) {
    let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("bind {address}: {error}"));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
}

/// Tells whoever connects where they come from.
pub fn tell_who(mut stream: TcpStream) {
    let address = stream.peer_addr().map(|peer| peer.ip().to_canonical());
    let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    // They may be gone already.
    let _ = stream.write_all(format!("{address}\n").as_bytes());
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 2048];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..bytes]).is_err() {
            return;
        }
    }
}

/// A name server for which every name is [`SERVER`], and has no address by IPv6.
fn answer_questions() {
    let socket = UdpSocket::bind((RESOLVER, 53)).expect("bind");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&answer(&buffer[..bytes]), from);
        }
    });
}

fn answer(question: &[u8]) -> Vec<u8> {
    /// Header of a message.
    const HEADER_BYTES: usize = 12;
    /// An IPv4 address is asked for.
    const KIND_ADDRESS: [u8; 2] = [0, 1];
    let name = question[HEADER_BYTES..].iter().position(|byte| *byte == 0).expect("a name ends");
    let end = HEADER_BYTES + name + 5;
    let known = question[end - 4..end - 2] == KIND_ADDRESS;
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(known), 0, 0, 0, 0]);
    answer.extend(&question[HEADER_BYTES..end]);
    if known {
        // The name asked for, its address, for a minute.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(SERVER.octets());
    }
    answer
}
