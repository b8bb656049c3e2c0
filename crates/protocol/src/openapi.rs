//! The description of the toolbox API for programs (OpenAPI 3.1), made from the wire types of this crate.
//!
//! Routes are listed here once, by area; a test of the agent holds this list against the routes that it really has.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::{code, files, git, hello, interpreter, lsp, process, shell, system, toolbox, watch};

/// The whole document.
pub fn document() -> Value {
    let mut api = Api::default();
    machine(&mut api);
    file_routes(&mut api);
    process_routes(&mut api);
    session_routes(&mut api);
    terminal_routes(&mut api);
    code_routes(&mut api);
    git_routes(&mut api);
    git_exchange_routes(&mut api);
    language_routes(&mut api);
    desktop_routes(&mut api);
    own_routes(&mut api);
    api.finish()
}

/// A document in the making.
#[derive(Default)]
struct Api {
    tag: &'static str,
    paths: BTreeMap<&'static str, Map<String, Value>>,
    schemas: BTreeMap<String, Value>,
}

/// One operation, added when it is dropped.
struct Operation<'a> {
    api: &'a mut Api,
    method: &'static str,
    path: &'static str,
    value: Value,
}

impl Api {
    fn get(&mut self, path: &'static str, summary: &str) -> Operation<'_> {
        self.operation("get", path, summary)
    }

    fn post(&mut self, path: &'static str, summary: &str) -> Operation<'_> {
        self.operation("post", path, summary)
    }

    fn delete(&mut self, path: &'static str, summary: &str) -> Operation<'_> {
        self.operation("delete", path, summary)
    }

    fn operation(&mut self, method: &'static str, path: &'static str, summary: &str) -> Operation<'_> {
        let parameters: Vec<Value> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .map(|name| {
                let kind = if name == "port" { "integer" } else { "string" };
                json!({ "name": name, "in": "path", "required": true, "schema": { "type": kind } })
            })
            .collect();
        let refusal = self.reference::<toolbox::Refusal>();
        let default = json!({
            "description": "what is wrong",
            "content": { "application/json": { "schema": refusal } },
        });
        let value = json!({
            "tags": [self.tag],
            "summary": summary,
            "parameters": parameters,
            "responses": { "default": default },
        });
        Operation { api: self, method, path, value }
    }

    /// A reference to a type, which comes into the document with all that it is made of.
    fn reference<T: ToSchema>(&mut self) -> Value {
        let mut used = vec![(T::name().into_owned(), T::schema())];
        T::schemas(&mut used);
        for (name, schema) in used {
            let schema = serde_json::to_value(schema).expect("a schema is JSON");
            self.schemas.entry(name).or_insert(schema);
        }
        json!({ "$ref": format!("#/components/schemas/{}", T::name()) })
    }

    fn finish(self) -> Value {
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Sandhaus toolbox",
                "description": "What the agent inside of a sandbox serves.",
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
                "version": env!("CARGO_PKG_VERSION"),
            },
            "paths": self.paths,
            "components": { "schemas": self.schemas },
        })
    }
}

impl Operation<'_> {
    fn parameter(mut self, name: &str, kind: &str, is_needed: Need) -> Self {
        let required = is_needed == Need::Required;
        let parameter =
            json!({ "name": name, "in": "query", "required": required, "schema": { "type": kind } });
        self.value["parameters"].as_array_mut().expect("made as one").push(parameter);
        self
    }

    /// Parameters of the query that must be there.
    fn wants(self, names: &[&str]) -> Self {
        names.iter().fold(self, |operation, name| operation.parameter(name, "string", Need::Required))
    }

    /// Those that may.
    fn takes(self, names: &[(&str, &str)]) -> Self {
        names.iter().fold(self, |operation, (name, kind)| operation.parameter(name, kind, Need::Optional))
    }

    fn body<T: ToSchema>(mut self) -> Self {
        let schema = self.api.reference::<T>();
        self.value["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        self
    }

    fn raw_body(mut self, kinds: &[&str]) -> Self {
        let content: Map<String, Value> =
            kinds.iter().map(|kind| ((*kind).to_owned(), json!({ "schema": {} }))).collect();
        self.value["requestBody"] = json!({ "required": true, "content": content });
        self
    }

    fn answers<T: ToSchema>(self) -> Self {
        self.answers_with::<T>("200")
    }

    fn answers_with<T: ToSchema>(mut self, status: &str) -> Self {
        let schema = self.api.reference::<T>();
        self.value["responses"][status] =
            json!({ "description": "done", "content": { "application/json": { "schema": schema } } });
        self
    }

    /// A status that stands for an answer of its own as well as for a refusal.
    fn answers_or_refuses<T: ToSchema>(mut self, status: &str) -> Self {
        let schemas = [self.api.reference::<T>(), self.api.reference::<toolbox::Refusal>()];
        self.value["responses"][status] = json!({
            "description": "what is wrong",
            "content": { "application/json": { "schema": { "anyOf": schemas } } },
        });
        self
    }

    fn answers_list<T: ToSchema>(mut self) -> Self {
        let items = self.api.reference::<T>();
        let schema = json!({ "type": "array", "items": items });
        self.value["responses"]["200"] =
            json!({ "description": "done", "content": { "application/json": { "schema": schema } } });
        self
    }

    /// An answer that is no JSON, or JSON without a type of its own.
    fn answers_raw(mut self, status: &str, kind: &str) -> Self {
        self.value["responses"][status] =
            json!({ "description": "done", "content": { kind: { "schema": {} } } });
        self
    }

    /// Another form of an answer: older clients get it.
    fn or_raw(mut self, status: &str, kind: &str) -> Self {
        self.value["responses"][status]["content"][kind] = json!({ "schema": {} });
        self
    }

    fn answers_nothing(mut self, status: &str) -> Self {
        self.value["responses"][status] = json!({ "description": "done" });
        self
    }

    /// Goes on as a WebSocket.
    fn upgrades(self) -> Self {
        self.answers_nothing("101")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    Optional,
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let value = std::mem::take(&mut self.value);
        self.api.paths.entry(self.path).or_default().insert(self.method.to_owned(), value);
    }
}

/// Our parameter beside those of the contract.
const ROOT: (&str, &str) = ("root", "string");

const JSON: &str = "application/json";

fn machine(api: &mut Api) {
    api.tag = "system";
    api.get("/version", "Version of the agent").answers_raw("200", JSON);
    api.get("/health", "Whether it answers").answers_raw("200", JSON);
    api.get("/work-dir", "Where processes start").answers::<system::Directory>();
    api.get("/project-dir", "The same under its older name").answers::<system::Directory>();
    api.get("/user-home-dir", "The workload's home").answers::<system::Directory>();
    api.post("/init", "What a control plane says once").body::<system::Initialize>().answers_raw("200", JSON);
    api.post("/env", "Change the environment of later processes")
        .body::<system::UpdateEnv>()
        .answers_raw("200", JSON);
    api.get("/system/metrics", "What the sandbox uses").answers::<system::Metrics>();
    api.get("/memory-stats", "Its memory").answers::<system::MemoryStats>();
    api.tag = "ports";
    api.get("/port", "On which ports something listens").answers::<system::PortList>();
    api.get("/port/{port}/in-use", "Whether a port from 3000 to 9999 takes connections")
        .answers::<system::PortInUse>();
    for (path, summary) in [
        ("/proxy/{port}", "The front page of a port's server"),
        ("/proxy/{port}/{rest}", "Any path of a port's server, and its WebSockets; every method"),
    ] {
        api.get(path, summary).answers_raw("200", "*/*");
    }
}

fn file_routes(api: &mut Api) {
    api.tag = "files";
    api.get("/files", "Entries of a folder, or of a tree with a depth")
        .takes(&[("path", "string"), ("depth", "integer"), ROOT])
        .answers_list::<toolbox::FileInfo>();
    api.delete("/files", "Remove a file, or a folder with all in it")
        .wants(&["path"])
        .takes(&[("recursive", "boolean"), ROOT])
        .answers_nothing("204");
    api.get("/files/info", "A file as it stands")
        .wants(&["path"])
        .takes(&[ROOT])
        .answers::<toolbox::FileInfo>();
    api.post("/files/folder", "Make a folder and those above it")
        .wants(&["path"])
        .takes(&[("mode", "string"), ROOT])
        .answers_nothing("201");
    api.get("/files/download", "Content of a file, or a range of it")
        .wants(&["path"])
        .takes(&[("offset", "integer"), ("limit", "integer"), ROOT])
        .answers_raw("200", "application/octet-stream")
        .answers_raw("206", "application/octet-stream");
    api.post("/files/bulk-download", "Contents of many files, a part each")
        .body::<toolbox::BulkDownloadRequest>()
        .answers_raw("200", "multipart/form-data");
    api.post("/files/upload", "Replace a file by the field `file` of a form")
        .wants(&["path"])
        .takes(&[ROOT])
        .raw_body(&["multipart/form-data"])
        .answers_nothing("200");
    api.post("/files/upload-v2", "Replace a file by the body, or by the field `file` of a form")
        .wants(&["path"])
        .takes(&[ROOT])
        .raw_body(&["application/octet-stream", "multipart/form-data"])
        .answers::<toolbox::UploadReply>();
    api.post("/files/bulk-upload", "Replace many files by fields files[N].path and files[N].file of a form")
        .raw_body(&["multipart/form-data"])
        .answers::<toolbox::BulkUploadReply>()
        .answers_or_refuses::<toolbox::BulkUploadReply>("400");
    api.get("/files/find", "Lines that hold a text")
        .wants(&["path", "pattern"])
        .answers_list::<toolbox::Match>();
    api.get("/files/search", "Names that match a shell pattern")
        .wants(&["path", "pattern"])
        .answers::<toolbox::SearchReply>();
    api.post("/files/replace", "Replace a text in files")
        .body::<toolbox::ReplaceRequest>()
        .answers_list::<toolbox::ReplaceResult>();
    api.post("/files/move", "Move a file or folder to where nothing is")
        .wants(&["source", "destination"])
        .takes(&[ROOT])
        .answers_nothing("200");
    api.post("/files/permissions", "Change mode, owner and group")
        .wants(&["path"])
        .takes(&[("mode", "string"), ("owner", "string"), ("group", "string"), ROOT])
        .answers_nothing("200");
    api.get(watch::PATH, "Changes as they happen, as server-sent events")
        .wants(&["path"])
        .takes(&[("recursive", "boolean"), ROOT])
        .answers_raw("200", "text/event-stream");
    api.reference::<watch::Change>();
    api.post(files::LINK_PATH, "Make a symbolic link").body::<files::Link>().answers_nothing("204");
}

fn process_routes(api: &mut Api) {
    api.tag = "process";
    api.post("/process/execute", "Run a command to its end")
        .body::<toolbox::ExecuteRequest>()
        .answers::<toolbox::ExecuteReply>();
    api.post("/process/code-run", "Run code of a language to its end")
        .body::<code::CodeRunRequest>()
        .answers::<code::CodeRunReply>();
}

fn session_routes(api: &mut Api) {
    api.tag = "sessions";
    api.get("/process/session", "All sessions").answers_list::<toolbox::Session>();
    api.post("/process/session", "Make one").body::<toolbox::CreateSessionRequest>().answers_nothing("201");
    api.get("/process/session/{id}", "One and its commands").answers::<toolbox::Session>();
    api.delete("/process/session/{id}", "End it and all that it started").answers_nothing("204");
    api.post("/process/session/{id}/exec", "Run a command in it")
        .body::<toolbox::SessionExecuteRequest>()
        .answers::<toolbox::SessionExecuteReply>()
        .answers_with::<toolbox::SessionExecuteReply>("202");
    api.get("/process/session/{id}/command/{command_id}", "A command of it").answers::<toolbox::Command>();
    api.post("/process/session/{id}/command/{command_id}/input", "Write to a command")
        .body::<toolbox::SessionInputRequest>()
        .answers_nothing("204");
    api.get("/process/session/{id}/command/{command_id}/logs", "What a command printed, or prints")
        .takes(&[("follow", "boolean"), ("offset", "integer")])
        .answers::<toolbox::SessionLogs>()
        .or_raw("200", "text/plain")
        .upgrades();
    api.get("/process/session/entrypoint", "The command that came with the sandbox")
        .answers::<toolbox::Session>();
    api.delete("/process/session/entrypoint", "Refused: it is the sandbox's own");
    api.get("/process/session/entrypoint/logs", "What it printed, or prints")
        .takes(&[("follow", "boolean"), ("offset", "integer")])
        .answers::<toolbox::SessionLogs>()
        .or_raw("200", "text/plain")
        .upgrades();
}

fn terminal_routes(api: &mut Api) {
    api.tag = "terminals";
    api.get("/process/pty", "All terminals").answers::<toolbox::PtyListReply>();
    api.post("/process/pty", "Make one")
        .body::<toolbox::PtyCreateRequest>()
        .answers_with::<toolbox::PtyCreateReply>("201");
    api.get("/process/pty/{id}", "One as it stands").answers::<toolbox::PtySessionInfo>();
    api.delete("/process/pty/{id}", "End it").answers_raw("200", JSON);
    api.get("/process/pty/{id}/connect", "Attach to it by a WebSocket").upgrades();
    api.get("/process/pty/create-connect", "Make one and attach to it by a WebSocket").upgrades();
    api.post("/process/pty/{id}/resize", "Change its size")
        .body::<toolbox::PtyResizeRequest>()
        .answers::<toolbox::PtySessionInfo>();
}

fn code_routes(api: &mut Api) {
    api.tag = "interpreter";
    api.get("/process/interpreter/context", "All contexts").answers::<interpreter::ListContextsReply>();
    api.post("/process/interpreter/context", "Make one")
        .body::<interpreter::CreateContextRequest>()
        .answers::<interpreter::InterpreterContext>();
    api.delete("/process/interpreter/context/{id}", "End it").answers_raw("200", JSON);
    api.get("/process/interpreter/execute", "Run code by a WebSocket").upgrades();
}

fn git_routes(api: &mut Api) {
    api.tag = "git";
    api.post("/git/init", "Make a repository").body::<git::GitInitRequest>().answers_nothing("201");
    api.get("/git/status", "How a repository stands").wants(&["path"]).answers::<git::GitStatus>();
    api.get("/git/history", "Its commits").wants(&["path"]).answers_list::<git::GitCommitInfo>();
    api.get("/git/branches", "Its branches").wants(&["path"]).answers::<git::ListBranchResponse>();
    api.post("/git/branches", "Make a branch").body::<git::GitBranchRequest>().answers_nothing("201");
    api.delete("/git/branches", "Remove a branch").body::<git::GitBranchRequest>().answers_nothing("204");
    api.post("/git/checkout", "Change to a branch or commit")
        .body::<git::GitCheckoutRequest>()
        .answers_nothing("200");
    api.post("/git/add", "Stage files").body::<git::GitAddRequest>().answers_nothing("200");
    api.post("/git/commit", "Commit what is staged")
        .body::<git::GitCommitRequest>()
        .answers::<git::GitCommitResponse>();
    api.post("/git/reset", "Go back to a commit").body::<git::GitResetRequest>().answers_nothing("200");
    api.post("/git/restore", "Take files back").body::<git::GitRestoreRequest>().answers_nothing("200");
}

fn git_exchange_routes(api: &mut Api) {
    api.post("/git/clone", "Copy a repository from elsewhere")
        .body::<git::GitCloneRequest>()
        .answers_nothing("200");
    api.post("/git/pull", "Take in what is new elsewhere")
        .body::<git::GitExchangeRequest>()
        .answers_nothing("200");
    api.post("/git/push", "Give what is new here").body::<git::GitExchangeRequest>().answers_nothing("200");
    api.get("/git/remotes", "Where elsewhere is").wants(&["path"]).answers::<git::ListRemotesResponse>();
    api.post("/git/remotes", "Name a place elsewhere")
        .body::<git::GitAddRemoteRequest>()
        .answers_nothing("201");
    api.get("/git/config", "A setting")
        .wants(&["key"])
        .takes(&[("path", "string"), ("scope", "string")])
        .answers::<git::GitConfigResponse>();
    api.post("/git/config", "Change a setting").body::<git::GitSetConfigRequest>().answers_nothing("200");
    api.post("/git/config/user", "Say who commits")
        .body::<git::GitConfigureUserRequest>()
        .answers_nothing("200");
    api.post("/git/credentials", "Keep credentials for a host")
        .body::<git::GitAuthenticateRequest>()
        .answers_nothing("200");
}

fn language_routes(api: &mut Api) {
    api.tag = "lsp";
    for (path, summary) in [("/lsp/start", "Start a language server"), ("/lsp/stop", "End it")] {
        api.post(path, summary).body::<lsp::LspServerRequest>().answers_nothing("200");
    }
    for (path, summary) in [("/lsp/did-open", "A document is open"), ("/lsp/did-close", "It no longer is")] {
        api.post(path, summary).body::<lsp::LspDocumentRequest>().answers_nothing("200");
    }
    api.post("/lsp/completions", "What may come at a place in a document")
        .body::<lsp::LspCompletionParams>()
        .answers::<lsp::CompletionList>();
    api.get("/lsp/document-symbols", "Names that a document makes")
        .wants(&["languageId", "pathToProject", "uri"])
        .answers_list::<lsp::LspSymbol>();
    api.get("/lsp/workspacesymbols", "Names of a project")
        .wants(&["languageId", "pathToProject", "query"])
        .answers_list::<lsp::LspSymbol>();
}

fn desktop_routes(api: &mut Api) {
    api.tag = "computeruse";
    for (path, summary) in [
        ("/computeruse/{rest}", "Refused (503): this agent serves no desktop"),
        ("/computeruse/recordings", "Refused (503): nothing records"),
        ("/computeruse/recordings/{rest}", "Refused (503): nothing records"),
    ] {
        api.get(path, summary);
    }
}

/// Ours alone: for the host, and for streams that go on after a lost connection.
fn own_routes(api: &mut Api) {
    const FRAMES: &str = crate::frame::CONTENT_TYPE;
    api.tag = "sandhaus";
    api.post(hello::PATH, "Greeting of the host")
        .body::<hello::HelloRequest>()
        .answers::<hello::HelloReply>();
    api.get("/sandhaus/process", "All processes").answers_list::<process::Process>();
    api.post("/sandhaus/process", "Start a process and stream it")
        .body::<process::Spawn>()
        .answers_raw("200", FRAMES);
    api.get("/sandhaus/process/{id}", "One as it stands").answers::<process::Process>();
    api.delete("/sandhaus/process/{id}", "End it and all that it started").answers_nothing("204");
    api.get("/sandhaus/process/{id}/output", "What it prints, from an offset").answers_raw("200", FRAMES);
    api.post("/sandhaus/process/{id}/stdin", "Write to it")
        .raw_body(&["application/octet-stream"])
        .answers_nothing("204");
    api.post("/sandhaus/process/{id}/signal", "Send it a signal")
        .body::<process::Signal>()
        .answers_nothing("204");
    api.post("/sandhaus/process/{id}/resize", "Change the size of its terminal")
        .body::<process::Resize>()
        .answers_nothing("204");
    api.post("/sandhaus/script", "Run a command in a shell of its own")
        .body::<shell::ShellExec>()
        .answers_raw("200", FRAMES);
    api.get("/sandhaus/script/{exec_id}", "What it prints, from an offset").answers_raw("200", FRAMES);
    api.get("/sandhaus/shell/{name}", "A persistent shell").answers::<shell::ShellInfo>();
    api.post("/sandhaus/shell/{name}/exec", "Run a command in it")
        .body::<shell::ShellExec>()
        .answers_raw("200", FRAMES);
    api.get("/sandhaus/shell/{name}/exec/{exec_id}", "What a command prints, from an offset")
        .answers_raw("200", FRAMES);
    api.get("/sandhaus/shell/{name}/log", "All that was printed, from an offset").answers_raw("200", FRAMES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    for (name, value) in fields {
                        match (name.as_str(), value) {
                            ("$ref", Value::String(target)) => found.push(target.clone()),
                            _ => references(value, found),
                        }
                    }
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for target in found {
            let pointer = target.strip_prefix('#').expect("a place in the document");
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }
}
