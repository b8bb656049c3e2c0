//! The client against agents that do what agents do, and what they should not.

use std::sync::atomic::AtomicUsize;

use futures::future::BoxFuture;
use sandhaus_protocol::frame::encode;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::testing::{read_request, write_response};

/// Serves one connection; told how many came before it.
type Serve = Arc<dyn Fn(usize, DuplexStream) -> BoxFuture<'static, ()> + Send + Sync>;

struct Dial {
    serve: Serve,
    dialled: AtomicUsize,
}

impl Connect for Dial {
    fn connect(&self) -> BoxFuture<'_, Result<GuestStream>> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let number = self.dialled.fetch_add(1, Ordering::SeqCst);
        tokio::spawn((self.serve)(number, far));
        Box::pin(async { Ok(GuestStream::new(near)) })
    }
}

fn toolbox<F>(serve: impl Fn(usize, DuplexStream) -> F + Send + Sync + 'static) -> (Toolbox, Arc<Dial>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let serve: Serve = Arc::new(move |number, stream| Box::pin(serve(number, stream)));
    let dial = Arc::new(Dial { serve, dialled: AtomicUsize::new(0) });
    (Toolbox::new(dial.clone(), Base::default()), dial)
}

impl Dial {
    fn count(&self) -> usize {
        self.dialled.load(Ordering::SeqCst)
    }
}

const INFO: &str = r#"{"name":"default","cwd":"/w","running":null,"output_bytes":0}"#;

/// Answers every request of a connection with the same.
async fn answer_all(mut stream: DuplexStream, status: &str, body: &str) {
    while read_request(&mut stream).await.is_some() {
        if write_response(&mut stream, status, body.as_bytes()).await.is_none() {
            return;
        }
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.expect_err("an error").kind()
}

/// Lets the other tasks of the runtime come to rest.
async fn rest() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn one_connection_serves_one_request_after_another() {
    let (toolbox, dial) = toolbox(|_, stream| answer_all(stream, "200 OK", INFO));
    for _ in 0..10 {
        assert_eq!(toolbox.shell_info("default").await.expect("answered").cwd, "/w");
        rest().await;
    }
    assert_eq!((dial.count(), toolbox.idle()), (1, 1));
}

#[tokio::test]
async fn requests_at_once_have_their_own_and_few_are_kept() {
    let (toolbox, dial) = toolbox(|_, stream| answer_all(stream, "200 OK", INFO));
    let asked = (0..20).map(|_| toolbox.shell_info("default"));
    for answer in futures::future::join_all(asked).await {
        answer.expect("answered");
    }
    assert_eq!(dial.count(), 20);
    rest().await;
    // Counted when the next one comes back.
    toolbox.shell_info("default").await.expect("answered");
    rest().await;
    assert!(toolbox.idle() <= IDLE_MAX + 1, "{}", toolbox.idle());
    assert_eq!(dial.count(), 20);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_not_noticed() {
    // The first serves one request, as an agent does that was restarted or closes what is idle.
    let (toolbox, dial) = toolbox(async |number, mut stream| {
        if number == 0 {
            read_request(&mut stream).await.expect("a request");
            write_response(&mut stream, "200 OK", INFO.as_bytes()).await.expect("there");
        } else {
            answer_all(stream, "204 No Content", "").await;
        }
    });
    toolbox.shell_info("default").await.expect("answered");
    toolbox.process_signal(1, 15).await.expect("sent again on a new connection");
    assert_eq!(dial.count(), 2);
}

#[tokio::test]
async fn what_may_have_been_done_is_not_sent_again() {
    // Every connection takes a second request and says nothing.
    let (toolbox, dial) = toolbox(async |_, mut stream| {
        read_request(&mut stream).await.expect("a request");
        write_response(&mut stream, "204 No Content", b"").await.expect("there");
        read_request(&mut stream).await;
    });
    toolbox.process_signal(1, 15).await.expect("answered");
    rest().await;
    assert_eq!(kind(toolbox.process_signal(1, 15).await), Kind::Unavailable);
    assert_eq!(dial.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_idle_for_long_is_not_used() {
    let (toolbox, dial) = toolbox(|_, stream| answer_all(stream, "200 OK", INFO));
    toolbox.shell_info("default").await.expect("answered");
    tokio::time::sleep(IDLE_AGE_MAX / 2).await;
    toolbox.shell_info("default").await.expect("answered");
    assert_eq!(dial.count(), 1);
    tokio::time::sleep(IDLE_AGE_MAX).await;
    toolbox.shell_info("default").await.expect("answered");
    assert_eq!(dial.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn greetings_and_connections_have_limits() {
    let (silent, _) = toolbox(async |_, mut stream| while read_request(&mut stream).await.is_some() {});
    let hello = HelloRequest {
        protocol: 1,
        sandbox_id: "a".to_owned(),
        generation: 1,
        env: BTreeMap::new(),
        guest: None,
        ssh: None,
    };
    assert_eq!(kind(silent.hello(&hello).await), Kind::Timeout);

    struct Never;
    impl Connect for Never {
        fn connect(&self) -> BoxFuture<'_, Result<GuestStream>> {
            Box::pin(std::future::pending())
        }
    }
    let toolbox = Toolbox::new(Arc::new(Never), Base::default());
    assert_eq!(kind(toolbox.shell_info("default").await), Kind::Timeout);
}

#[tokio::test]
async fn refusals_have_a_kind_and_a_message_that_is_safe_to_show() {
    let told = |status: &'static str, body: &'static str| async move {
        let (toolbox, _) = toolbox(move |_, stream| answer_all(stream, status, body));
        let error = toolbox.shell_info("x").await.expect_err("refused");
        (error.kind(), error.message().to_owned())
    };
    assert_eq!(
        told("404 Not Found", r#"{"statusCode":404,"message":"no shell x"}"#).await,
        (Kind::NotFound, "no shell x".to_owned())
    );
    assert_eq!(told("429 Too Many Requests", r#"{"error":"queue is full"}"#).await.0, Kind::Exhausted);
    assert_eq!(
        told("409 Conflict", "{\"message\":\"a\\u001b[2Jb\\nc\"}").await,
        (Kind::Conflict, "a[2Jbc".to_owned()),
        "nothing of it moves a terminal"
    );
    let (kind, message) = told("500 Internal Server Error", "not json").await;
    assert_eq!((kind, message.as_str()), (Kind::Internal, "the agent answered 500 Internal Server Error"));
    for (status, expected) in [
        ("400 Bad Request", Kind::Invalid),
        ("403 Forbidden", Kind::Forbidden),
        ("408 Request Timeout", Kind::Timeout),
        ("410 Gone", Kind::Gone),
        ("413 Content Too Large", Kind::Invalid),
        ("501 Not Implemented", Kind::Unsupported),
        ("503 Service Unavailable", Kind::Unavailable),
    ] {
        assert_eq!(told(status, "{}").await.0, expected, "{status}");
    }
}

#[tokio::test]
async fn a_long_message_is_cut() {
    let body = format!(r#"{{"message":"{}"}}"#, "x".repeat(10_000));
    let (toolbox, _) = toolbox(move |_, stream| {
        let body = body.clone();
        async move { answer_all(stream, "400 Bad Request", &body).await }
    });
    let error = toolbox.shell_info("x").await.expect_err("refused");
    assert_eq!(error.message().len(), MESSAGE_CHARS_MAX);
}

#[tokio::test]
async fn a_base_goes_before_every_path() {
    let (heads, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let serve: Serve = Arc::new(move |_, mut stream| {
        let heads = heads.clone();
        Box::pin(async move {
            while let Some((head, _)) = read_request(&mut stream).await {
                heads.send(head).expect("the test listens");
                write_response(&mut stream, "200 OK", INFO.as_bytes()).await;
            }
        })
    });
    let base = Base {
        path_prefix: "/v1/sessions/x/toolbox".to_owned(),
        authorization: Some("Bearer secret".to_owned()),
        ..Base::default()
    };
    assert!(!format!("{base:?}").contains("secret"));
    let toolbox = Toolbox::new(Arc::new(Dial { serve, dialled: AtomicUsize::new(0) }), base);
    toolbox.shell_info("a b/ü?").await.expect("answered");
    let head = seen.recv().await.expect("a request").to_ascii_lowercase();
    assert!(
        head.starts_with("get /v1/sessions/x/toolbox/sandhaus/shell/a%20b%2f%c3%bc%3f http/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nauthorization: bearer secret\r\n"), "{head}");
    assert!(head.contains("\r\nhost: "), "{head}");
}

#[test]
fn queries_are_encoded() {
    let query = Toolbox::query(&BTreeMap::from([("path", "/a b&c=d/ü"), ("root", "~.-_x")]));
    assert_eq!(query, "path=%2Fa%20b%26c%3Dd%2F%C3%BC&root=~.-_x");
    assert_eq!(Toolbox::query(&BTreeMap::new()), "");
}

/// A chunked answer of these frames, written in pieces of so many bytes.
async fn stream_frames(stream: &mut DuplexStream, frames: &[u8], piece: usize) -> Option<()> {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head).await.ok()?;
    for bytes in frames.chunks(piece) {
        let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        stream.write_all(&chunk).await.ok()?;
        tokio::task::yield_now().await;
    }
    Some(())
}

fn whole_stream() -> Vec<u8> {
    let mut frames = Vec::new();
    encode(frame::Kind::Started, 0, br#"{"exec_id":7}"#, &mut frames);
    encode(frame::Kind::Ping, 0, b"", &mut frames);
    encode(frame::Kind::GapStdout, 3, b"", &mut frames);
    encode(frame::Kind::Stdout, 9, b"hello", &mut frames);
    encode(frame::Kind::GapStderr, 0, b"", &mut frames);
    encode(frame::Kind::Stderr, 2, b"oh", &mut frames);
    let exit = br#"{"exit_code":3,"cwd":"/w","duration_ms":1,"timed_out":false,"shell_replaced":false}"#;
    encode(frame::Kind::Exit, 0, exit, &mut frames);
    frames
}

fn exec() -> ShellExec {
    ShellExec { cmd: "true".to_owned(), timeout_ms: 0 }
}

#[tokio::test]
async fn streams_are_decoded_whatever_the_pieces_and_free_their_connection() {
    for piece in [1, 7, 16, 1024] {
        let (toolbox, dial) = toolbox(move |_, mut stream| async move {
            while let Some((head, body)) = read_request(&mut stream).await {
                assert!(head.starts_with("POST /sandhaus/shell/default/exec "));
                assert_eq!(serde_json::from_slice::<ShellExec>(&body).expect("json"), exec());
                stream_frames(&mut stream, &whole_stream(), piece).await.expect("read");
                stream.write_all(b"0\r\n\r\n").await.expect("read");
            }
        });
        for _ in 0..3 {
            let mut events = toolbox.shell_exec("default", &exec()).await.expect("started");
            let mut told = Vec::new();
            while let Some(event) = events.next().await.expect("whole") {
                told.push(match event {
                    Event::Started(started) => format!("started {}", started.exec_id),
                    Event::Stdout(at, bytes) => format!("out {at} {bytes:?}"),
                    Event::Stderr(at, bytes) => format!("err {at} {bytes:?}"),
                    Event::Gap(at) => format!("gap to {at}"),
                    Event::Ping => "ping".to_owned(),
                    Event::Exit(exit) => format!("exit {}", exit.exit_code),
                });
            }
            let expected = ["started 7", "ping", "gap to 9", "out 9 b\"hello\"", "err 2 b\"oh\"", "exit 3"];
            assert_eq!(told, expected);
            assert!(events.next().await.expect("still over").is_none());
            rest().await;
        }
        assert_eq!((dial.count(), toolbox.idle()), (1, 1), "in pieces of {piece}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_or_is_nonsense_is_an_error() {
    let cut_at = whole_stream().len() - 10;
    for (frames, expected) in [
        (whole_stream()[..cut_at].to_vec(), "the stream from the sandbox ended early"),
        (vec![9; 64], "a frame is malformed"),
    ] {
        let (toolbox, _) = toolbox(move |_, mut stream| {
            let frames = frames.clone();
            async move {
                read_request(&mut stream).await.expect("a request");
                stream_frames(&mut stream, &frames, 100).await.expect("read");
                // The client may have hung up on nonsense already.
                let _ = stream.write_all(b"0\r\n\r\n").await;
            }
        });
        let mut events = toolbox.shell_exec("default", &exec()).await.expect("started");
        let error = loop {
            match events.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it did not end well"),
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), error.message()), (Kind::Unavailable, expected));
    }
}

#[tokio::test]
async fn files_stream_in_and_come_out_within_the_limit() {
    let (toolbox, _) = toolbox(async |_, mut stream| {
        while let Some((head, body)) = read_request(&mut stream).await {
            if head.starts_with("GET ") {
                assert!(
                    head.starts_with("GET /files/download?limit=4&offset=2&path=%2Fw%2Fa&root=%2Fw "),
                    "{head}"
                );
                let answer = "HTTP/1.1 200 OK\r\nx-file-size: 10\r\ncontent-length: 4\r\n\r\n2345";
                stream.write_all(answer.as_bytes()).await.expect("read");
            } else {
                assert!(head.starts_with("POST /files/upload-v2?path=b&root=%2Fw "), "{head}");
                assert_eq!(body, b"\0\xff");
                write_response(&mut stream, "200 OK", b"{}").await;
            }
        }
    });
    let (bytes, size) = toolbox.read_file("/w", "/w/a", 2, 4).await.expect("read");
    assert_eq!((bytes.as_ref(), size), (b"2345".as_slice(), 10));
    toolbox.write_file("/w", "b", Toolbox::body(&b"\0\xff"[..])).await.expect("written");
}

#[tokio::test]
async fn an_agent_that_sends_more_than_was_asked_is_cut_off() {
    let (toolbox, _) = toolbox(async |_, mut stream| {
        read_request(&mut stream).await.expect("a request");
        let answer = "HTTP/1.1 200 OK\r\nx-file-size: 10\r\ncontent-length: 10\r\n\r\n0123456789";
        stream.write_all(answer.as_bytes()).await.expect("read");
        // Until the client hangs up.
        let _ = stream.read_u8().await;
    });
    assert_eq!(kind(toolbox.read_file("/w", "a", 0, 4).await), Kind::Unavailable);
}
