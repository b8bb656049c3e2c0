//! The routes that stay within one repository on this machine.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
};
use sandhaus_protocol::git::{
    GitAddRequest, GitBranchRequest, GitCheckoutRequest, GitCommitInfo, GitCommitRequest, GitCommitResponse,
    GitInitRequest, GitRepository, GitResetRequest, GitRestoreRequest, GitStatus, HISTORY_COMMITS_MAX,
    ListBranchResponse,
};

use super::{
    absolute,
    names::{check_branch, check_revision, file_list},
    program::{Call, Output},
    refusal, repository, status as report,
};
use crate::{
    agent::Agent,
    error::{Error, Result},
};

/// Longest message of a commit.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Longest name or address of an author.
const AUTHOR_BYTES_MAX: usize = 1024;

/// Where branches are.
const BRANCHES: &str = "refs/heads/";

/// `git commit` has this status when there was nothing to commit.
const NOTHING_TO_COMMIT: i32 = 1;

/// Tell git to read paths from its standard input.
const PATHS_FROM_INPUT: [&str; 2] = ["--pathspec-from-file=-", "--pathspec-file-nul"];

/// `GET /git/branches`.
pub(super) async fn branches(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<GitRepository>,
) -> Result<Json<ListBranchResponse>> {
    let repository = repository(&agent, &query.path).await?;
    let words = ["for-each-ref", "--format=%(HEAD)%(refname)", BRANCHES];
    let list = Call::new(&repository, &words).run(&agent).await?;
    let list = String::from_utf8_lossy(&list);
    let mut current = None;
    let mut branches = Vec::new();
    for line in list.lines() {
        let Some((mark, name)) = line.split_once(BRANCHES) else { continue };
        if mark == "*" {
            current = Some(name.to_owned());
        }
        branches.push(name.to_owned());
    }
    if current.is_none() {
        // A branch without commits is not listed.
        current = current_branch(&agent, &repository).await?;
    }
    Ok(Json(ListBranchResponse { branches, current }))
}

/// The branch that is checked out.
pub(super) async fn current_branch(agent: &Arc<Agent>, repository: &str) -> Result<Option<String>> {
    let words = ["symbolic-ref", "--quiet", "HEAD"];
    let head = Call::new(repository, &words).line_if_any(agent).await?;
    Ok(head.and_then(|head| head.strip_prefix(BRANCHES).map(str::to_owned)))
}

/// The commit that a revision means, if it means one.
pub(super) async fn commit_of(
    agent: &Arc<Agent>,
    repository: &str,
    revision: &str,
) -> Result<Option<String>> {
    let words = ["rev-parse", "--verify", "--quiet", "--end-of-options"];
    Call::new(repository, &words).word(format!("{revision}^{{commit}}")).line_if_any(agent).await
}

/// `POST /git/branches`.
pub(super) async fn create_branch(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitBranchRequest>,
) -> Result<StatusCode> {
    check_branch(&request.name)?;
    let repository = repository(&agent, &request.path).await?;
    Call::new(&repository, &["checkout", "--quiet", "-b", &request.name]).run(&agent).await?;
    Ok(StatusCode::CREATED)
}

/// `DELETE /git/branches`.
pub(super) async fn delete_branch(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitBranchRequest>,
) -> Result<StatusCode> {
    check_branch(&request.name)?;
    let repository = repository(&agent, &request.path).await?;
    Call::new(&repository, &["branch", "--quiet", "-D", "--", &request.name]).run(&agent).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /git/checkout`.
pub(super) async fn checkout(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitCheckoutRequest>,
) -> Result<StatusCode> {
    check_revision(&request.branch)?;
    let repository = repository(&agent, &request.path).await?;
    Call::new(&repository, &["checkout", "--quiet", &request.branch, "--"]).run(&agent).await?;
    Ok(StatusCode::OK)
}

/// `POST /git/add`.
pub(super) async fn add(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitAddRequest>,
) -> Result<StatusCode> {
    let list = file_list(&request.files)?;
    let repository = repository(&agent, &request.path).await?;
    // Removed files are staged, too.
    Call::new(&repository, &["add", "--all", PATHS_FROM_INPUT[0], PATHS_FROM_INPUT[1]])
        .input(list)
        .run(&agent)
        .await?;
    Ok(StatusCode::OK)
}

/// `POST /git/commit`.
pub(super) async fn commit(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitCommitRequest>,
) -> Result<Json<GitCommitResponse>> {
    if request.message.trim().is_empty() || request.message.len() > MESSAGE_BYTES_MAX {
        return Err(Error::invalid(format_args!("message has 1 to {MESSAGE_BYTES_MAX} bytes")));
    }
    for part in [&request.author, &request.email] {
        if part.trim().is_empty() || part.len() > AUTHOR_BYTES_MAX || part.contains(['\n', '\0']) {
            return Err(Error::invalid(format_args!(
                "author and email have 1 to {AUTHOR_BYTES_MAX} bytes on one line"
            )));
        }
    }
    if request.message.contains('\0') {
        return Err(Error::invalid("message holds a NUL byte"));
    }
    let repository = repository(&agent, &request.path).await?;
    let words = [
        "commit",
        "--quiet",
        "--file=-",
        "--cleanup=whitespace",
        "--no-verify",
        "--no-gpg-sign",
        "--no-status",
    ];
    let empty = request.allow_empty.unwrap_or(false).then_some("--allow-empty");
    let output: Output = Call::new(&repository, &words)
        .maybe(empty)
        .variable("GIT_AUTHOR_NAME", &request.author)
        .variable("GIT_AUTHOR_EMAIL", &request.email)
        .variable("GIT_COMMITTER_NAME", &request.author)
        .variable("GIT_COMMITTER_EMAIL", &request.email)
        .input(request.message.into_bytes())
        .output(&agent)
        .await?;
    match output.status {
        0 => {}
        NOTHING_TO_COMMIT if output.messages.trim().is_empty() => {
            return Err(Error::conflict(
                "nothing to commit, clean working tree: add changes first, or allow_empty",
            ));
        }
        _ => return Err(refusal::of(&output)),
    }
    let hash = Call::new(&repository, &["rev-parse", "--verify", "HEAD"]).line(&agent).await?;
    Ok(Json(GitCommitResponse { hash }))
}

/// `GET /git/history`.
pub(super) async fn history(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<GitRepository>,
) -> Result<Json<Vec<GitCommitInfo>>> {
    const FIELDS: usize = 5;
    let repository = repository(&agent, &query.path).await?;
    let words =
        ["log", "-z", "--format=tformat:%H%x00%an%x00%ae%x00%aI%x00%B", "--encoding=UTF-8", "--no-notes"];
    let output = Call::new(&repository, &words)
        .word(format!("--max-count={HISTORY_COMMITS_MAX}"))
        .word("HEAD")
        .word("--")
        .output(&agent)
        .await?;
    if output.status != 0 {
        // A branch without commits has an empty history.
        return match current_branch(&agent, &repository).await? {
            Some(_) if commit_of(&agent, &repository, "HEAD").await?.is_none() => Ok(Json(Vec::new())),
            _ => Err(refusal::of(&output)),
        };
    }
    let text = String::from_utf8_lossy(&output.text);
    let fields: Vec<&str> = text.split('\0').collect();
    let commits = fields.chunks_exact(FIELDS).map(|commit| GitCommitInfo {
        hash: commit[0].to_owned(),
        author: commit[1].to_owned(),
        email: commit[2].to_owned(),
        timestamp: commit[3].to_owned(),
        message: commit[4].trim_end_matches('\n').to_owned(),
    });
    Ok(Json(commits.collect()))
}

/// `GET /git/status`.
pub(super) async fn status(
    State(agent): State<Arc<Agent>>,
    Query(query): Query<GitRepository>,
) -> Result<Json<GitStatus>> {
    let repository = repository(&agent, &query.path).await?;
    let words = ["status", "--porcelain=v2", "-z", "--branch", "--untracked-files=all", "--ignored=no"];
    let text = Call::new(&repository, &words).run(&agent).await?;
    let mut status = report::parse(&text)
        .ok_or_else(|| Error::internal("git has given a report that cannot be read: is it very old?"))?;
    if !status.branch_published && !status.detached {
        // It may have been published without following the remote's branch.
        let published = format!("refs/remotes/origin/{}", status.current_branch);
        let words = ["rev-list", "--left-right", "--count"];
        let counts = Call::new(&repository, &words)
            .word(format!("HEAD...{published}"))
            .word("--")
            .line_if_any(&agent)
            .await?;
        if let Some((ahead, behind)) = counts.as_deref().and_then(|counts| counts.split_once('\t')) {
            status.ahead = ahead.parse().unwrap_or(0);
            status.behind = behind.parse().unwrap_or(0);
            status.branch_published = true;
        }
    }
    Ok(Json(status))
}

/// `POST /git/init`.
pub(super) async fn init(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitInitRequest>,
) -> Result<StatusCode> {
    if let Some(branch) = &request.initial_branch {
        check_branch(branch)?;
    }
    let path = absolute(&agent, &request.path)?;
    if let Ok(directory) = repository(&agent, &request.path).await {
        let there = Call::new(&directory, &["rev-parse", "--git-dir"]).line_if_any(&agent).await?;
        if there.is_some() {
            return Err(Error::conflict(format_args!("{} is a repository already", request.path)));
        }
    }
    Call::new("/", &["init", "--quiet"])
        .maybe(request.bare.unwrap_or(false).then_some("--bare"))
        .maybe(request.initial_branch.map(|branch| format!("--initial-branch={branch}")))
        .word("--")
        .word(path)
        .run(&agent)
        .await?;
    Ok(StatusCode::CREATED)
}

/// `POST /git/reset`.
pub(super) async fn reset(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitResetRequest>,
) -> Result<StatusCode> {
    let mode = request.mode.as_deref().filter(|mode| !mode.is_empty());
    let flag = match mode.unwrap_or("mixed") {
        "soft" => "--soft",
        "mixed" => "--mixed",
        "hard" => "--hard",
        "merge" => "--merge",
        "keep" => "--keep",
        other => {
            return Err(Error::invalid(format_args!(
                "unknown mode {other}: say soft, mixed, hard, merge or keep"
            )));
        }
    };
    let target = request.target.as_deref().filter(|target| !target.is_empty());
    target.map_or(Ok(()), check_revision)?;
    let files = request.files.filter(|files| !files.is_empty());
    if files.is_some() && flag != "--mixed" {
        return Err(Error::invalid("files can be reset in mode mixed alone: use restore for their content"));
    }
    let list = files.as_deref().map(file_list).transpose()?;
    let repository = repository(&agent, &request.path).await?;
    let commit = match target {
        Some(target) => {
            Some(commit_of(&agent, &repository, target).await?.ok_or_else(|| refusal::no_branch(target))?)
        }
        None => None,
    };
    let call = Call::new(&repository, &["reset", "--quiet"]);
    let call = match list {
        Some(list) => {
            let call = PATHS_FROM_INPUT.into_iter().fold(call, Call::word);
            call.input(list).maybe(commit)
        }
        None => call.word(flag).maybe(commit).word("--"),
    };
    call.run(&agent).await?;
    Ok(StatusCode::OK)
}

/// `POST /git/restore`.
pub(super) async fn restore(
    State(agent): State<Arc<Agent>>,
    Json(request): Json<GitRestoreRequest>,
) -> Result<StatusCode> {
    let (staged, worktree) = match (request.staged, request.worktree) {
        (None, None) => (false, true),
        (staged, worktree) => (staged.unwrap_or(false), worktree.unwrap_or(false)),
    };
    if !staged && !worktree {
        return Err(Error::invalid("nothing to restore: at least one of staged and worktree must be true"));
    }
    let list = file_list(&request.files)?;
    let source = request.source.as_deref().filter(|source| !source.is_empty());
    source.map_or(Ok(()), check_revision)?;
    let repository = repository(&agent, &request.path).await?;
    let source = match (source, staged) {
        (Some(source), _) => {
            Some(commit_of(&agent, &repository, source).await?.ok_or_else(|| refusal::no_branch(source))?)
        }
        (None, true) => match commit_of(&agent, &repository, "HEAD").await? {
            Some(head) => Some(head),
            // Before the first commit there is nothing in the place of what is staged.
            None => {
                Some(Call::new(&repository, &["hash-object", "-t", "tree", "--stdin"]).line(&agent).await?)
            }
        },
        (None, false) => None,
    };
    let call = Call::new(&repository, &["restore", "--quiet"])
        .maybe(staged.then_some("--staged"))
        .maybe(worktree.then_some("--worktree"))
        .maybe(source.map(|source| format!("--source={source}")));
    PATHS_FROM_INPUT.into_iter().fold(call, Call::word).input(list).run(&agent).await?;
    Ok(StatusCode::OK)
}
