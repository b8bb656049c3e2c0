//! The file routes: [`self`] for what is small, [`transfer`] for contents in and out, [`multipart`] for many at once,
//! [`form`] for how those come, [`search`] for looking into them, [`watch`] for looking on. All work on files happens on threads that have the workload's rights.

mod form;
mod multipart;
mod search;
mod transfer;
mod watch;

use std::{io, sync::Arc};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use sandhaus_protocol::{
    files::{LINK_PATH, LIST_ENTRIES_MAX, Link, PATH_BYTES_MAX},
    toolbox::FileInfo,
    watch::PATH as WATCH_PATH,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::watch::Streams;
use crate::{
    accounts::{self, Register},
    agent::Agent,
    clock,
    error::{Error, Result},
    sys::{self, Entry, EntryKind, NotMoved, Place, Removal},
};

/// Permission bits that can be asked for.
const MODE_MAX: u32 = 0o7777;

/// Mode of a new folder when none is asked for.
const FOLDER_MODE: u32 = 0o755;

/// The routes of this area.
pub(crate) fn routes() -> Router<Arc<Agent>> {
    Router::new()
        .route("/files", get(list).delete(delete))
        .route("/files/", get(list).delete(delete))
        .route("/files/info", get(info))
        .route("/files/folder", post(folder))
        .route("/files/move", post(move_file))
        .route("/files/permissions", post(permissions))
        .route(LINK_PATH, post(link))
        .route("/files/download", get(transfer::download))
        .route("/files/upload", post(transfer::upload_form))
        .route("/files/upload-v2", post(transfer::upload))
        .route("/files/bulk-upload", post(multipart::upload))
        .route("/files/bulk-download", post(multipart::download))
        .route("/files/find", get(search::find))
        .route("/files/search", get(search::search))
        .route("/files/replace", post(search::replace))
        .route(WATCH_PATH, get(watch::watch))
}

/// A path, and the root it may be confined to.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Target {
    pub(crate) path: String,
    pub(crate) root: Option<String>,
}

impl Target {
    /// Where it leads, from the agent's work directory.
    pub(crate) fn place(&self, workdir: &str) -> Result<Place> {
        place(self.root.as_deref(), workdir, &self.path)
    }
}

fn place(root: Option<&str>, workdir: &str, path: &str) -> Result<Place> {
    if path.is_empty() || path.len() > PATH_BYTES_MAX {
        return Err(Error::invalid_path(format_args!("a path has 1 to {PATH_BYTES_MAX} bytes")));
    }
    if let Some(root) = root.filter(|root| !root.starts_with('/')) {
        return Err(Error::invalid_path(format_args!("root is not absolute: {root}")));
    }
    Place::new(root, workdir, path).map_err(|error| Error::file(path, &error))
}

/// Runs file work on a thread that has the workload's rights and names the path in its failure.
pub(crate) async fn work<T: Send + 'static>(
    agent: &Arc<Agent>,
    target: Target,
    action: impl FnOnce(Place) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let workdir = agent.workdir.clone();
    agent
        .on_file_thread(move || {
            let place = target.place(&workdir)?;
            action(place).map_err(|error| Error::file(&target.path, &error))
        })
        .await
}

/// The same for work that may take long: only so much of it is done at once that a thread is left for what is short.
pub(super) async fn long_work<T: Send + 'static>(
    agent: &Arc<Agent>,
    target: Target,
    action: impl FnOnce(Place) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let _place =
        agent.long_file_work.acquire().await.map_err(|_| Error::unavailable("the agent is ending"))?;
    let action = |place| {
        let done = action(place);
        // A long list of entries is gone by now.
        sys::return_memory();
        done
    };
    work(agent, target, action).await
}

/// An answer that is made where the work is done: a long one would hold everyone up elsewhere.
pub(super) fn json(value: &impl Serialize) -> Response {
    let text = serde_json::to_vec(value).expect("wire types serialise");
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// Octal permission bits.
fn parse_mode(text: &str) -> Result<u32> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= MODE_MAX);
    mode.ok_or_else(|| Error::invalid(format_args!("invalid mode {text}: not octal permission bits")))
}

/// What an entry looks like on the wire; its path below a listed directory is given only for deep listings.
pub(crate) fn describe(entry: &Entry, path: Option<String>) -> FileInfo {
    let modified = clock::rfc3339(entry.modified.0, entry.modified.1);
    FileInfo {
        name: entry.name.clone(),
        size: entry.size,
        mode: mode_letters(entry),
        mod_time: modified.clone(),
        modified_at: modified,
        is_dir: entry.kind == EntryKind::Directory,
        owner: entry.uid.to_string(),
        group: entry.gid.to_string(),
        permissions: format!("{:04o}", entry.permissions),
        path,
        link_target: entry.link_target.clone(),
    }
}

fn mode_letters(entry: &Entry) -> String {
    let mut letters = String::with_capacity(12);
    letters.push_str(match entry.kind {
        EntryKind::File => "",
        EntryKind::Directory => "d",
        EntryKind::Link => "L",
        EntryKind::Pipe => "p",
        EntryKind::Socket => "S",
        EntryKind::CharacterDevice => "Dc",
        EntryKind::BlockDevice => "D",
    });
    for (bit, letter) in [(0o4000, 'u'), (0o2000, 'g'), (0o1000, 't')] {
        if entry.permissions & bit != 0 {
            letters.push(letter);
        }
    }
    if letters.is_empty() {
        letters.push('-');
    }
    for (place, letter) in "rwxrwxrwx".chars().enumerate() {
        letters.push(if entry.permissions & (0o400 >> place) == 0 { '-' } else { letter });
    }
    letters
}

/// Query of a listing.
#[derive(Debug, Deserialize)]
pub(crate) struct ListQuery {
    path: Option<String>,
    root: Option<String>,
    depth: Option<i64>,
}

/// `GET /files`.
pub(crate) async fn list(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<ListQuery>,
) -> Result<Response> {
    let depth = match query.depth {
        None => None,
        Some(depth @ 1..) => Some(u32::try_from(depth).unwrap_or(u32::MAX)),
        Some(depth) => return Err(Error::invalid(format_args!("depth {depth} is less than 1"))),
    };
    let path = query.path.filter(|path| !path.is_empty()).unwrap_or_else(|| ".".to_owned());
    let folder = path.trim_end_matches('/').to_owned();
    let target = Target { path, root: query.root };
    let deep = depth.is_some_and(|depth| depth > 1);
    long_work(&agent, target, move |place| {
        let entries = place.list(depth.unwrap_or(1), LIST_ENTRIES_MAX)?;
        let entries = entries.ok_or(io::ErrorKind::FileTooLarge)?;
        let shown = |entry: &Entry| describe(entry, deep.then(|| join(&folder, &entry.path)));
        Ok(json(&entries.iter().map(shown).collect::<Vec<FileInfo>>()))
    })
    .await
    .map_err(|error| match error.status {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Error::too_large(format_args!("more than {LIST_ENTRIES_MAX} entries: list less deep"))
        }
        _ => error,
    })
}

/// A path below `folder` as its user would write it.
pub(crate) fn join(folder: &str, path: &str) -> String {
    if folder == "." { path.to_owned() } else { format!("{folder}/{path}") }
}

/// `GET /files/info`.
pub(crate) async fn info(
    State(agent): State<Arc<Agent>>,
    Query(target): Query<Target>,
) -> Result<Json<FileInfo>> {
    let name = base_name(&target.path).to_owned();
    let mut entry = work(&agent, target, |place| place.describe()).await?;
    entry.name = name;
    Ok(Json(describe(&entry, None)))
}

/// The last part of a path as its user wrote it.
pub(crate) fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/")
}

/// Query of a new folder.
#[derive(Debug, Deserialize)]
pub(crate) struct FolderQuery {
    #[serde(flatten)]
    target: Target,
    mode: Option<String>,
}

/// `POST /files/folder`.
pub(crate) async fn folder(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<FolderQuery>,
) -> Result<StatusCode> {
    let mode = match query.mode.as_deref().filter(|mode| !mode.is_empty()) {
        Some(mode) => parse_mode(mode)?,
        None => FOLDER_MODE,
    };
    work(&agent, query.target, move |place| sys::make_folder(&place, mode)).await?;
    Ok(StatusCode::CREATED)
}

/// `POST /sandhaus/files/link`.
pub(crate) async fn link(State(agent): State<Arc<Agent>>, Json(link): Json<Link>) -> Result<StatusCode> {
    if link.target.is_empty() || link.target.len() > PATH_BYTES_MAX {
        return Err(Error::invalid_path(format_args!("a link says 1 to {PATH_BYTES_MAX} bytes")));
    }
    let target = Target { path: link.path, root: link.root };
    work(&agent, target, move |place| sys::make_link(&place, &link.target)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Query of a removal.
#[derive(Debug, Deserialize)]
pub(crate) struct DeleteQuery {
    path: String,
    root: Option<String>,
    #[serde(default)]
    recursive: bool,
}

/// `DELETE /files`.
pub(crate) async fn delete(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<DeleteQuery>,
) -> Result<StatusCode> {
    let removal = if query.recursive { Removal::Recursive } else { Removal::Single };
    let target = Target { path: query.path, root: query.root };
    long_work(&agent, target, move |place| sys::remove(&place, removal)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Query of a move.
#[derive(Debug, Deserialize)]
pub(crate) struct MoveQuery {
    source: String,
    destination: String,
    root: Option<String>,
}

/// `POST /files/move`.
pub(crate) async fn move_file(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<MoveQuery>,
) -> Result<StatusCode> {
    let workdir = agent.workdir.clone();
    // Between file systems it may take long.
    let _place =
        agent.long_file_work.acquire().await.map_err(|_| Error::unavailable("the agent is ending"))?;
    agent
        .on_file_thread(move || {
            let root = query.root.as_deref();
            let source = place(root, &workdir, &query.source)?;
            let destination = place(root, &workdir, &query.destination)?;
            sys::move_file(&source, &destination).map_err(|error| match error {
                NotMoved::Source(error) => Error::file(&query.source, &error),
                NotMoved::Destination(error) => Error::file(&query.destination, &error),
            })
        })
        .await?;
    Ok(StatusCode::OK)
}

/// Query of a change of permissions.
#[derive(Debug, Deserialize)]
pub(crate) struct PermissionsQuery {
    #[serde(flatten)]
    target: Target,
    owner: Option<String>,
    group: Option<String>,
    mode: Option<String>,
}

/// `POST /files/permissions`.
pub(crate) async fn permissions(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<PermissionsQuery>,
) -> Result<StatusCode> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let mode = given(query.mode).map(|mode| parse_mode(&mode)).transpose()?;
    let (owner, group) = (given(query.owner), given(query.group));
    let path = query.target.path.clone();
    let workdir = agent.workdir.clone();
    agent
        .on_file_thread(move || {
            let id =
                |name: Option<String>, register| name.map(|name| accounts::find(register, &name)).transpose();
            let uid = id(owner, Register::Users).map_err(|()| Error::invalid("user not found"))?;
            let gid = id(group, Register::Groups).map_err(|()| Error::invalid("group not found"))?;
            let place = query.target.place(&workdir)?;
            let failed = |error: io::Error| Error::file(&path, &error);
            if uid.is_some() || gid.is_some() {
                sys::set_owner(&place, uid, gid).map_err(failed)?;
            }
            // Last: a change of owner clears setuid and setgid.
            mode.map_or(Ok(()), |mode| sys::set_mode(&place, mode).map_err(failed))
        })
        .await?;
    Ok(StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_look_as_clients_expect() {
        let entry = |kind, permissions| Entry {
            name: "n".to_owned(),
            path: "n".to_owned(),
            kind,
            size: 0,
            permissions,
            uid: 0,
            gid: 0,
            modified: (0, 0),
            link_target: None,
        };
        assert_eq!(mode_letters(&entry(EntryKind::File, 0o644)), "-rw-r--r--");
        assert_eq!(mode_letters(&entry(EntryKind::Directory, 0o755)), "drwxr-xr-x");
        assert_eq!(mode_letters(&entry(EntryKind::Directory, 0o1777)), "dtrwxrwxrwx");
        assert_eq!(mode_letters(&entry(EntryKind::Link, 0o777)), "Lrwxrwxrwx");
        assert_eq!(parse_mode("0755").ok(), Some(0o755));
        for wrong in ["", "9", "77777", "-1", "rwx"] {
            assert!(parse_mode(wrong).is_err(), "{wrong}");
        }
    }
}
