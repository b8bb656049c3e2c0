//! The language server routes: against a small server of our own for what real ones seldom do, and against pylsp where it is
//! installed.

use std::{fs, path::Path};

use sandhaus_protocol::lsp::{CompletionList, LspSymbol};
use serde_json::{Value, json};

use crate::support::{Agent, Reply, encoded, eventually};

/// Speaks as the names of documents ask for. Before it is ready it wants replies to its own requests; what it is told goes
/// into `told` in its project, line by line.
const SERVER: &str = r#"#!/usr/bin/env python3
import json, os, subprocess, sys

def read():
    length = 0
    while (line := sys.stdin.buffer.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return json.loads(sys.stdin.buffer.read(length)) if length else sys.exit(0)

def write(message, piecewise=False):
    body = json.dumps({"jsonrpc": "2.0", **message}).encode()
    framed = b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    for piece in ([framed[i:i + 1] for i in range(len(framed))] if piecewise else [framed]):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

def tell(text):
    with open("told", "a") as told:
        told.write(text + "\n")

def ask(id, method, params):
    write({"id": id, "method": method, "params": params})
    answer = read()
    assert answer["id"] == id, answer
    return answer

start = read()
assert start["method"] == "initialize", start
if os.path.exists("refuses"):
    sys.exit("no project of mine")
root = start["params"]["rootUri"]
answers = [
    ask("a", "workspace/configuration", {"items": [{"section": "x"}, {"section": "y"}]})["result"],
    ask(7, "workspace/workspaceFolders", None)["result"][0]["uri"] == root,
    ask(8, "client/registerCapability", {"registrations": []})["result"],
    ask(9, "no/suchThing", {})["error"]["code"],
]
assert answers == [[None, None], True, None, -32601], answers
write({"method": "window/logMessage", "params": {"type": 3, "message": "hello"}})
write({"id": start["id"], "result": {"capabilities": {}}}, piecewise=True)
helper = subprocess.Popen(["sleep", "4321"])
place = {"start": {"line": 1, "character": 2}, "end": {"line": 3, "character": 4}}
while True:
    message = read()
    method, params = message["method"], message.get("params") or {}
    uri = params.get("textDocument", {}).get("uri", "")
    if method in ("textDocument/didOpen", "textDocument/didClose"):
        document = params["textDocument"]
        tell(" ".join([method, uri, document.get("languageId", "-"), document.get("text", "-")]))
    elif method == "$/cancelRequest":
        tell("cancelled")
    elif method == "workspace/symbol":
        symbols = [
            {"name": params["query"], "kind": 5, "location": {"uri": root + "/open.py", "range": place}},
            {"name": "elsewhere", "kind": 5, "location": {"uri": "file:///else%20where.py"}},
        ]
        write({"id": message["id"], "result": symbols})
    elif uri.endswith("dies.py"):
        sys.exit("last words")
    elif uri.endswith("babbles.py"):
        sys.stdout.buffer.write(b"Traceback: not a message\r\n\r\n")
        sys.stdout.buffer.flush()
    elif uri.endswith("boasts.py"):
        sys.stdout.buffer.write(b"Content-Length: 99999999999\r\n\r\n")
        sys.stdout.buffer.flush()
    elif uri.endswith("silent.py"):
        tell("asked")
    elif uri.endswith("fails.py"):
        write({"id": message["id"], "error": {"code": -32603, "message": "it broke"}})
    elif method == "textDocument/documentSymbol":
        inner = {"name": "inner", "kind": 6, "range": place, "selectionRange": place}
        outer = {"name": uri, "kind": 5, "range": place, "selectionRange": place, "children": [inner]}
        write({"id": 999999, "result": "nobody asked"})
        write({"id": message["id"], "result": [outer]})
    elif method == "textDocument/completion":
        items = [{"label": json.dumps([params["position"], params.get("context")]), "documentation": "text"}]
        write({"id": message["id"], "result": items})
"#;

/// An agent whose pylsp is the one above, and a folder `project` in its work directory.
fn agent() -> Agent {
    let agent = Agent::start_prepared(None, |command, home| {
        let program = home.join("bin/pylsp");
        fs::create_dir(home.join("bin")).expect("create");
        fs::write(&program, SERVER).expect("write the server");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).expect("make it executable");
        command.env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", home.join("bin").display()));
    });
    fs::create_dir(agent.work().join("project")).expect("create");
    agent
}

fn project(uri: Option<&str>) -> Value {
    let mut body = json!({ "languageId": "python", "pathToProject": "project" });
    if let Some(uri) = uri {
        body["uri"] = json!(uri);
    }
    body
}

fn symbols(agent: &Agent, uri: &str) -> Reply {
    agent.get(&format!("/lsp/document-symbols?languageId=python&pathToProject=project&uri={}", encoded(uri)))
}

fn told(agent: &Agent) -> String {
    fs::read_to_string(agent.work().join("project/told")).unwrap_or_default()
}

fn servers(agent: &Agent) -> usize {
    agent.descendants_with("bin/pylsp").len()
}

#[test]
fn a_server_is_started_once_and_stopped_whole() {
    let agent = agent();
    assert_eq!(
        agent.post("/lsp/did-open", &project(Some("file://x"))).refusal(),
        (400, "LSP_SERVER_NOT_INITIALIZED".to_owned())
    );
    assert_eq!(
        agent.post("/lsp/stop", &project(None)).refusal(),
        (400, "LSP_SERVER_NOT_INITIALIZED".to_owned())
    );
    let before = agent.descriptors();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(agent.post("/lsp/start", &project(None)).status, 200));
        }
    });
    // The same project by its whole path.
    let whole = json!({ "languageId": "python", "pathToProject": agent.work().join("project/") });
    assert_eq!(agent.post("/lsp/start", &whole).status, 200);
    // A helper that is about to start looks like the server itself.
    eventually("it has started its helper", || agent.descendants_with("sleep 4321").len() == 1);
    assert_eq!(servers(&agent), 1);
    assert_eq!(agent.post("/lsp/stop", &project(None)).status, 200);
    assert_eq!((servers(&agent), agent.descendants_with("sleep 4321").len()), (0, 0));
    assert_eq!(symbols(&agent, "file://x").refusal(), (400, "LSP_SERVER_NOT_INITIALIZED".to_owned()));
    eventually("its pipes are closed", || agent.descriptors() <= before);
    for (body, status, code) in [
        (json!({ "languageId": "cobol", "pathToProject": "project" }), 400, "BAD_REQUEST"),
        (json!({ "languageId": "python", "pathToProject": "none" }), 404, "FILE_NOT_FOUND"),
        (json!({ "languageId": "python", "pathToProject": "" }), 400, "INVALID_FILE_PATH"),
        (json!({ "languageId": "typescript", "pathToProject": "project" }), 503, "LSP_SERVER_NOT_INSTALLED"),
    ] {
        // A machine may have the real one.
        if status == 503 && Path::new("/usr/local/bin/typescript-language-server").exists() {
            continue;
        }
        assert_eq!(agent.post("/lsp/start", &body).refusal(), (status, code.to_owned()), "{body}");
    }
}

#[test]
fn documents_are_called_as_their_client_calls_them() {
    let agent = agent();
    assert_eq!(agent.post("/lsp/start", &project(None)).status, 200);
    let file = agent.work().join("project/open.py");
    fs::write(&file, "first").expect("write");
    let absolute = format!("file://{}", file.display());
    let uri = "file://project/open.py";
    assert_eq!(agent.post("/lsp/did-open", &project(Some(uri))).status, 200);
    fs::write(&file, "second").expect("write");
    assert_eq!(agent.post("/lsp/did-open", &project(Some(uri))).status, 200);
    let found: Vec<LspSymbol> = symbols(&agent, uri).json();
    let shown: Vec<(&str, u32, &str)> = found
        .iter()
        .map(|symbol| (symbol.name.as_str(), symbol.kind, symbol.location.uri.as_str()))
        .collect();
    // The server was asked by the whole path, and its symbols within symbols are one list.
    assert_eq!(shown, [(absolute.as_str(), 5, uri), ("inner", 6, uri)]);
    assert_eq!(found[1].location.range.end.line, 3);
    let found = agent.get("/lsp/workspacesymbols?languageId=python&pathToProject=project&query=Some%20thing");
    let found: Vec<LspSymbol> = found.json();
    let shown: Vec<(&str, &str)> =
        found.iter().map(|symbol| (symbol.name.as_str(), symbol.location.uri.as_str())).collect();
    assert_eq!(shown, [("Some thing", uri), ("elsewhere", "file:///else%20where.py")]);
    let mut wanted = project(Some(uri));
    wanted["position"] = json!({ "line": 3, "character": 4 });
    wanted["context"] = json!({ "triggerKind": 2, "triggerCharacter": "." });
    let list: CompletionList = agent.post("/lsp/completions", &wanted).json();
    let label: Value = serde_json::from_str(&list.items[0].label).expect("JSON");
    assert_eq!(label, json!([wanted["position"], wanted["context"]]));
    assert_eq!(list.items[0].documentation.as_ref().map(|text| text.value.as_str()), Some("text"));
    assert_eq!(agent.post("/lsp/did-close", &project(Some(uri))).status, 200);
    assert_eq!(agent.post("/lsp/did-close", &project(Some(uri))).status, 200);
    let expected = format!(
        "textDocument/didOpen {absolute} python first\ntextDocument/didClose {absolute} - -\n\
         textDocument/didOpen {absolute} python second\ntextDocument/didClose {absolute} - -\n"
    );
    eventually("all was told", || told(&agent).len() >= expected.len());
    assert_eq!(told(&agent), expected);
    fs::write(agent.work().join("bytes.py"), b"\xff").expect("write");
    for (uri, status, code) in [
        ("file://none.py", 404, "FILE_NOT_FOUND"),
        ("file://project", 400, "INVALID_FILE_PATH"),
        ("file://bytes.py", 400, "BAD_REQUEST"),
        ("file://", 400, "INVALID_FILE_PATH"),
    ] {
        assert_eq!(
            agent.post("/lsp/did-open", &project(Some(uri))).refusal(),
            (status, code.to_owned()),
            "{uri}"
        );
    }
}

#[test]
fn a_server_that_ends_says_why_and_another_takes_its_place() {
    let agent = agent();
    for (document, words) in [
        ("dies.py", "last words"),
        ("babbles.py", "does not say how long"),
        ("boasts.py", "more than 16777216 bytes"),
    ] {
        assert_eq!(agent.post("/lsp/start", &project(None)).status, 200);
        let reply = symbols(&agent, &format!("file://project/{document}"));
        assert_eq!(reply.refusal(), (503, "LSP_SERVER_ENDED".to_owned()), "{document}");
        let body = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(body.contains(words), "{body}");
        // Until it is started again it says the same.
        assert_eq!(symbols(&agent, "file://x").refusal().1, "LSP_SERVER_ENDED");
        eventually("nothing of it is left", || {
            servers(&agent) + agent.descendants_with("sleep 4321").len() == 0
        });
    }
    assert_eq!(agent.post("/lsp/start", &project(None)).status, 200);
    let failed = symbols(&agent, "file://project/fails.py");
    assert_eq!(failed.refusal(), (422, "LSP_REQUEST_FAILED".to_owned()));
    assert_eq!(symbols(&agent, "file://project/x.py").status, 200);
    assert_eq!(agent.post("/lsp/stop", &project(None)).status, 200);
    fs::write(agent.work().join("project/refuses"), "").expect("write");
    let refused = agent.post("/lsp/start", &project(None));
    assert_eq!(refused.refusal(), (503, "LSP_SERVER_ENDED".to_owned()));
    assert!(String::from_utf8_lossy(&refused.body).contains("no project of mine"));
}

#[test]
fn a_question_that_nobody_waits_for_is_taken_back() {
    let agent = agent();
    assert_eq!(agent.post("/lsp/start", &project(None)).status, 200);
    let target = "/lsp/document-symbols?languageId=python&pathToProject=project&uri=file://silent.py";
    let mut stream = agent.connect();
    let head = format!("GET {target} HTTP/1.1\r\nhost: agent\r\n\r\n");
    std::io::Write::write_all(&mut stream, head.as_bytes()).expect("send");
    eventually("it is asked", || told(&agent).contains("asked"));
    drop(stream);
    eventually("it is told", || told(&agent).contains("cancelled"));
    assert_eq!(symbols(&agent, "file://x.py").status, 200);
    // One who waits when it is stopped hears of it.
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| symbols(&agent, "file://silent.py").refusal());
        eventually("it is asked again", || told(&agent).matches("asked").count() == 2);
        assert_eq!(agent.post("/lsp/stop", &project(None)).status, 200);
        assert_eq!(waiting.join().expect("an answer"), (503, "LSP_SERVER_ENDED".to_owned()));
    });
}

#[test]
fn the_real_server_for_python() {
    let there = |folder: &str| Path::new(folder).join("pylsp").exists();
    if !["/usr/local/bin", "/usr/bin", "/bin"].into_iter().any(there) {
        eprintln!("SKIPPED: pylsp is not installed");
        return;
    }
    let agent = Agent::start(None);
    fs::create_dir(agent.work().join("project")).expect("create");
    let source = "class Greeter:\n    def greet(self):\n        return 1\n\n\nGreeter().\n";
    fs::write(agent.work().join("project/a.py"), source).expect("write");
    let uri = "file://project/a.py";
    assert_eq!(agent.post("/lsp/start", &project(None)).status, 200);
    assert_eq!(agent.post("/lsp/did-open", &project(Some(uri))).status, 200);
    let found: Vec<LspSymbol> = symbols(&agent, uri).json();
    assert!(found.iter().any(|symbol| symbol.name == "greet" && symbol.location.uri == uri), "{found:?}");
    let mut wanted = project(Some(uri));
    wanted["position"] = json!({ "line": 5, "character": 10 });
    let list: CompletionList = agent.post("/lsp/completions", &wanted).json();
    assert!(list.items.iter().any(|item| item.label.starts_with("greet")), "{list:?}");
}
