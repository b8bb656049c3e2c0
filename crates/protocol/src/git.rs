//! Wire types of the compatible git routes (docs: `daytona.md` section 1.9). Names and spelling are the contract's;
//! `path` is always the top of a repository.

use serde::{Deserialize, Serialize};

/// Largest number of commits that a history tells of.
pub const HISTORY_COMMITS_MAX: usize = 10_000;

/// A repository, in a query.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitRepository {
    /// The repository.
    pub path: String,
}

/// `POST /git/add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitAddRequest {
    /// The repository.
    pub path: String,
    /// Files and directories; `.` is everything.
    pub files: Vec<String>,
}

/// `POST` and `DELETE /git/branches`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitBranchRequest {
    /// The repository.
    pub path: String,
    /// The branch.
    pub name: String,
}

/// Answer of `GET /git/branches`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListBranchResponse {
    /// Names of the local branches.
    pub branches: Vec<String>,
    /// The one that is checked out, if any is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
}

/// `POST /git/checkout`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitCheckoutRequest {
    /// The repository.
    pub path: String,
    /// A branch, or a commit.
    pub branch: String,
}

/// `POST /git/commit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitCommitRequest {
    /// The repository.
    pub path: String,
    /// What the commit says.
    pub message: String,
    /// Its author's name.
    pub author: String,
    /// Their address.
    pub email: String,
    /// A commit without any change is wanted, too.
    #[serde(default)]
    pub allow_empty: Option<bool>,
}

/// Answer of `POST /git/commit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitCommitResponse {
    /// The new commit.
    pub hash: String,
}

/// A commit in a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitCommitInfo {
    /// Its hash.
    pub hash: String,
    /// Its author's name.
    pub author: String,
    /// Their address.
    pub email: String,
    /// What it says, without the ends of lines after it.
    pub message: String,
    /// When its author made it, RFC 3339.
    pub timestamp: String,
}

/// What has happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum GitFileState {
    /// Nothing.
    Unmodified,
    /// Git does not know it.
    Untracked,
    /// Its content or kind has changed.
    Modified,
    /// It is new.
    Added,
    /// It is gone.
    Deleted,
    /// It had another name.
    Renamed,
    /// It came from another file.
    Copied,
    /// A merge has left it in conflict.
    #[serde(rename = "Updated but unmerged")]
    Unmerged,
}

/// A file that is not as it was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitFileStatus {
    /// Its path in the repository.
    pub name: String,
    /// The path that it had before it was renamed or copied, or nothing.
    pub extra: String,
    /// What the index has of it.
    pub staging: GitFileState,
    /// What the working tree has beyond that.
    pub worktree: GitFileState,
}

/// Answer of `GET /git/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitStatus {
    /// The branch, or `HEAD` where none is checked out.
    pub current_branch: String,
    /// Files that are not as they were committed.
    pub file_status: Vec<GitFileStatus>,
    /// Commits that the published branch lacks.
    pub ahead: u64,
    /// Commits of the published branch that this one lacks.
    pub behind: u64,
    /// The remote is known to have the branch.
    pub branch_published: bool,
    /// A commit is checked out instead of a branch.
    pub detached: bool,
    /// The branch that this one follows, such as `origin/main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
}

/// `POST /git/clone`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitCloneRequest {
    /// Where from.
    pub url: String,
    /// Where to: a directory that is empty or not there yet.
    pub path: String,
    /// Whom to be for the remote.
    #[serde(default)]
    pub username: Option<String>,
    /// Their password or token.
    #[serde(default)]
    pub password: Option<String>,
    /// The branch or tag; the remote's own choice where none is given.
    #[serde(default)]
    pub branch: Option<String>,
    /// The commit to check out.
    #[serde(default)]
    pub commit_id: Option<String>,
    /// Trust whatever certificate the remote shows.
    #[serde(default)]
    pub insecure_skip_tls: Option<bool>,
    /// How many commits deep.
    #[serde(default)]
    pub depth: Option<i64>,
}

/// `POST /git/pull` and `POST /git/push`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitExchangeRequest {
    /// The repository.
    pub path: String,
    /// Whom to be for the remote.
    #[serde(default)]
    pub username: Option<String>,
    /// Their password or token.
    #[serde(default)]
    pub password: Option<String>,
    /// The branch; where none is given, the one that is checked out.
    #[serde(default)]
    pub branch: Option<String>,
    /// The remote; `origin` where none is given.
    #[serde(default)]
    pub remote: Option<String>,
    /// The branch follows the one it was pushed to from now on. Only for a push.
    #[serde(default)]
    pub set_upstream: Option<bool>,
}

/// `POST /git/init`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitInitRequest {
    /// Where.
    pub path: String,
    /// Without a working tree.
    #[serde(default)]
    pub bare: Option<bool>,
    /// Name of the first branch.
    #[serde(default)]
    pub initial_branch: Option<String>,
}

/// `POST /git/reset`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitResetRequest {
    /// The repository.
    pub path: String,
    /// `soft`, `mixed` (the default), `hard`, `merge` or `keep`.
    #[serde(default)]
    pub mode: Option<String>,
    /// The revision; `HEAD` where none is given.
    #[serde(default)]
    pub target: Option<String>,
    /// Only these files.
    #[serde(default)]
    pub files: Option<Vec<String>>,
}

/// `POST /git/restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitRestoreRequest {
    /// The repository.
    pub path: String,
    /// Files and directories.
    pub files: Vec<String>,
    /// In the index.
    #[serde(default)]
    pub staged: Option<bool>,
    /// In the working tree, which is also what is meant where neither is said.
    #[serde(default)]
    pub worktree: Option<bool>,
    /// The revision whose content they get.
    #[serde(default)]
    pub source: Option<String>,
}

/// `POST /git/remotes`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitAddRemoteRequest {
    /// The repository.
    pub path: String,
    /// Name of the remote.
    pub name: String,
    /// Where it is. A password in it is used for this call and not kept.
    pub url: String,
    /// Fetch from it at once.
    #[serde(default)]
    pub fetch: Option<bool>,
    /// In the place of a remote of that name.
    #[serde(default)]
    pub overwrite: Option<bool>,
}

/// A remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitRemote {
    /// Its name.
    pub name: String,
    /// Where it is, without any password.
    pub url: String,
}

/// Answer of `GET /git/remotes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ListRemotesResponse {
    /// All of them.
    pub remotes: Vec<GitRemote>,
}

/// Query of `GET /git/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitConfigQuery {
    /// Name such as `user.email`.
    pub key: String,
    /// The repository, for the scope `local`.
    #[serde(default)]
    pub path: Option<String>,
    /// `global` (the default), `local` or `system`.
    #[serde(default)]
    pub scope: Option<String>,
}

/// Answer of `GET /git/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitConfigResponse {
    /// The value, if it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// `POST /git/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitSetConfigRequest {
    /// Name such as `user.email`.
    pub key: String,
    /// Its value.
    pub value: String,
    /// `global` (the default), `local` or `system`.
    #[serde(default)]
    pub scope: Option<String>,
    /// The repository, for the scope `local`.
    #[serde(default)]
    pub path: Option<String>,
}

/// `POST /git/config/user`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitConfigureUserRequest {
    /// Who commits.
    pub name: String,
    /// Their address.
    pub email: String,
    /// `global` (the default), `local` or `system`.
    #[serde(default)]
    pub scope: Option<String>,
    /// The repository, for the scope `local`.
    #[serde(default)]
    pub path: Option<String>,
}

/// `POST /git/credentials`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GitAuthenticateRequest {
    /// Whom to be.
    pub username: String,
    /// Their password or token.
    pub password: String,
    /// For which host; `github.com` where none is given.
    #[serde(default)]
    pub host: Option<String>,
    /// Over which protocol; `https` where none is given.
    #[serde(default)]
    pub protocol: Option<String>,
}
