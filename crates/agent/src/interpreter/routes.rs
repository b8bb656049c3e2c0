//! The routes under `/process/interpreter`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        Path, State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::StatusCode,
    response::Response,
    routing::{delete as delete_route, get},
};
use sandhaus_protocol::interpreter::{
    CreateContextRequest, DEFAULT, ExecuteCode, InterpreterContext, ListContextsReply,
};
use tokio::{sync::mpsc, time::timeout};

use super::{FRAMES_MAX, Job, PYTHON, Said};
use crate::{
    agent::Agent,
    error::{Error, Result},
    execute::check_variables,
    websocket,
};

/// Largest message of a client.
const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// How long a client may take to say what it wants, and to take one message.
const REQUEST_WAIT: Duration = Duration::from_secs(30);
const SEND_WAIT: Duration = Duration::from_secs(60);

/// How long code may take that says nothing of it.
const LIMIT: Duration = Duration::from_secs(600);

/// Most bytes of the reason in a close frame.
const REASON_BYTES_MAX: usize = 123;

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/process/interpreter/context", get(list).post(create))
        .route("/process/interpreter/context/{id}", delete_route(delete))
        .route("/process/interpreter/execute", get(execute))
}

/// `POST /process/interpreter/context`.
pub(crate) async fn create(
    State(agent): State<Arc<Agent>>,
    request: Option<Json<CreateContextRequest>>,
) -> Result<Json<InterpreterContext>> {
    let request = request.map(|Json(request)| request).unwrap_or_default();
    match request.language.as_deref() {
        None | Some("" | PYTHON) => {}
        Some(other) => {
            return Err(Error::invalid(format_args!("unsupported language {other:?}: only {PYTHON}")));
        }
    }
    let cwd = agent.directory(request.cwd.as_deref());
    Ok(Json(agent.contexts.create(&agent, cwd)?.describe()))
}

/// `GET /process/interpreter/context`.
pub(crate) async fn list(State(agent): State<Arc<Agent>>) -> Json<ListContextsReply> {
    Json(ListContextsReply { contexts: agent.contexts.list() })
}

/// `DELETE /process/interpreter/context/{id}`.
pub(crate) async fn delete(
    State(agent): State<Arc<Agent>>,
    Path(id): Path<String>,
) -> Result<Json<serde_json::Value>> {
    agent.contexts.delete(&id).await?;
    Ok(Json(serde_json::json!({ "message": "context deleted" })))
}

/// `GET /process/interpreter/execute`.
pub(crate) async fn execute(State(agent): State<Arc<Agent>>, upgrade: WebSocketUpgrade) -> Response {
    let mut upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    websocket::select_protocol(&mut upgrade);
    upgrade.on_upgrade(move |socket| serve(agent, socket))
}

async fn serve(agent: Arc<Agent>, mut socket: WebSocket) {
    // Who says nothing is gone, or might as well be.
    let Ok(Some(message)) = timeout(REQUEST_WAIT, websocket::receive(&mut socket)).await else { return };
    let mut frames = match submit(&agent, &message) {
        Ok(frames) => frames,
        Err((code, reason)) => return end(socket, code, &reason).await,
    };
    loop {
        let said = tokio::select! {
            // Both arms are cancel-safe.
            said = frames.recv() => said,
            message = websocket::receive(&mut socket) => match message {
                // Clients have nothing more to say.
                Some(_) => continue,
                // Dropping the receiver interrupts the code.
                None => return,
            },
        };
        match said {
            Some(Said::Frame(frame)) => {
                let text = serde_json::to_string(&frame).expect("frames have string keys and finite numbers");
                let sent = timeout(SEND_WAIT, socket.send(Message::Text(text.into()))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    return;
                }
            }
            Some(Said::End(code, reason)) => return end(socket, code, &reason).await,
            None => return end(socket, close_code::ERROR, "the context has ended").await,
        }
    }
}

/// Has the code wait for its turn; else code and reason of the refusal.
fn submit(agent: &Arc<Agent>, message: &Bytes) -> std::result::Result<mpsc::Receiver<Said>, (u16, String)> {
    let request: ExecuteCode = serde_json::from_slice(message)
        .map_err(|error| (close_code::UNSUPPORTED, format!("invalid request: {error}")))?;
    let limit = match request.timeout.map(u64::try_from) {
        None => Some(LIMIT),
        Some(Ok(0)) => None,
        Some(Ok(seconds)) => Some(Duration::from_secs(seconds)),
        Some(Err(_)) => return Err((close_code::POLICY, "timeout is negative".to_owned())),
    };
    let refused = |error: Error| {
        let code = match error.status {
            StatusCode::TOO_MANY_REQUESTS => close_code::AGAIN,
            _ => close_code::POLICY,
        };
        (code, error.message.into_owned())
    };
    check_variables(request.envs.as_ref()).map_err(refused)?;
    let id = request.context_id.as_deref().filter(|id| !id.is_empty()).unwrap_or(DEFAULT);
    let context = agent.contexts.find_or_default(agent, id).map_err(refused)?;
    let (sender, receiver) = mpsc::channel(FRAMES_MAX);
    let job = Job {
        code: request.code,
        envs: request.envs.unwrap_or_default(),
        limit,
        charts: request.charts,
        frames: sender,
    };
    context.submit(job).map_err(refused)?;
    Ok(receiver)
}

async fn end(socket: WebSocket, code: u16, reason: &str) {
    let cut = reason.floor_char_boundary(REASON_BYTES_MAX);
    websocket::close(socket, CloseFrame { code, reason: reason[..cut].into() }).await;
}
