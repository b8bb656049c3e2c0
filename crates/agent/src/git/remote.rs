//! The routes that talk to other repositories. What comes over the network and what is done with it here are calls of
//! their own: only the former know a password, and they touch no file of a working tree.

use std::{fs, io, sync::Arc};

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
};
use sandhaus_protocol::git::{
    GitAddRemoteRequest, GitCloneRequest, GitExchangeRequest, GitRemote, GitRepository, ListRemotesResponse,
};

use super::{
    absolute,
    address::{Address, Credentials, Given, without_password},
    local::{commit_of, current_branch},
    names::{check_branch, check_remote, check_revision, is_whole_hash},
    program::Call,
    refusal, repository,
};
use crate::{
    agent::Agent,
    error::{Error, Result},
    process::kill_family,
    sys::{self, Family, Place, Removal},
};

/// Most commits of a history that a clone may ask for: git counts them in 32 bits.
const DEPTH_MAX: i64 = i32::MAX as i64;

/// The remote where none is named.
const ORIGIN: &str = "origin";

/// A family of which only the mark counts: no process has this number.
const NO_PROCESS: i32 = -1;

/// Most entries of a directory that a clone that failed is cleared of.
const ENTRIES_MAX: usize = 10_000;

fn given(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}

/// `POST /git/clone`.
pub(super) async fn clone(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitCloneRequest>,
) -> Result<StatusCode> {
    let who = Given { username: request.username.as_deref(), password: request.password.as_deref() };
    let address = Address::of_clone(&request.url, who)?;
    let branch = given(request.branch.as_ref());
    branch.map_or(Ok(()), check_branch)?;
    let commit = given(request.commit_id.as_ref());
    commit.map_or(Ok(()), check_revision)?;
    let depth = match request.depth.unwrap_or(0) {
        0 => None,
        depth @ 1..=DEPTH_MAX => Some(format!("--depth={depth}")),
        depth => return Err(Error::invalid(format_args!("depth {depth} is not 0 to {DEPTH_MAX}"))),
    };
    let mut destination = Destination::claim(&agent, &request.path).await?;
    let clone = Clone {
        agent: &agent,
        address: &address,
        tls: request.insecure_skip_tls.unwrap_or(false).then_some("http.sslVerify=false"),
        depth,
        path: destination.path.clone(),
        mark: destination.mark.clone(),
    };
    let outcome = async {
        clone.fetch_all(branch).await?;
        clone.check_out(commit).await
    }
    .await;
    match outcome {
        Ok(()) => destination.keep(),
        Err(error) => {
            destination.clear().await;
            return Err(error);
        }
    }
    Ok(StatusCode::OK)
}

/// A clone in the making.
struct Clone<'a> {
    agent: &'a Arc<Agent>,
    address: &'a Address,
    tls: Option<&'static str>,
    depth: Option<String>,
    path: String,
    mark: String,
}

impl Clone<'_> {
    fn over_network<'b>(&'b self, call: Call<'b>) -> Call<'b> {
        let call = self.tls.into_iter().fold(call, Call::setting);
        call.remote(self.address.credentials.as_ref()).marked(&self.mark)
    }

    async fn fetch_all(&self, branch: Option<&str>) -> Result<()> {
        let words = [
            "clone",
            "--quiet",
            "--no-checkout",
            "--single-branch",
            "--no-recurse-submodules",
            "--origin",
            ORIGIN,
        ];
        let call = Call::new(&self.agent.workdir, &words)
            .maybe(branch.map(|branch| format!("--branch={branch}")))
            .maybe(self.depth.clone())
            .word("--")
            .word(&self.address.url)
            .word(&self.path);
        self.over_network(call).run(self.agent).await.map(drop)
    }

    async fn check_out(&self, commit: Option<&str>) -> Result<()> {
        let words: Vec<String> = match commit {
            None if commit_of(self.agent, &self.path, "HEAD").await?.is_none() => {
                return Err(refusal::not_found(
                    "the remote repository is empty: use init and add it as a remote, then push",
                ));
            }
            None => vec!["HEAD".to_owned()],
            Some(commit) => {
                if commit_of(self.agent, &self.path, commit).await?.is_none() && is_whole_hash(commit) {
                    self.fetch_one(commit).await?;
                }
                let found = commit_of(self.agent, &self.path, commit).await?;
                vec!["--detach".to_owned(), found.ok_or_else(|| refusal::no_branch(commit))?]
            }
        };
        let call = words.into_iter().fold(Call::new(&self.path, &["checkout", "--quiet"]), Call::word);
        call.word("--").marked(&self.mark).run(self.agent).await.map(drop)
    }

    /// A commit that none of the fetched branches leads to.
    async fn fetch_one(&self, commit: &str) -> Result<()> {
        let words = ["fetch", "--quiet", "--no-recurse-submodules", "--no-tags"];
        let call =
            Call::new(&self.path, &words).maybe(self.depth.clone()).word("--").word(ORIGIN).word(commit);
        self.over_network(call).run(self.agent).await.map(drop)
    }
}

/// Where a clone goes. Unless it is kept, it becomes what it was: empty, or not there.
struct Destination {
    agent: Arc<Agent>,
    path: String,
    /// Of the processes that fill it.
    mark: String,
    before: Before,
}

/// What a destination was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Absent,
    Empty,
    /// It has become what it was to be.
    Settled,
}

impl Destination {
    /// Takes a directory that is empty or not there, and that no other clone is being made in.
    async fn claim(agent: &Arc<Agent>, path: &str) -> Result<Self> {
        let place = absolute(agent, path)?;
        let occupied = || {
            Error::conflict(format_args!(
                "destination path {path} already exists and is not an empty directory"
            ))
        };
        if !agent.git.destinations().insert(place.clone()) {
            return Err(Error::conflict(format_args!("a clone to {path} is being made already")));
        }
        let mut destination = Self {
            agent: Arc::clone(agent),
            path: place.clone(),
            mark: Family::new_mark(),
            before: Before::Settled,
        };
        let found = agent
            .on_file_thread(move || match fs::read_dir(&place) {
                Ok(mut entries) => Ok(entries.next().is_none().then_some(Before::Empty)),
                // A link that leads nowhere is something, too.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Ok(fs::symlink_metadata(&place).is_err().then_some(Before::Absent))
                }
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
                Err(error) => Err(error),
            })
            .await;
        destination.before = found.map_err(|error| Error::file(path, &error))?.ok_or_else(occupied)?;
        Ok(destination)
    }

    /// The clone is there.
    fn keep(&mut self) {
        self.before = Before::Settled;
    }

    /// Takes away what there is of it.
    async fn clear(&mut self) {
        let before = std::mem::replace(&mut self.before, Before::Settled);
        clear(&self.agent, &self.path, &self.mark, before).await;
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        let (agent, path) = (Arc::clone(&self.agent), std::mem::take(&mut self.path));
        if self.before == Before::Settled {
            agent.git.destinations().remove(&path);
            return;
        }
        // Its caller has gone away.
        let (mark, before) = (std::mem::take(&mut self.mark), self.before);
        tokio::spawn(async move {
            clear(&agent, &path, &mark, before).await;
            agent.git.destinations().remove(&path);
        });
    }
}

async fn clear(agent: &Agent, path: &str, mark: &str, before: Before) {
    kill_family(agent, &Family { root: NO_PROCESS, mark: mark.to_owned() }).await;
    let path = path.to_owned();
    agent
        .on_file_thread(move || {
            let Ok(place) = Place::new(None, "/", &path) else { return };
            // What cannot be removed is left: the first failure is the one to tell.
            match before {
                Before::Settled => {}
                Before::Absent => drop(sys::remove(&place, Removal::Recursive)),
                Before::Empty => {
                    for entry in place.list(1, ENTRIES_MAX).ok().flatten().unwrap_or_default() {
                        let inside = Place::new(None, &path, &entry.name);
                        drop(inside.and_then(|inside| sys::remove(&inside, Removal::Recursive)));
                    }
                }
            }
        })
        .await;
}

/// A repository and the remote it deals with.
struct Exchange {
    repository: String,
    remote: String,
    credentials: Option<Credentials>,
}

/// Which way it goes: a remote may have another address for what is sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Exchange {
    async fn of(agent: &Arc<Agent>, request: &GitExchangeRequest, way: Way) -> Result<Self> {
        let remote = given(request.remote.as_ref()).unwrap_or(ORIGIN);
        check_remote(remote)?;
        given(request.branch.as_ref()).map_or(Ok(()), check_branch)?;
        let who = Given { username: request.username.as_deref(), password: request.password.as_deref() };
        let repository = repository(agent, &request.path).await?;
        let call = Call::new(&repository, &["remote", "get-url"]);
        let call = call.maybe((way == Way::Out).then_some("--push")).word("--").word(remote);
        let url = call.line(agent).await?;
        let address = Address::of_remote(&url, who)?;
        // A password that the repository's own address holds is git's to find there.
        let asked = given(request.username.as_ref()).or(given(request.password.as_ref())).is_some();
        let credentials = address.credentials.filter(|_| asked);
        Ok(Self { repository, remote: remote.to_owned(), credentials })
    }

    async fn branch(&self, agent: &Arc<Agent>, wanted: Option<&String>) -> Result<String> {
        if let Some(branch) = given(wanted) {
            return Ok(branch.to_owned());
        }
        let current = current_branch(agent, &self.repository).await?;
        current.ok_or_else(|| refusal::not_found("no branch is checked out: name one, or check one out"))
    }

    /// Where this repository keeps what it knows of the remote's branch.
    fn tracking(&self, branch: &str) -> String {
        format!("refs/remotes/{}/{branch}", self.remote)
    }
}

/// `POST /git/pull`.
pub(super) async fn pull(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitExchangeRequest>,
) -> Result<StatusCode> {
    let exchange = Exchange::of(&agent, &request, Way::In).await?;
    let branch = match given(request.branch.as_ref()) {
        Some(branch) => branch.to_owned(),
        None => followed(&agent, &exchange).await?,
    };
    let tracking = exchange.tracking(&branch);
    let words = ["fetch", "--quiet", "--no-recurse-submodules", "--"];
    Call::new(&exchange.repository, &words)
        .word(&exchange.remote)
        .word(format!("+refs/heads/{branch}:{tracking}"))
        .remote(exchange.credentials.as_ref())
        .run(&agent)
        .await?;
    let commit = commit_of(&agent, &exchange.repository, &tracking).await?;
    let commit = commit.ok_or_else(|| refusal::no_branch(&branch))?;
    Call::new(
        &exchange.repository,
        &["merge", "--quiet", "--ff-only", "--no-verify-signatures", "--", &commit],
    )
    .run(&agent)
    .await?;
    Ok(StatusCode::OK)
}

/// The branch of the remote that the current one follows, or the one of the same name.
async fn followed(agent: &Arc<Agent>, exchange: &Exchange) -> Result<String> {
    let branch = exchange.branch(agent, None).await?;
    let setting = |name: &str| format!("branch.{branch}.{name}");
    let words = ["config", "--get", "--"];
    let remote = Call::new(&exchange.repository, &words).word(setting("remote")).line_if_any(agent).await?;
    if remote.as_deref() != Some(exchange.remote.as_str()) {
        return Ok(branch);
    }
    let merge = Call::new(&exchange.repository, &words).word(setting("merge")).line_if_any(agent).await?;
    Ok(merge.and_then(|merge| merge.strip_prefix("refs/heads/").map(str::to_owned)).unwrap_or(branch))
}

/// `POST /git/push`.
pub(super) async fn push(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitExchangeRequest>,
) -> Result<StatusCode> {
    let exchange = Exchange::of(&agent, &request, Way::Out).await?;
    let branch = exchange.branch(&agent, request.branch.as_ref()).await?;
    let follow = request.set_upstream.unwrap_or(false);
    let words = ["push", "--quiet", "--no-verify", "--no-signed", "--recurse-submodules=no"];
    Call::new(&exchange.repository, &words)
        .maybe(follow.then_some("--set-upstream"))
        .word("--")
        .word(&exchange.remote)
        .word(format!("refs/heads/{branch}:refs/heads/{branch}"))
        .remote(exchange.credentials.as_ref())
        .run(&agent)
        .await?;
    if follow {
        track(&agent, &exchange, &branch).await?;
    }
    Ok(StatusCode::OK)
}

/// Makes a pushed branch known as the remote's where the repository follows only some of its branches.
async fn track(agent: &Arc<Agent>, exchange: &Exchange, branch: &str) -> Result<()> {
    let upstream = format!("{branch}@{{upstream}}");
    if commit_of(agent, &exchange.repository, &upstream).await?.is_some() {
        return Ok(());
    }
    let words = ["remote", "set-branches", "--add", "--", &exchange.remote, branch];
    Call::new(&exchange.repository, &words).run(agent).await?;
    let source = format!("refs/heads/{branch}");
    let commit = commit_of(agent, &exchange.repository, &source).await?;
    let commit = commit.ok_or_else(|| refusal::no_branch(branch))?;
    let tracking = exchange.tracking(branch);
    Call::new(&exchange.repository, &["update-ref", "--", &tracking, &commit]).run(agent).await?;
    Ok(())
}

/// `GET /git/remotes`.
pub(super) async fn list(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<GitRepository>,
) -> Result<Json<ListRemotesResponse>> {
    Ok(Json(ListRemotesResponse { remotes: remotes(&agent, &query.path).await?.1 }))
}

/// The repository at a path, and the first address of each of its remotes.
async fn remotes(agent: &Arc<Agent>, path: &str) -> Result<(String, Vec<GitRemote>)> {
    const NOTHING_FOUND: i32 = 1;
    let repository = repository(agent, path).await?;
    let words = ["config", "--local", "--null", "--get-regexp", r"^remote\..*\.url$"];
    let output = Call::new(&repository, &words).output(agent).await?;
    if !matches!(output.status, 0 | NOTHING_FOUND) {
        // Outside of a repository git has another word for it.
        return Err(match output.messages.contains("--local can only be used inside a git repository") {
            true => refusal::no_repository(path),
            false => refusal::of(&output),
        });
    }
    let text = String::from_utf8_lossy(&output.text);
    let mut remotes: Vec<GitRemote> = Vec::new();
    for entry in text.split_terminator('\0') {
        let Some((key, url)) = entry.split_once('\n') else { continue };
        let Some(name) = key.strip_prefix("remote.").and_then(|key| key.strip_suffix(".url")) else {
            continue;
        };
        if remotes.iter().all(|remote| remote.name != name) {
            remotes.push(GitRemote { name: name.to_owned(), url: without_password(url) });
        }
    }
    Ok((repository, remotes))
}

/// `POST /git/remotes`.
pub(super) async fn add(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitAddRemoteRequest>,
) -> Result<StatusCode> {
    check_remote(&request.name)?;
    let address = Address::of_remote(&request.url, Given::NONE)?;
    let (repository, remotes) = remotes(&agent, &request.path).await?;
    let there = remotes.iter().any(|remote| remote.name == request.name);
    if there && !request.overwrite.unwrap_or(false) {
        return Err(Error::conflict(format_args!("remote {} already exists", request.name)));
    }
    let verb = if there { "set-url" } else { "add" };
    Call::new(&repository, &["remote", verb, "--", &request.name, &address.url]).run(&agent).await?;
    if !request.fetch.unwrap_or(false) {
        return Ok(StatusCode::CREATED);
    }
    let words = ["fetch", "--quiet", "--no-recurse-submodules", "--", &request.name];
    let fetched = Call::new(&repository, &words).remote(address.credentials.as_ref()).run(&agent).await;
    if let Err(error) = fetched {
        if !there {
            // So that the same request can be made again.
            Call::new(&repository, &["remote", "remove", "--", &request.name]).run(&agent).await?;
        }
        return Err(error);
    }
    Ok(StatusCode::CREATED)
}
