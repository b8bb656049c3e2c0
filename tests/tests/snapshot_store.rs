//! A snapshot of a virtual machine with its memory on its way from one host to another, through a real S3 server, with
//! servers killed in the middle of it.

use std::collections::BTreeSet;

use sandhaus_client::wire::SnapshotList;
use sandhaus_tests::{
    binary, files_named, flip_bit, process,
    s3::{self, Held, Proxy, S3},
    server::{DataDir, Options, Server},
    session::Session,
    settles, vm,
};
use serde_json::{Value, json};

const NAME: &str = "travels";

/// What a machine has in its memory that nothing makes smaller: so many parts are sent, and pieces fetched.
const RANDOM_MIB: u64 = 80;

/// What requests say that send parts of the memory, and the one that is held.
const PARTS: &str = "/travels/memory?partNumber=";
const PART: &str = "/travels/memory?partNumber=2&";

/// What requests say that fetch pieces of it.
const PIECES: &str = "GET /daytona/snapshots/travels/memory";

/// Parts and pieces on their way at once.
const AT_ONCE: usize = 4;

/// Requests for parts or pieces after which some have surely arrived, though one is held.
const ENOUGH: usize = AT_ONCE + 2;

/// A secret that the store does not know.
const WRONG_SECRET: &str = "mistyped-secret";

/// A server with a store behind a proxy. Nothing of a key is in its configuration.
fn options(proxy: &Proxy, secret: &str) -> Options {
    let place = format!("snapshots:\n  store: s3://{}\n  endpoint: {}\n", s3::BUCKET, proxy.url());
    let keys = [("AWS_ACCESS_KEY_ID", s3::KEYS.0), ("AWS_SECRET_ACCESS_KEY", secret)];
    let env = keys.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    Options { env, ..vm::options(&place) }
}

/// Nobody reads a key in this.
#[track_caller]
fn tells_no_key(text: &str) {
    for key in [s3::KEYS.0, s3::KEYS.1, WRONG_SECRET] {
        assert!(!text.contains(key), "{key} in {text}");
    }
}

/// Nor in anything that a server shows of itself: its log, any program's arguments, the environment of what it started.
#[track_caller]
fn shows_no_key(server: &Server) {
    tells_no_key(&server.log());
    for pid in process::all() {
        tells_no_key(&process::arguments(pid).join(" "));
    }
    let mut started = process::children(server.handle().pid());
    // Machines are nobody's children.
    started.extend(process::all().into_iter().filter(|pid| {
        process::arguments(*pid).first().is_some_and(|program| program.contains("qemu-system"))
    }));
    for pid in started {
        // One that has ended meanwhile has none.
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        tells_no_key(&String::from_utf8_lossy(&environment));
    }
}

fn names(server: &Server) -> Vec<String> {
    let list: SnapshotList = server.http().get("/v1/snapshots").expect(200).json();
    list.snapshots.into_iter().map(|snapshot| snapshot.name).collect()
}

fn cli(server: &Server, arguments: &[&str]) -> String {
    let ran = binary::run(server.cli().args(arguments));
    assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
    ran.stdout
}

/// The lines, or the ranges, that tell parts and pieces from each other.
fn distinct(requests: Vec<s3::Request>) -> BTreeSet<String> {
    requests.into_iter().map(|request| format!("{} {}", request.line, request.range)).collect()
}

/// Begins a transfer, waits until one part of it is in the middle and some have arrived, and kills the server.
fn killed_in_the_middle(
    server: Server,
    proxy: &Proxy,
    way: &str,
    (one, all): (&str, &str),
    held: Held,
) -> BTreeSet<String> {
    proxy.forget();
    proxy.hold(one, held);
    let (_, events) = server.http().stream(&format!("/v1/snapshots/{NAME}/{way}"), &json!({}));
    settles("one is held and others are through", || proxy.holds() && proxy.requests(all).len() >= ENOUGH);
    shows_no_key(&server);
    server.kill();
    drop(events);
    proxy.let_go();
    let seen = distinct(proxy.requests(all));
    proxy.forget();
    seen
}

/// A machine that counts, kept with its memory; gives how far it had counted.
fn take_one_that_counts(server: &Server) -> u64 {
    let machine = Session::create(&server.http(), &json!({}));
    machine.output(&format!("dd if=/dev/urandom of=/random bs=1048576 count={RANDOM_MIB}"));
    vm::count(&machine);
    let before = vm::counted(&machine);
    let request = json!({"session": machine.id, "name": NAME, "kind": "machine"});
    server.http().post("/v1/snapshots", &request).expect(201);
    machine.delete();
    before
}

/// Pushed by a server that is killed, and by one that goes on; gives how far the machine had counted.
fn push(proxy: &Proxy) -> u64 {
    let here = DataDir::new();
    vm::initramfs_image(here.path());
    let right = options(proxy, s3::KEYS.1);
    let server = Server::start_with(&here, &right);
    let before = take_one_that_counts(&server);
    let first = killed_in_the_middle(server, proxy, "push", (PART, PARTS), Held::Request);
    let server = Server::start_with(&here, &right);
    assert!(cli(&server, &["snapshot", "list", "--remote"]).lines().count() <= 1, "half of one is none");
    cli(&server, &["snapshot", "push", NAME]);
    let second = distinct(proxy.requests(PARTS));
    assert!(second.iter().any(|line| line.contains(PART)), "{second:?}");
    let whole = first.union(&second).count();
    assert!(second.len() < whole, "{} of {whole} parts were sent again", second.len());
    assert!(cli(&server, &["snapshot", "list", "--remote"]).contains(NAME));
    cli(&server, &["snapshot", "rm", NAME]);
    let refused = server.http().post("/v1/sessions", &json!({"snapshot": NAME})).expect(404);
    assert!(refused.text().contains("pull"), "{}", refused.text());
    shows_no_key(&server);
    server.stop();
    assert!(here.objects().is_empty(), "something is left: {:#?}", here.objects());
    before
}

/// The store says no to one who has the wrong keys, and nobody learns which.
fn refused_without_the_right_keys(there: &DataDir, proxy: &Proxy) {
    let server = Server::start_with(there, &options(proxy, WRONG_SECRET));
    let listed = server.http().get("/v1/store/snapshots");
    assert!((400..=599).contains(&listed.status), "{}", listed.text());
    assert!(listed.text().contains("AWS_SECRET_ACCESS_KEY"), "{}", listed.text());
    let (_, events) = server.http().stream(&format!("/v1/snapshots/{NAME}/pull"), &json!({}));
    let told: Vec<String> = events.collect();
    assert!(told.iter().any(|line| line == "event: error"), "{told:?}");
    let shown = binary::run(server.cli().args(["snapshot", "pull", NAME]));
    assert_ne!(shown.code, 0);
    for text in [listed.text(), told.join("\n"), shown.stderr, shown.stdout] {
        tells_no_key(&text);
    }
    shows_no_key(&server);
    server.stop();
}

#[test]
fn a_machine_goes_to_another_host_whoever_is_killed_on_the_way() {
    if !vm::bootable("a_machine_goes_to_another_host_whoever_is_killed_on_the_way") {
        return;
    }
    let store = S3::start();
    let proxy = Proxy::start(&store);
    let before = push(&proxy);

    // Another host, which has not even the image.
    let there = DataDir::new();
    refused_without_the_right_keys(&there, &proxy);
    let right = options(&proxy, s3::KEYS.1);
    let server = Server::start_with(&there, &right);
    let first = killed_in_the_middle(server, &proxy, "pull", (PIECES, PIECES), Held::Answer);
    let server = Server::start_with(&there, &right);
    assert_eq!(names(&server), [""; 0], "half of one is none");
    server.http().post("/v1/sessions", &json!({"snapshot": NAME})).expect(404);
    assert!(files_named(&there.path().join("snapshots"), "memory").is_empty());
    cli(&server, &["snapshot", "pull", NAME]);
    let second = distinct(proxy.requests(PIECES));
    let whole = first.union(&second).count();
    assert!(second.len() < whole, "{} of {whole} pieces were fetched again", second.len());
    let copy = Session::create(&server.http(), &json!({"snapshot": NAME}));
    vm::goes_on(&copy, before);
    copy.delete();

    // A copy that the disk has damaged is refused, and what is broken of it is fetched again.
    let [found] = files_named(&there.path().join("snapshots"), "memory").try_into().expect("one memory");
    flip_bit(&found);
    let refused = server.http().post("/v1/sessions", &json!({"snapshot": NAME}));
    assert!((400..=599).contains(&refused.status), "{}", refused.text());
    assert!(server.http().get("/v1/sessions").expect(200).json::<Vec<Value>>().is_empty());
    proxy.forget();
    cli(&server, &["snapshot", "pull", NAME]);
    assert_eq!(distinct(proxy.requests(PIECES)).len(), 1, "the piece with the bit");
    let copy = Session::create(&server.http(), &json!({"snapshot": NAME}));
    vm::goes_on(&copy, before);
    shows_no_key(&server);

    copy.delete();
    cli(&server, &["snapshot", "rm", NAME]);
    cli(&server, &["snapshot", "rm", "--remote", NAME]);
    assert!(cli(&server, &["snapshot", "list", "--remote"]).lines().count() <= 1);
    server.stop();
    assert!(there.objects().is_empty(), "something is left: {:#?}", there.objects());
}
