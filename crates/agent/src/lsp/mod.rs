//! The language server routes: one server per language and project, spoken to over its standard streams.
//!
//! Files: [`self`] the routes, [`server`] one server, [`framing`] how messages follow each other, [`documents`] paths and
//! URIs, [`answers`] what servers say in the shapes of the contract.

mod answers;
mod documents;
mod framing;
mod server;

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::{get, post},
};
use sandhaus_protocol::lsp::{
    CompletionList, LspCompletionParams, LspDocumentRequest, LspServerRequest, LspSymbol, LspWorkspaceQuery,
};
use serde_json::json;

use self::{documents::server_uri, server::Server};
use crate::{
    agent::Agent,
    error::{Error, Result},
};

/// Most servers at once.
const SERVERS_MAX: usize = 16;

/// A language that there is a server for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Language {
    Python,
    TypeScript,
    JavaScript,
}

impl Language {
    fn parse(id: &str) -> Result<Self> {
        match id {
            "python" => Ok(Self::Python),
            "typescript" => Ok(Self::TypeScript),
            "javascript" => Ok(Self::JavaScript),
            other => Err(Error::invalid(format_args!(
                "no language server for {other:?}: say python, typescript or javascript"
            ))),
        }
    }

    fn id(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::TypeScript => "typescript",
            Self::JavaScript => "javascript",
        }
    }

    /// Program and arguments of its server.
    fn command(self) -> &'static [&'static str] {
        match self {
            Self::Python => &["pylsp"],
            Self::TypeScript | Self::JavaScript => &["typescript-language-server", "--stdio"],
        }
    }

    /// How its server is installed.
    fn remedy(self) -> &'static str {
        match self {
            Self::Python => "pip install python-lsp-server",
            Self::TypeScript | Self::JavaScript => "npm install -g typescript typescript-language-server",
        }
    }
}

/// The servers by language and project.
#[derive(Default)]
pub(crate) struct Servers {
    by_project: Mutex<BTreeMap<(Language, String), Arc<Server>>>,
}

impl Servers {
    fn table(&self) -> MutexGuard<'_, BTreeMap<(Language, String), Arc<Server>>> {
        self.by_project.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/lsp/start", post(start))
        .route("/lsp/stop", post(stop))
        .route("/lsp/did-open", post(did_open))
        .route("/lsp/did-close", post(did_close))
        .route("/lsp/completions", post(completions))
        .route("/lsp/document-symbols", get(document_symbols))
        .route("/lsp/workspacesymbols", get(workspace_symbols))
}

/// `POST /lsp/start`. A server that runs already is left as it is.
async fn start(State(agent): State<Arc<Agent>>, Json(request): Json<LspServerRequest>) -> Result<StatusCode> {
    let language = Language::parse(&request.language_id)?;
    let project = documents::project_path(&agent.workdir, &request.path_to_project)?;
    let looked_at = project.clone();
    let found = agent.on_file_thread(move || fs::metadata(looked_at).map(|found| found.is_dir())).await;
    if !found.map_err(|error| Error::file(&request.path_to_project, &error))? {
        return Err(Error::invalid_path(format_args!("not a directory: {}", request.path_to_project)));
    }
    let key = (language, project);
    let server = {
        let mut table = agent.servers.table();
        match table.get(&key).filter(|server| !server.has_ended()) {
            Some(server) => Arc::clone(server),
            None => {
                table.retain(|_, server| !server.has_ended());
                if table.len() >= SERVERS_MAX {
                    return Err(Error::too_many(format_args!(
                        "{SERVERS_MAX} language servers run already: stop some"
                    )));
                }
                let server = Server::start(&agent, language, &key.1)?;
                table.insert(key, Arc::clone(&server));
                server
            }
        }
    };
    server.ready().await?;
    Ok(StatusCode::OK)
}

/// `POST /lsp/stop`.
async fn stop(State(agent): State<Arc<Agent>>, Json(request): Json<LspServerRequest>) -> Result<StatusCode> {
    let language = Language::parse(&request.language_id)?;
    let project = documents::project_path(&agent.workdir, &request.path_to_project)?;
    let removed = agent.servers.table().remove(&(language, project));
    let server = removed.ok_or_else(|| not_initialized(language, &request.path_to_project))?;
    server.stop(&agent).await;
    Ok(StatusCode::OK)
}

fn not_initialized(language: Language, project: &str) -> Error {
    let message =
        format!("bad request: no language server for {} runs in {project}: start it first", language.id());
    Error::coded(StatusCode::BAD_REQUEST, "LSP_SERVER_NOT_INITIALIZED", message)
}

/// The server of a project, ready to be asked, and that project's path.
async fn server_of(agent: &Arc<Agent>, language: &str, project: &str) -> Result<(Arc<Server>, String)> {
    let language = Language::parse(language)?;
    let path = documents::project_path(&agent.workdir, project)?;
    let key = (language, path);
    let server =
        agent.servers.table().get(&key).cloned().ok_or_else(|| not_initialized(language, project))?;
    server.ready().await?;
    Ok((server, key.1))
}

/// The path of a document: that of an open one, or what its URI means.
async fn path_of(agent: &Arc<Agent>, server: &Server, project: &str, uri: &str) -> Result<String> {
    let open = server.documents().path(uri);
    if let Some(path) = open {
        return Ok(path);
    }
    let (workdir, project, uri) = (agent.workdir.clone(), project.to_owned(), uri.to_owned());
    agent.on_file_thread(move || documents::document_path(&workdir, &project, &uri)).await
}

/// `POST /lsp/did-open`. A document that is open already is given to the server anew.
async fn did_open(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<LspDocumentRequest>,
) -> Result<StatusCode> {
    let (server, project) = server_of(&agent, &request.language_id, &request.path_to_project).await?;
    let path = path_of(&agent, &server, &project, &request.uri).await?;
    let read = path.clone();
    let text = agent.on_file_thread(move || documents::read(&read)).await?;
    let document = server_uri(&path);
    let _order = server.changes.lock().await;
    let open_before = server.documents().open(&request.uri, &path)?;
    if open_before {
        server.tell("textDocument/didClose", json!({ "textDocument": { "uri": document } })).await?;
    }
    let params = json!({
        "textDocument": { "uri": document, "languageId": request.language_id, "version": 1, "text": text },
    });
    server.tell("textDocument/didOpen", params).await?;
    Ok(StatusCode::OK)
}

/// `POST /lsp/did-close`. A document that is not open stays so.
async fn did_close(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<LspDocumentRequest>,
) -> Result<StatusCode> {
    let (server, project) = server_of(&agent, &request.language_id, &request.path_to_project).await?;
    let path = path_of(&agent, &server, &project, &request.uri).await?;
    let _order = server.changes.lock().await;
    let was_open = server.documents().close(&path);
    if was_open {
        let params = json!({ "textDocument": { "uri": server_uri(&path) } });
        server.tell("textDocument/didClose", params).await?;
    }
    Ok(StatusCode::OK)
}

/// `POST /lsp/completions`.
async fn completions(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<LspCompletionParams>,
) -> Result<Json<CompletionList>> {
    let (server, project) = server_of(&agent, &request.language_id, &request.path_to_project).await?;
    let path = path_of(&agent, &server, &project, &request.uri).await?;
    let mut params = json!({ "textDocument": { "uri": server_uri(&path) }, "position": request.position });
    if let Some(context) = request.context {
        params["context"] = json!(context);
    }
    let answer = server.ask("textDocument/completion", params).await?;
    Ok(Json(answers::completions(&answer)))
}

/// `GET /lsp/document-symbols`.
async fn document_symbols(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<LspDocumentRequest>,
) -> Result<Json<Vec<LspSymbol>>> {
    let (server, project) = server_of(&agent, &query.language_id, &query.path_to_project).await?;
    let path = path_of(&agent, &server, &project, &query.uri).await?;
    let document = server_uri(&path);
    let params = json!({ "textDocument": { "uri": document } });
    let answer = server.ask("textDocument/documentSymbol", params).await?;
    // All of them are of the document that was asked about.
    Ok(Json(answers::symbols(&answer, &query.uri, |_| query.uri.clone())))
}

/// `GET /lsp/workspacesymbols`.
async fn workspace_symbols(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<LspWorkspaceQuery>,
) -> Result<Json<Vec<LspSymbol>>> {
    let (server, _) = server_of(&agent, &query.language_id, &query.path_to_project).await?;
    let answer = server.ask("workspace/symbol", json!({ "query": query.query })).await?;
    let documents = server.documents();
    Ok(Json(answers::symbols(&answer, &query.path_to_project, |uri| documents.name_of(uri))))
}
