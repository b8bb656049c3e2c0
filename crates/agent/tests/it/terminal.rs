//! The terminal in a browser, as a browser sees it.

use std::net::TcpStream;

use crate::{
    socket::Socket,
    ssh::{Host, SECRET},
    support::{Answer, PATIENCE, Wire, eventually, exchange},
};

fn wire(host: &Host) -> Wire {
    let stream = TcpStream::connect(("127.0.0.1", host.terminal_port)).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a time limit");
    Wire::Tcp(stream)
}

fn get(host: &Host, target: &str, headers: &[(&str, &str)]) -> Answer {
    exchange(wire(host), "GET", target, headers, b"")
}

/// Reads texts until they contain this.
fn until(socket: &mut Socket, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let (kind, content) = socket.receive();
        assert_ne!(kind, 8, "no {text:?} in {seen:?}");
        if kind == 1 {
            // Every frame is a text by itself.
            seen.push_str(std::str::from_utf8(&content).expect("whole characters"));
        }
    }
    seen
}

fn bearer() -> (&'static str, String) {
    ("authorization", format!("Bearer {SECRET}"))
}

#[test]
fn nobody_gets_in_without_the_secret() {
    let host = Host::open();
    for target in ["/", "/terminal.js", "/terminal.css", "/ws", "/?token=wrong-0123456789abcdef"] {
        let answer = get(&host, target, &[]);
        let challenge = answer.headers.get("www-authenticate").cloned().unwrap_or_default();
        let status = answer.finish().status;
        // A request for a socket that is none is refused before it is looked at.
        assert!(status == 401 || (target == "/ws" && status == 400), "{target}: {status}");
        assert!(target == "/ws" || challenge.starts_with("Basic "), "{target}: {challenge}");
    }
    let (name, value) = bearer();
    assert_eq!(Socket::open(wire(&host), "/ws", &[]).err(), Some(401));
    assert_eq!(Socket::open(wire(&host), "/ws", &[(name, "Bearer wrong-0123456789ab")]).err(), Some(401));
    let foreign = [(name, value.as_str()), ("origin", "http://elsewhere.example")];
    assert_eq!(Socket::open(wire(&host), "/ws", &foreign).err(), Some(403));
    assert!(host.descendants_with("-i -l").is_empty(), "no shell was started for any of them");
}

#[test]
fn the_page_lets_its_user_in_and_keeps_others_out() {
    let host = Host::open();
    let page = get(&host, &format!("/?token={SECRET}"), &[]);
    assert_eq!(page.status, 200);
    assert!(page.headers["content-security-policy"].contains("default-src 'none'"));
    assert_eq!(page.headers["content-encoding"], "gzip");
    let cookie = page.headers["set-cookie"].clone();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains(SECRET), "{cookie}");
    page.finish();
    let cookie = cookie.split(';').next().expect("name and value").to_owned();
    for target in ["/", "/terminal.js", "/terminal.css"] {
        assert_eq!(get(&host, target, &[("cookie", &cookie)]).finish().status, 200, "{target}");
    }
    let (mut socket, _) = Socket::open(wire(&host), "/ws", &[("cookie", &cookie)]).expect("it opens");
    socket.send("echo in=$PWD=\r");
    until(&mut socket, "in=/=");
    // Basic, as a browser answers the challenge: of any user.
    let basic = "Basic YW55Ym9keTpzZWNyZXQtb2YtdGhlLXNhbmRib3gtMDEyMzQ1Njc4OQ==";
    assert_eq!(get(&host, "/", &[("authorization", basic)]).finish().status, 200);
    // Another secret: the cookie of the old one is worth nothing.
    let access = sandhaus_protocol::ssh::Access {
        secret: Some("another-secret-0123456789".to_owned()),
        ..Default::default()
    };
    assert_eq!(host.tell(&access), 204);
    assert_eq!(get(&host, "/", &[("cookie", &cookie)]).finish().status, 401);
}

#[test]
fn shells_end_with_their_sockets_and_sockets_with_their_shells() {
    let host = Host::open();
    let (name, value) = bearer();
    let headers = [(name, value.as_str())];
    let (mut socket, _) = Socket::open(wire(&host), "/ws", &headers).expect("it opens");
    socket.send(r#"{"rows":41,"cols":101}"#);
    socket.send("stty size\r");
    until(&mut socket, "41 101");
    // Characters of several bytes, as many as need several frames; none is cut in two.
    let typed = r"printf '\303\244\342\202\254\360\235\204\236%.0s' $(seq 3000); echo; echo end=$((40+2))";
    socket.send(&format!("{typed}\r"));
    let seen = until(&mut socket, "end=42");
    assert_eq!(seen.matches("ä€𝄞").count(), 3000);
    assert!(!seen.contains('\u{fffd}'));
    socket.send("sleep 54321\r");
    eventually("it sleeps", || !host.descendants_with("sleep 54321").is_empty());
    drop(socket);
    eventually("all of it is gone", || host.descendants_with("").is_empty());
    let (mut socket, _) = Socket::open(wire(&host), "/ws", &headers).expect("it opens");
    socket.send("exit\r");
    loop {
        let (kind, content) = socket.receive();
        if kind == 8 {
            assert_eq!(&content[..2], 1000_u16.to_be_bytes());
            break;
        }
    }
}
