//! What git's failures mean. Git tells them in words, which are the same everywhere because they are asked for untranslated.

use axum::http::StatusCode;

use super::program::Output;
use crate::error::Error;

/// Status of a process that was reaped by nobody: the agent itself is ending.
pub(super) const STATUS_UNKNOWN: i32 = -1;

/// Most bytes of git's words that an answer repeats: the last ones.
const MESSAGE_BYTES_MAX: usize = 2048;

/// Words of git, and what they mean. The first that is found counts.
const MEANINGS: &[(&str, StatusCode, &str)] = &[
    ("[remote rejected]", StatusCode::UNPROCESSABLE_ENTITY, "GIT_REMOTE_REJECTED"),
    ("[rejected]", StatusCode::CONFLICT, "GIT_PUSH_REJECTED"),
    // Who one is.
    ("Authentication failed", StatusCode::UNAUTHORIZED, "GIT_AUTH_FAILED"),
    ("could not read Username", StatusCode::UNAUTHORIZED, "GIT_AUTH_FAILED"),
    ("could not read Password", StatusCode::UNAUTHORIZED, "GIT_AUTH_FAILED"),
    ("Permission denied (publickey", StatusCode::UNAUTHORIZED, "GIT_AUTH_FAILED"),
    ("returned error: 401", StatusCode::UNAUTHORIZED, "GIT_AUTH_FAILED"),
    ("returned error: 403", StatusCode::FORBIDDEN, "FORBIDDEN"),
    // What a remote has.
    ("not found in upstream", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("find remote ref", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("fatal: repository '", StatusCode::NOT_FOUND, "GIT_REPO_NOT_FOUND"),
    ("does not appear to be a git repository", StatusCode::NOT_FOUND, "GIT_REPO_NOT_FOUND"),
    ("No such remote", StatusCode::NOT_FOUND, "NOT_FOUND"),
    ("not our ref", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("unadvertised object", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    // How it is reached.
    ("unable to access '", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("Could not resolve host", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("unable to look up", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("unable to connect to", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("Connection refused", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("Connection timed out", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("Connection closed", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("Host key verification failed", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("hung up unexpectedly", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("early EOF", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("RPC failed", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("invalid server response", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    ("Could not read from remote repository", StatusCode::BAD_GATEWAY, "GIT_TRANSPORT_FAILED"),
    // What this repository has.
    ("not a git repository", StatusCode::NOT_FOUND, "GIT_REPO_NOT_FOUND"),
    ("a branch named '", StatusCode::CONFLICT, "GIT_BRANCH_EXISTS"),
    ("checked out at", StatusCode::CONFLICT, "CONFLICT"),
    ("used by worktree at", StatusCode::CONFLICT, "CONFLICT"),
    ("invalid reference:", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("src refspec", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("unknown revision", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("Needed a single revision", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("bad revision", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("is not a commit and a branch", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("matched multiple", StatusCode::CONFLICT, "CONFLICT"),
    ("error: branch '", StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND"),
    ("cannot lock ref", StatusCode::CONFLICT, "CONFLICT"),
    // What stands in the way.
    ("would be overwritten by", StatusCode::CONFLICT, "GIT_DIRTY_WORKTREE"),
    ("commit your changes or stash them", StatusCode::CONFLICT, "GIT_DIRTY_WORKTREE"),
    ("not uptodate", StatusCode::CONFLICT, "GIT_DIRTY_WORKTREE"),
    ("would lose untracked files", StatusCode::CONFLICT, "GIT_DIRTY_WORKTREE"),
    ("Not possible to fast-forward", StatusCode::CONFLICT, "GIT_MERGE_CONFLICT"),
    ("unmerged files", StatusCode::CONFLICT, "GIT_MERGE_CONFLICT"),
    ("is unmerged", StatusCode::CONFLICT, "GIT_MERGE_CONFLICT"),
    ("resolve your current index first", StatusCode::CONFLICT, "GIT_MERGE_CONFLICT"),
    ("unfinished merge", StatusCode::CONFLICT, "GIT_MERGE_CONFLICT"),
    ("in the middle of a merge", StatusCode::CONFLICT, "GIT_MERGE_CONFLICT"),
    ("refusing to merge unrelated histories", StatusCode::CONFLICT, "GIT_MERGE_CONFLICT"),
    ("is not an empty directory", StatusCode::CONFLICT, "CONFLICT"),
    (".lock': File exists", StatusCode::CONFLICT, "CONFLICT"),
    // What was asked for.
    ("did not match any file", StatusCode::NOT_FOUND, "FILE_NOT_FOUND"),
    ("is outside repository", StatusCode::BAD_REQUEST, "INVALID_FILE_PATH"),
    ("is beyond a symbolic link", StatusCode::BAD_REQUEST, "INVALID_FILE_PATH"),
    ("paths are ignored by", StatusCode::BAD_REQUEST, "BAD_REQUEST"),
    ("must be run in a work tree", StatusCode::BAD_REQUEST, "BAD_REQUEST"),
    ("empty commit message", StatusCode::BAD_REQUEST, "BAD_REQUEST"),
    ("empty ident name", StatusCode::BAD_REQUEST, "BAD_REQUEST"),
    ("disallowed characters", StatusCode::BAD_REQUEST, "BAD_REQUEST"),
    ("$HOME not set", StatusCode::BAD_REQUEST, "BAD_REQUEST"),
    ("transport '", StatusCode::FORBIDDEN, "FORBIDDEN"),
    ("dubious ownership", StatusCode::FORBIDDEN, "FORBIDDEN"),
    ("insufficient permission", StatusCode::FORBIDDEN, "FILE_ACCESS_DENIED"),
    ("Permission denied", StatusCode::FORBIDDEN, "FILE_ACCESS_DENIED"),
    ("Read-only file system", StatusCode::FORBIDDEN, "FILE_ACCESS_DENIED"),
    ("No space left on device", StatusCode::INSUFFICIENT_STORAGE, "STORAGE_FULL"),
    ("Disk quota exceeded", StatusCode::INSUFFICIENT_STORAGE, "STORAGE_FULL"),
];

/// The refusal for a call that has failed.
pub(super) fn of(output: &Output) -> Error {
    let words = told(&output.messages);
    let (status, code) = meaning(&words);
    let words = match words.is_empty() {
        true => format!("git failed with status {} and said nothing", output.status),
        false => words,
    };
    with_code(status, code, &words)
}

/// A refusal with a code of this area.
pub(super) fn with_code(status: StatusCode, code: &'static str, message: &str) -> Error {
    let start = match status {
        StatusCode::BAD_REQUEST => "bad request: ",
        StatusCode::UNAUTHORIZED => "unauthorized: ",
        StatusCode::FORBIDDEN => "forbidden: ",
        StatusCode::NOT_FOUND => "not found: ",
        StatusCode::CONFLICT => "conflict: ",
        _ => "",
    };
    Error::coded(status, code, format!("{start}{message}"))
}

/// 404 for a path that is no repository.
pub(super) fn no_repository(path: &str) -> Error {
    with_code(StatusCode::NOT_FOUND, "GIT_REPO_NOT_FOUND", &format!("no repository at {path}"))
}

/// 404 for a branch or commit.
pub(super) fn no_branch(name: &str) -> Error {
    let message = format!("there is no branch or commit {name}");
    with_code(StatusCode::NOT_FOUND, "GIT_BRANCH_NOT_FOUND", &message)
}

/// 404 for anything else.
pub(super) fn not_found(message: &str) -> Error {
    with_code(StatusCode::NOT_FOUND, "NOT_FOUND", message)
}

/// 503 where there is no git.
pub(super) fn not_installed(cause: &impl std::fmt::Display) -> Error {
    let message = format!(
        "cannot run git: {cause}; install it in the sandbox (apt-get install git) or use an image that has it"
    );
    with_code(StatusCode::SERVICE_UNAVAILABLE, "GIT_NOT_INSTALLED", &message)
}

/// The end of git's messages without its advice.
fn told(messages: &str) -> String {
    let lines: Vec<&str> = messages
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && !line.starts_with("hint:"))
        .collect();
    let text = lines.join("\n");
    let from = text.len().saturating_sub(MESSAGE_BYTES_MAX);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text[from..].to_owned()
}

/// What a remote says is not git's word.
fn meaning(words: &str) -> (StatusCode, &'static str) {
    let own: Vec<&str> = words.lines().filter(|line| !line.starts_with("remote:")).collect();
    let found = MEANINGS.iter().find(|(text, ..)| own.iter().any(|line| line.contains(text)));
    found.map_or((StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_SERVER_ERROR"), |(_, status, code)| {
        (*status, *code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_meanings() {
        let cases = [
            ("fatal: Authentication failed for 'http://x/'", 401, "GIT_AUTH_FAILED"),
            (
                "remote: [rejected] is what I say\nfatal: unable to access 'http://x/': The requested URL returned error: 403",
                403,
                "FORBIDDEN",
            ),
            ("remote: Not Found.\nfatal: repository 'http://x/' not found", 404, "GIT_REPO_NOT_FOUND"),
            ("fatal: unable to access 'http://x/': Failed to connect", 502, "GIT_TRANSPORT_FAILED"),
            (" ! [rejected]        main -> main (fetch first)", 409, "GIT_PUSH_REJECTED"),
            (" ! [remote rejected] main -> main (pre-receive hook declined)", 422, "GIT_REMOTE_REJECTED"),
            ("fatal: something new", 500, "INTERNAL_SERVER_ERROR"),
            ("", 500, "INTERNAL_SERVER_ERROR"),
        ];
        for (messages, status, code) in cases {
            let output = Output { status: 128, text: Vec::new(), messages: messages.to_owned() };
            let error = of(&output);
            assert_eq!((error.status.as_u16(), error.code), (status, code), "{messages}");
        }
    }

    #[test]
    fn messages_are_short_and_without_advice() {
        assert_eq!(told("hint: try\n\nerror: a  \nhint: b\nfatal: c\n"), "error: a\nfatal: c");
        let long = "é".repeat(MESSAGE_BYTES_MAX);
        assert!(told(&long).len() <= MESSAGE_BYTES_MAX);
    }
}
