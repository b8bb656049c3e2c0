//! The way to a port inside.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use crate::support::{Agent, PATIENCE};

/// A server that hands each connection to `answer`, and its port.
fn server(answer: impl Fn(usize, TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(stream) = stream else { return };
            stream.set_read_timeout(Some(PATIENCE)).expect("set a time limit");
            answer(number, stream);
        }
    });
    port
}

/// The head of a request as it arrived.
fn head(stream: &mut BufReader<TcpStream>) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("read a line");
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            return lines;
        }
        lines.push(line);
    }
}

#[test]
fn requests_arrive_as_they_were_written() {
    let agent = Agent::start(None);
    let (sender, heads) = mpsc::channel();
    let port = server(move |_, stream| {
        let mut stream = BufReader::new(stream);
        sender.send(head(&mut stream)).expect("the test waits");
        let mut body = [0; 4];
        stream.read_exact(&mut body).expect("read the body");
        let reply = "HTTP/1.1 418 Teapot\r\nContent-Length: 2\r\nX-Own: 1\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\nhi";
        stream.get_mut().write_all(reply.as_bytes()).expect("answer");
    });
    let headers = [("x-kept", "1"), ("connection", "x-dropped"), ("x-dropped", "1"), ("te", "trailers")];
    let reply = agent.request("PUT", &format!("/proxy/{port}/a%2Fb/%7e/?q=%20&r"), &headers, b"body");
    assert_eq!(
        (reply.status, reply.body.as_slice()),
        (418, b"hi".as_slice()),
        "the port's own answer, unchanged"
    );
    assert!(reply.headers.contains_key("x-own") && !reply.headers.contains_key("x-hop"));
    let head = heads.recv_timeout(PATIENCE).expect("a request");
    assert_eq!(head[0], "PUT /a%2Fb/%7e/?q=%20&r HTTP/1.1");
    let has = |line: &str| head.iter().any(|found| found.eq_ignore_ascii_case(line));
    assert!(
        has("x-kept: 1") && has(&format!("host: localhost:{port}")) && has("x-forwarded-host: agent"),
        "{head:?}"
    );
    assert!(!head.iter().any(|line| line.starts_with("x-dropped") || line.starts_with("te:")), "{head:?}");
    assert!(has("content-length: 4"));
}

#[test]
fn answers_come_while_they_are_made() {
    let agent = Agent::start(None);
    let (go_on, waits) = mpsc::channel::<()>();
    let port = server(move |_, stream| {
        let mut stream = BufReader::new(stream);
        head(&mut stream);
        let stream = stream.get_mut();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            .expect("answer");
        waits.recv_timeout(PATIENCE).expect("the first part was read");
        stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").expect("answer");
    });
    let mut answer = agent.send("GET", &format!("/proxy/{port}/"), &[], b"");
    assert_eq!(answer.next_piece().expect("comes").expect("a piece"), b"first");
    go_on.send(()).expect("the server waits");
    assert_eq!(answer.finish().body, b"second");
}

#[test]
fn a_changed_protocol_is_passed_on_both_ways() {
    let agent = Agent::start(None);
    let port = server(move |_, stream| {
        let mut stream = BufReader::new(stream);
        let head = head(&mut stream);
        assert!(head.iter().any(|line| line.eq_ignore_ascii_case("upgrade: echo")), "{head:?}");
        let reply = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n";
        stream.get_mut().write_all(reply.as_bytes()).expect("answer");
        let mut line = String::new();
        stream.read_line(&mut line).expect("read a line");
        stream.get_mut().write_all(line.to_uppercase().as_bytes()).expect("answer");
    });
    let headers = [("connection", "upgrade"), ("upgrade", "echo")];
    let answer = agent.send("GET", &format!("/proxy/{port}/ws"), &headers, b"");
    assert_eq!((answer.status, answer.headers["upgrade"].as_str()), (101, "echo"));
    let mut stream = answer.into_stream();
    stream.get_mut().write_all(b"said\n").expect("say");
    let mut line = String::new();
    stream.read_line(&mut line).expect("hear");
    assert_eq!(line, "SAID\n");
    assert_eq!(stream.read_line(&mut line).expect("the end of one side is that of the other"), 0);
}

#[test]
fn a_connection_closed_too_early_is_tried_once_more_where_nothing_changes() {
    let agent = Agent::start(None);
    let (sender, taken) = mpsc::channel();
    let port = server(move |number, stream| {
        sender.send(number).expect("the test waits");
        let mut stream = BufReader::new(stream);
        head(&mut stream);
        if number % 2 == 1 {
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("answer");
        }
    });
    assert_eq!(agent.get(&format!("/proxy/{port}/")).status, 200);
    assert_eq!(taken.try_iter().count(), 2);
    let refused = agent.request("POST", &format!("/proxy/{port}/"), &[], b"");
    assert_eq!(refused.refusal(), (502, "BAD_GATEWAY".to_owned()));
    assert_eq!(taken.try_iter().count(), 1, "a change is never sent twice");
}

#[test]
fn ports_without_a_server_and_no_ports() {
    let agent = Agent::start(None);
    let free =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("bind").port();
    assert_eq!(agent.get(&format!("/proxy/{free}/x")).refusal(), (502, "BAD_GATEWAY".to_owned()));
    for wrong in ["0", "x", "65536", "-1"] {
        assert_eq!(agent.get(&format!("/proxy/{wrong}/x")).refusal().0, 400, "{wrong}");
    }
}
