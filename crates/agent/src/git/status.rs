//! Git's report on a working tree, in the form that it promises to keep (porcelain version 2, fields ended by NUL bytes).

use sandhaus_protocol::git::{GitFileState, GitFileStatus, GitStatus};

/// Name of the current branch where none is checked out.
const DETACHED: &str = "HEAD";

/// Reads a report. `None` when it is none.
pub(super) fn parse(report: &[u8]) -> Option<GitStatus> {
    let text = String::from_utf8_lossy(report);
    let mut status = GitStatus {
        current_branch: String::new(),
        file_status: Vec::new(),
        ahead: 0,
        behind: 0,
        branch_published: false,
        detached: false,
        upstream: None,
    };
    let mut entries = text.split('\0').filter(|entry| !entry.is_empty());
    while let Some(entry) = entries.next() {
        let (kind, rest) = entry.split_once(' ')?;
        match kind {
            "#" => header(&mut status, rest)?,
            "1" => status.file_status.push(changed(rest, 7, "")?),
            "2" => status.file_status.push(changed(rest, 8, entries.next()?)?),
            "u" => {
                let name = rest.splitn(10, ' ').nth(9)?;
                status.file_status.push(file(name, "", GitFileState::Unmerged, GitFileState::Unmerged));
            }
            "?" => status.file_status.push(file(rest, "", GitFileState::Untracked, GitFileState::Untracked)),
            // Ignored files are not asked for.
            "!" => {}
            _ => return None,
        }
    }
    Some(status)
}

fn header(status: &mut GitStatus, text: &str) -> Option<()> {
    let (name, value) = text.split_once(' ')?;
    match name {
        "branch.head" if value == "(detached)" => {
            status.detached = true;
            status.current_branch = DETACHED.to_owned();
        }
        "branch.head" => status.current_branch = value.to_owned(),
        "branch.upstream" => status.upstream = Some(value.to_owned()),
        // Only where the remote's branch is known here.
        "branch.ab" => {
            let (ahead, behind) = value.split_once(' ')?;
            status.ahead = ahead.strip_prefix('+')?.parse().ok()?;
            status.behind = behind.strip_prefix('-')?.parse().ok()?;
            status.branch_published = true;
        }
        // Newer gits may tell more.
        _ => {}
    }
    Some(())
}

/// A tracked file: its two letters, `between` fields, its name.
fn changed(rest: &str, between: usize, extra: &str) -> Option<GitFileStatus> {
    let name = rest.splitn(between + 1, ' ').nth(between)?;
    let mut letters = rest.chars();
    let (staging, worktree) = (letters.next()?, letters.next()?);
    Some(file(name, extra, state(staging)?, state(worktree)?))
}

fn file(name: &str, extra: &str, staging: GitFileState, worktree: GitFileState) -> GitFileStatus {
    GitFileStatus { name: name.to_owned(), extra: extra.to_owned(), staging, worktree }
}

fn state(letter: char) -> Option<GitFileState> {
    Some(match letter {
        '.' => GitFileState::Unmodified,
        'M' | 'T' => GitFileState::Modified,
        'A' => GitFileState::Added,
        'D' => GitFileState::Deleted,
        'R' => GitFileState::Renamed,
        'C' => GitFileState::Copied,
        'U' => GitFileState::Unmerged,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reports_are_read() {
        let report = "# branch.oid 1234\0# branch.head main\0# branch.upstream origin/main\0# branch.ab +2 -1\0# stash 3\0\
            1 .M N... 100644 100644 100644 aa bb a file\0\
            2 R. N... 100644 100644 100644 aa bb R100 new name\0old name\0\
            u UU N... 100644 100644 100644 100644 aa bb cc in conflict\0? new\nfile\0";
        let status = parse(report.as_bytes()).expect("a report");
        assert_eq!((status.current_branch.as_str(), status.ahead, status.behind), ("main", 2, 1));
        assert!(status.branch_published && !status.detached);
        assert_eq!(status.upstream.as_deref(), Some("origin/main"));
        let files: Vec<_> = status
            .file_status
            .iter()
            .map(|file| (file.name.as_str(), file.extra.as_str(), file.staging, file.worktree))
            .collect();
        use GitFileState::{Modified, Renamed, Unmerged, Unmodified, Untracked};
        assert_eq!(
            files,
            [
                ("a file", "", Unmodified, Modified),
                ("new name", "old name", Renamed, Unmodified),
                ("in conflict", "", Unmerged, Unmerged),
                ("new\nfile", "", Untracked, Untracked),
            ]
        );
        let detached = parse(b"# branch.oid 1234\0# branch.head (detached)\0").expect("a report");
        assert_eq!((detached.current_branch.as_str(), detached.detached), ("HEAD", true));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(report in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&report);
        }

        #[test]
        fn any_pieces_are_survived(pieces in proptest::collection::vec("(#|1|2|u|\\?|!) ?(branch.ab|[.MRU]{2}|[ +-]){0,9}", 0..6)) {
            let _ = parse(pieces.join("\0").as_bytes());
        }
    }
}
