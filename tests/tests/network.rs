//! Networks of sandboxes, on a host and an internet made for the test: what is reached, what is not, what stays.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};

use sandhaus_client::wire::SessionInfo;
use sandhaus_tests::{
    http::Http,
    network::{
        ECHO_PORT, HOST, Internet, METADATA, NEIGHBOUR, RECORD_PORT, RESOLVER, SERVER, SERVER_IPV6, Space,
        WHO_PORT, listen, on_a_host, run, tell_who,
    },
    process, runnable,
    server::{DataDir, Options, Server},
    session::Session,
    settles,
};
use serde_json::{Value, json};

/// A port of the host on which something listens at every address.
const HOST_PORT: u16 = 8099;

/// How long a connection may take that is to come to nothing because nobody answers.
const SILENCE: Duration = Duration::from_secs(2);

/// Creates at once.
const MANY: usize = 100;

/// What the tests' servers are told, beside `more`.
fn options(more: &str) -> Options {
    Options { env: Vec::new(), config: Some(format!("network:\n  resolvers: [{RESOLVER}]\n{more}")) }
}

/// Runs `body` with a server on a host of its own; nothing may be left behind.
fn with_network(name: &str, more: &str, body: impl FnOnce(&Server, &Internet) + Send) {
    if !runnable(name) {
        return;
    }
    on_a_host(|internet| {
        let dir = DataDir::new();
        let server = Server::start_with(&dir, &options(more));
        body(&server, internet);
        server.delete_all();
        let (status, log) = server.stop();
        assert!(status.success(), "{status}\n{log}");
        nothing_left(&dir);
    });
}

fn nothing_left(dir: &DataDir) {
    let left = dir.objects();
    assert!(left.is_empty(), "something is left: {left:#?}");
    assert_eq!(dir.network(), BTreeSet::new());
    assert_eq!(run("nft", &["list", "ruleset"]), "");
    let forwards = fs_err::read_to_string("/proc/thread-self/root/proc/sys/net/ipv4/conf/up0/forwarding");
    assert_eq!(forwards.expect("up0 is there").trim(), "0", "the host is no router any more");
}

fn bridged(http: &Http) -> Session {
    Session::create(http, &json!({"network": "bridge"}))
}

/// Connects from inside and gives what is said there; the error is what the shell says.
fn reach(session: &Session, address: impl Into<IpAddr>, port: u16) -> Result<String, String> {
    let address = address.into();
    let command = format!("timeout 20 bash -c 'exec 3<>/dev/tcp/{address}/{port} && cat <&3' 2>&1");
    let result = session.exec(&command);
    let text = result.output.trim_end().to_owned();
    if result.exit_code == 0 { Ok(text) } else { Err(text) }
}

#[track_caller]
fn assert_reached(session: &Session, address: Ipv4Addr) {
    assert_eq!(reach(session, address, WHO_PORT), Ok(HOST.to_string()), "with the host's address");
}

#[track_caller]
fn assert_out_of_reach(session: &Session, address: impl Into<IpAddr>, port: u16) {
    let address = address.into();
    let said = reach(session, address, port).expect_err("it cannot be reached");
    assert!(!said.is_empty(), "{address}: not even a refusal");
}

/// The address of a bridged session.
fn address(session: &Session) -> Ipv4Addr {
    let text = session.output(
        "python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); \
                               s.connect((\"198.51.100.10\", 9)); print(s.getsockname()[0])'",
    );
    text.parse().unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The network namespace of a session's first process.
fn space(id: &str) -> Space {
    let first = process::all().into_iter().find(|pid| {
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        cgroup.contains(id) && process::status(*pid, "NSpid").is_some_and(|list| list.ends_with("\t1"))
    });
    Space::of(first.expect("the session runs"))
}

/// Starts an HTTP server inside and waits until it listens.
fn serve_inside(session: &Session, address: &str, port: u16) {
    session.output(&format!(
        "echo inside-{port} > /workspace/{port}; (cd /workspace; exec python3 -m http.server --bind {address} {port} \
         >/dev/null 2>&1) & true"
    ));
    settles("the server inside", || {
        let probe = format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null");
        session.exec(&probe).exit_code == 0
    });
}

/// Asks an HTTP server for a file, and says what it answered; closes its own side first.
fn fetch(address: Ipv4Addr, port: u16, file: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), SILENCE)?;
    stream.set_read_timeout(Some(sandhaus_tests::PATIENCE))?;
    stream.write_all(format!("GET /{file} HTTP/1.0\r\n\r\n").as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn w13_bridged_sandboxes_reach_the_internet_and_nothing_of_the_host() {
    let name = "w13_bridged_sandboxes_reach_the_internet_and_nothing_of_the_host";
    with_network(name, "", |server, _| {
        listen(format!("[::]:{HOST_PORT}").parse().expect("an address"), tell_who);
        let one = bridged(&server.http());
        assert_reached(&one, SERVER);
        assert_eq!(
            one.output("getent ahostsv4 some.name.test | head -n1 | cut -d' ' -f1"),
            SERVER.to_string()
        );
        assert!(one.output("cat /etc/resolv.conf").contains(&format!("nameserver {RESOLVER}")));
        // The host itself: there is a listener at each of these, and the server's own API.
        assert!(TcpStream::connect((HOST, HOST_PORT)).is_ok(), "the host's listener works");
        for address in [HOST, Ipv4Addr::new(10, 55, 0, 1), Ipv4Addr::LOCALHOST] {
            assert_out_of_reach(&one, address, HOST_PORT);
            assert_out_of_reach(&one, address, server.http().address().port());
        }
        assert_out_of_reach(&one, address(&one), HOST_PORT);
        // The local network, and what clouds keep at a link-local address.
        assert_out_of_reach(&one, NEIGHBOUR, WHO_PORT);
        assert_out_of_reach(&one, METADATA, WHO_PORT);
        assert_out_of_reach(&one, Ipv4Addr::new(100, 64, 0, 1), WHO_PORT);
        // IPv6 is no way around: there is none, but on the loopback device.
        assert_out_of_reach(&one, SERVER_IPV6.parse::<IpAddr>().expect("an address"), WHO_PORT);
        assert_eq!(one.output("awk '{ print $6 }' /proc/net/if_inet6"), "lo");
        // The kernel of the host is still no router for others.
        assert_eq!(fs_err::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("readable").trim(), "0");
    });
}

#[test]
fn w13_sandboxes_reach_each_other_neither_directly_nor_from_outside() {
    let name = "w13_sandboxes_reach_each_other_neither_directly_nor_from_outside";
    with_network(name, "", |server, internet| {
        let (one, two) = (bridged(&server.http()), bridged(&server.http()));
        let (first, second) = (address(&one), address(&two));
        assert_ne!(first, second);
        serve_inside(&two, "0.0.0.0", 8000);
        assert_eq!(
            two.output(&format!("timeout 9 bash -c 'exec 3<>/dev/tcp/{second}/8000 && echo own'")),
            "own"
        );
        assert_out_of_reach(&one, second, 8000);
        // Nobody comes in: not the host's users, not a neighbour who knows the way.
        assert!(fetch(second, 8000, "8000").is_err());
        internet.space().within(|| {
            assert!(fetch(second, 8000, "8000").is_err());
            assert!(fetch(HOST, 8000, "8000").is_err());
        });
    });
}

#[test]
fn w13_a_sandbox_speaks_with_its_own_address_only_and_cannot_change_its_network() {
    let name = "w13_a_sandbox_speaks_with_its_own_address_only_and_cannot_change_its_network";
    with_network(name, "defaults:\n  readonly_rootfs: false\n", |server, internet| {
        let created = json!({"network": "bridge", "security": "container"});
        let root = Session::create(&server.http(), &created);
        assert_eq!(root.output("id -u"), "0");
        let raw =
            root.exec("python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 255)'");
        assert_ne!(raw.exit_code, 0, "raw sockets would be a way to lie: {}", raw.output);
        root.output("echo 1 2>/dev/null > /proc/sys/net/ipv4/ip_forward; test $(cat /proc/sys/net/ipv4/ip_forward) = 0");
        // Root may still listen on low ports.
        root.output("python3 -c 'import socket; s = socket.socket(); s.bind((\"0.0.0.0\", 80)); s.listen()'");
        // Whoever owned the namespace could lie: then the host does not pass it on.
        space(&root.id).within(|| {
            run("ip", &["address", "add", "198.51.100.77/32", "dev", "eth0"]);
            let lie = UdpSocket::bind("198.51.100.77:0").expect("bind");
            lie.send_to(b"a lie", (SERVER, RECORD_PORT)).expect("sent");
            let truth = UdpSocket::bind("0.0.0.0:0").expect("bind");
            truth.send_to(b"the truth", (SERVER, RECORD_PORT)).expect("sent");
        });
        assert_eq!(internet.heard_until("the truth"), ["the truth"]);
    });
}

#[test]
fn w13_private_networks_are_reached_only_where_the_owner_says_so() {
    let name = "w13_private_networks_are_reached_only_where_the_owner_says_so";
    let more = "  allow_private: [192.168.77.0/24]\n";
    with_network(name, more, |server, _| {
        let http = server.http();
        let all = bridged(&http);
        assert_reached(&all, SERVER);
        assert_reached(&all, NEIGHBOUR);
        assert_out_of_reach(&all, METADATA, WHO_PORT);
        let listed = Session::create(&http, &json!({"network": {"allow": ["198.51.100.0/24"]}}));
        assert_eq!(listed.info().network, "allow");
        assert_reached(&listed, SERVER);
        assert_eq!(
            listed.output("getent ahostsv4 some.name.test | head -n1 | cut -d' ' -f1"),
            SERVER.to_string()
        );
        assert_out_of_reach(&listed, RESOLVER, WHO_PORT);
        assert_out_of_reach(&listed, NEIGHBOUR, WHO_PORT);
        let everything = Session::create(&http, &json!({"network": {"allow": ["0.0.0.0/0"]}}));
        assert_reached(&everything, NEIGHBOUR);
        assert_out_of_reach(&everything, METADATA, WHO_PORT);
        assert_out_of_reach(&everything, HOST, server.http().address().port());
        assert_out_of_reach(&everything, address(&all), WHO_PORT);
        for network in [
            "::/0",
            "169.254.0.0/16",
            "127.0.0.1/32",
            "10.0.0.0/8",
            "10.55.0.0/16",
            "224.0.0.0/4",
            "x",
            "1.2.3.4/33",
        ] {
            let refused = http.post("/v1/sessions", &json!({"network": {"allow": [network]}})).expect(400);
            assert!(refused.text().contains(network), "{}", refused.text());
        }
        assert_eq!(http.get("/v1/sessions").expect(200).json::<Vec<SessionInfo>>().len(), 3);
    });
}

#[test]
fn w29_without_a_network_there_is_loopback_and_nothing_else() {
    let name = "w29_without_a_network_there_is_loopback_and_nothing_else";
    with_network(name, "", |server, _| {
        for security in ["strict", "container"] {
            let created = json!({"network": "none", "security": security});
            let session = Session::create(&server.http(), &created);
            assert_eq!(session.output("ls /sys/class/net"), "lo");
            assert_eq!(session.output("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '"), "lo");
            serve_inside(&session, "127.0.0.1", 8000);
            serve_inside(&session, "::1", 8001);
            for address in [SERVER, HOST, METADATA] {
                let said = reach(&session, address, WHO_PORT).expect_err("nothing is reached");
                assert!(said.contains("unreachable"), "{said}");
            }
            assert!(session.output("cat /etc/resolv.conf").contains("no network"));
        }
    });
}

#[test]
fn the_hosts_own_network_is_for_the_configuration_alone_to_give() {
    let name = "the_hosts_own_network_is_for_the_configuration_alone_to_give";
    with_network(name, "defaults:\n  network_mode: host\n", |server, _| {
        let http = server.http();
        // It stands below the address that says that the server listens.
        settles("a warning", || server.log().contains("without any isolation"));
        listen((Ipv4Addr::LOCALHOST, HOST_PORT).into(), tell_who);
        let session = Session::create(&http, &json!({}));
        assert_eq!(session.info().network, "host");
        assert_eq!(reach(&session, Ipv4Addr::LOCALHOST, HOST_PORT), Ok(Ipv4Addr::LOCALHOST.to_string()));
        assert!(session.output("cat /proc/net/dev").contains("up0"));
        assert_eq!(session.output("ls /sys"), "");
        let change = session.exec("ip link set up0 down");
        assert_ne!(change.exit_code, 0, "it is not its to change: {}", change.output);
        let apart = Session::create(&http, &json!({"network": "none"}));
        assert_eq!(apart.output("ls /sys/class/net"), "lo");
        http.post("/v1/sessions", &json!({"network": "host"})).expect(400);
    });
}

#[test]
fn published_ports_are_on_the_hosts_loopback_and_nowhere_else() {
    let name = "published_ports_are_on_the_hosts_loopback_and_nowhere_else";
    if !runnable(name) {
        return;
    }
    on_a_host(|internet| {
        let dir = DataDir::new();
        let server = Server::start_with(&dir, &options(""));
        let http = server.http();
        // On loopback inside, on the sandbox's own address, and with no network at all.
        let request = json!({"network": "bridge", "ports": [{"port": 8001}, {"port": 8002}]});
        let bridged = Session::create(&http, &request);
        serve_inside(&bridged, "127.0.0.1", 8001);
        let own = address(&bridged).to_string();
        serve_inside(&bridged, &own, 8002);
        let alone = Session::create(&http, &json!({"network": "none", "ports": [{"port": 8003}]}));
        serve_inside(&alone, "0.0.0.0", 8003);
        let shown = |session: &Session| -> Vec<(u16, u16)> {
            session.info().ports.iter().map(|port| (port.port, port.host_port)).collect()
        };
        let all: Vec<(u16, u16)> = shown(&bridged).into_iter().chain(shown(&alone)).collect();
        assert_eq!(all.iter().map(|(port, _)| *port).collect::<Vec<_>>(), [8001, 8002, 8003]);
        let works = || {
            for (port, host_port) in &all {
                let answer = fetch(Ipv4Addr::LOCALHOST, *host_port, &port.to_string()).expect("it answers");
                assert!(answer.ends_with(&format!("inside-{port}\n")), "{answer}");
                assert!(fetch(HOST, *host_port, "").is_err(), "only on loopback");
                internet.space().within(|| assert!(fetch(HOST, *host_port, "").is_err()));
            }
        };
        works();
        let taken = json!({"ports": [{"port": 80, "host_port": all[0].1}]});
        let refused = http.post("/v1/sessions", &taken).expect(409);
        assert_eq!(refused.error_code(), "CONFLICT");
        assert!(refused.text().contains(&all[0].1.to_string()), "{}", refused.text());
        for wrong in [json!({"port": 0}), json!({"port": 80, "host_port": 80})] {
            http.post("/v1/sessions", &json!({"ports": [wrong]})).expect(400);
        }

        server.kill();
        assert!(fetch(Ipv4Addr::LOCALHOST, all[0].1, "").is_err(), "the server carries it");
        let server = Server::start_with(&dir, &options(""));
        settles("the ports", || fetch(Ipv4Addr::LOCALHOST, all[2].1, "8003").is_ok());
        works();
        server.delete_all();
        for (_, host_port) in &all {
            assert!(fetch(Ipv4Addr::LOCALHOST, *host_port, "").is_err(), "closed with its sandbox");
        }
        server.stop();
        nothing_left(&dir);
    });
}

#[test]
fn a_run_without_a_server_has_networks_and_ports_too() {
    if !runnable("a_run_without_a_server_has_networks_and_ports_too") {
        return;
    }
    on_a_host(|_| {
        let dir = DataDir::new();
        let mut command = sandhaus_tests::binary::command(dir.path());
        let script = "timeout 20 bash -c 'exec 3<>/dev/tcp/198.51.100.10/80 && cat <&3'";
        command.args(["run", "--network", "bridge", "--", "sh", "-c", script]);
        let ran = sandhaus_tests::binary::run(&mut command);
        assert_eq!((ran.code, ran.stdout.trim()), (0, &*HOST.to_string()), "{}", ran.stderr);

        let mut command = sandhaus_tests::binary::command(dir.path());
        let inside = "cd /tmp && echo shown > here && exec python3 -m http.server 8000 >/dev/null 2>&1";
        command.args(["run", "-p", "8000", "--network", "none", "--", "sh", "-c", inside]);
        let mut child =
            command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("start the binary");
        let mut told = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let line = told.find(|line| line.contains("127.0.0.1:")).expect("the port is told");
        let host_port = line.rsplit(':').next().and_then(|port| port.trim().parse().ok()).expect("a port");
        settles("the published port", || {
            fetch(Ipv4Addr::LOCALHOST, host_port, "here").is_ok_and(|answer| answer.ends_with("shown\n"))
        });
        let handle = process::Handle::open(child.id()).expect("it runs");
        handle.signal(rustix::process::Signal::TERM);
        drop(told);
        child.wait().expect("it ends");
        nothing_left(&dir);
    });
}

#[test]
fn what_a_killed_run_leaves_goes_with_the_next() {
    if !runnable("what_a_killed_run_leaves_goes_with_the_next") {
        return;
    }
    on_a_host(|_| {
        let dir = DataDir::new();
        let mut command = sandhaus_tests::binary::command(dir.path());
        command.args(["run", "--network", "bridge", "--", "sh", "-c", "echo up; sleep 1000"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("start the binary");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("it speaks");
        assert_eq!(line, "up\n");
        child.kill().expect("killed");
        child.wait().expect("it ends");
        assert!(run("nft", &["list", "tables"]).contains("sandhaus_"), "its filters outlive it");
        let mut next = sandhaus_tests::binary::command(dir.path());
        let ran = sandhaus_tests::binary::run(next.args(["run", "--", "echo", "next"]));
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "next\n"), "{}", ran.stderr);
        nothing_left(&dir);
    });
}

#[test]
fn connections_and_filters_outlive_the_server() {
    if !runnable("connections_and_filters_outlive_the_server") {
        return;
    }
    on_a_host(|_| {
        let dir = DataDir::new();
        let server = Server::start_with(&dir, &options(""));
        let session = bridged(&server.http());
        let before = address(&session);
        session.output(&format!(
            "exec 3<>/dev/tcp/{SERVER}/{ECHO_PORT}; echo one >&3; read -r -u 3 line; echo $line"
        ));
        server.kill();
        // A reload of the host's own rules takes ours along.
        run("nft", &["flush", "ruleset"]);
        let server = Server::start_with(&dir, &options(""));
        let session = Session::at(&server.http(), &session.id);
        assert_eq!(
            session.output("echo two >&3; read -r -u 3 line; echo $line"),
            "two",
            "the connection goes on"
        );
        assert_reached(&session, SERVER);
        assert_out_of_reach(&session, NEIGHBOUR, WHO_PORT);
        // While the server runs, it sees to it at once.
        run("nft", &["flush", "ruleset"]);
        settles("the filters", || !run("nft", &["list", "tables"]).is_empty());
        assert_out_of_reach(&session, NEIGHBOUR, WHO_PORT);
        assert_reached(&session, SERVER);
        // A second one never gets the address of the first.
        let second = bridged(&server.http());
        assert_ne!(address(&second), before);
        assert_eq!(address(&session), before);
        // A stop and a start lead to a network again.
        server.http().post(&session.route("/stop"), &json!({})).expect(200);
        server.http().post(&session.route("/start"), &json!({})).expect(200);
        assert_reached(&session, SERVER);
        server.delete_all();
        server.stop();
        nothing_left(&dir);
    });
}

#[test]
fn a_hundred_networks_at_once() {
    with_network("a_hundred_networks_at_once", "", |server, _| {
        let http = server.http();
        let sessions: Vec<Session> = std::thread::scope(|scope| {
            let creating: Vec<_> = (0..MANY).map(|_| scope.spawn(|| bridged(&http))).collect();
            creating.into_iter().map(|create| create.join().expect("it is created")).collect()
        });
        let routes: Vec<Value> =
            serde_json::from_str(&run("ip", &["-j", "route", "show", "proto", "static"])).expect("JSON");
        let addresses: BTreeSet<&str> = routes
            .iter()
            .filter_map(|route| route["dst"].as_str())
            .filter(|destination| destination.starts_with("10.55."))
            .collect();
        assert!(addresses.len() >= MANY, "each has an address of its own: {}", addresses.len());
        for session in sessions.iter().step_by(MANY / 5) {
            assert_reached(session, SERVER);
        }
    });
}

#[test]
fn no_program_is_run_to_make_a_network() {
    with_network("no_program_is_run_to_make_a_network", "", |server, _| {
        let first = bridged(&server.http());
        let launcher = server.launcher().expect("it has one");
        let trace = tempfile::NamedTempFile::new().expect("a file");
        let mut tracer = Command::new("strace");
        tracer.args(["-f", "-e", "trace=execve,execveat", "-e", "signal=none", "-o"]).arg(trace.path());
        for pid in [server.handle().pid(), launcher.pid()] {
            tracer.args(["-p", &pid.to_string()]);
        }
        let mut tracer = tracer.stderr(Stdio::piped()).spawn().expect("strace is installed");
        let mut told = BufReader::new(tracer.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let mut attached = BTreeSet::new();
        while attached.len() < 2 {
            let line = told.next().expect("strace goes on");
            let pid = line.split_whitespace().nth(2).and_then(|pid| pid.parse::<u32>().ok());
            attached.extend(pid.filter(|pid| [server.handle().pid(), launcher.pid()].contains(pid)));
        }
        let second = bridged(&server.http());
        assert_reached(&second, SERVER);
        first.delete();
        second.delete();
        let handle = process::Handle::open(tracer.id()).expect("it runs");
        handle.signal(rustix::process::Signal::INT);
        drop(told);
        tracer.wait().expect("it ends");
        let text = fs_err::read_to_string(trace.path()).expect("the trace");
        let calls: Vec<&str> = text.lines().filter(|line| line.contains("exec")).collect();
        let agent =
            calls.iter().position(|call| call.contains("execveat(") && call.contains("sandhaus-agent"));
        assert!(agent.is_some(), "the agent is seen: {text}");
        for call in &calls {
            // The agent, and what it starts inside; its first argument tells.
            let tool = ["\"ip\"", "nft", "iptables", "sysctl", "brctl", "mount", "nsenter"];
            assert!(!tool.iter().any(|tool| call.contains(tool)), "{call}");
        }
        let own = format!("{} ", server.handle().pid());
        assert!(!calls.iter().any(|call| call.starts_with(&own)), "the server executes nothing");
    });
}
