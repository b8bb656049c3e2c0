//! What may become an argument of git: nothing that it could take for an option, and no branch that it would not make.

use crate::error::{Error, Result};

/// Longest name of a branch, a remote or a revision.
const NAME_BYTES_MAX: usize = 1024;

/// Most files in one request.
const FILES_MAX: usize = 100_000;

/// Checks the name of a branch by git's own rules for them.
pub(super) fn check_branch(name: &str) -> Result<()> {
    check_revision(name)?;
    let forbidden = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let wrong_part = |part: &str| {
        part.is_empty() || part.starts_with('.') || part.ends_with('.') || part.ends_with(".lock")
    };
    if name.chars().any(forbidden)
        || name.contains("..")
        || name.contains("@{")
        || name == "@"
        || name == "HEAD"
        || name.split('/').any(wrong_part)
    {
        return Err(Error::invalid(format_args!("{name:?} cannot be the name of a branch")));
    }
    Ok(())
}

/// Checks a revision as far as it matters before git has seen it.
pub(super) fn check_revision(text: &str) -> Result<()> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err(Error::invalid(format_args!(
            "the name of a branch or commit has 1 to {NAME_BYTES_MAX} bytes"
        )));
    }
    if text.starts_with('-') || text.chars().any(char::is_control) {
        return Err(Error::invalid(format_args!("{text:?} is no name of a branch or commit")));
    }
    Ok(())
}

/// Checks the name of a remote.
pub(super) fn check_remote(name: &str) -> Result<()> {
    check_branch(name).map_err(|_| Error::invalid(format_args!("{name:?} cannot be the name of a remote")))
}

/// Whether this could be the whole hash of a commit, which a remote can be asked for.
pub(super) fn is_whole_hash(text: &str) -> bool {
    const HASH_DIGITS: [usize; 2] = [40, 64];
    HASH_DIGITS.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The paths as git reads them from its standard input: each ends with a NUL byte.
pub(super) fn file_list(files: &[String]) -> Result<Vec<u8>> {
    if files.is_empty() || files.len() > FILES_MAX {
        return Err(Error::invalid(format_args!("files names 1 to {FILES_MAX} paths")));
    }
    let mut list = Vec::new();
    for file in files {
        if file.is_empty() || file.contains('\0') {
            return Err(Error::invalid_path(format_args!("{file:?} is no path of a file")));
        }
        list.extend_from_slice(file.as_bytes());
        list.push(0);
    }
    Ok(list)
}

/// Checks the name of a setting: `section.name` or `section.anything.name`. Git has the same status for a wrong name and
/// for one that is not set.
pub(super) fn check_setting(key: &str) -> Result<()> {
    let word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let right = key.len() <= NAME_BYTES_MAX
        && !key.chars().any(char::is_control)
        && key.split_once('.').is_some_and(|(section, rest)| {
            let name = rest.rsplit('.').next().unwrap_or_default();
            !section.is_empty()
                && !section.starts_with('-')
                && word(section)
                && word(name)
                && name.starts_with(|c: char| c.is_ascii_alphabetic())
        });
    if right {
        Ok(())
    } else {
        Err(Error::invalid(format_args!("{key:?} is no name of a setting: say section.name")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_named_as_git_allows() {
        for right in ["main", "feature/x", "a.b", "übung", "v1-2_3", "x@y"] {
            assert!(check_branch(right).is_ok(), "{right}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for wrong in [
            "", "-f", "--force", "a b", "a..b", "a~1", "a^", "a:b", "a?", "*", "[", "a\\b", "/a", "a/",
            "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "@", "a@{1}", "HEAD", "a\nb", "a\u{7f}", &long,
        ] {
            assert!(check_branch(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn revisions_are_no_options() {
        for right in ["HEAD~1", "v1^{}", "main@{u}", "@{-1}", ":/text"] {
            assert!(check_revision(right).is_ok(), "{right}");
        }
        for wrong in ["", "-", "--all", "a\0b", "a\nb"] {
            assert!(check_revision(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn settings_have_a_section_and_a_name() {
        for right in ["user.name", "http.https://example.com/.proxy", "remote.a.b.url", "core.autocrlf"] {
            assert!(check_setting(right).is_ok(), "{right}");
        }
        for wrong in ["", "user", "-x.y", ".name", "user.", "user.1x", "us er.name", "user.na_me", "a.b\n.c"]
        {
            assert!(check_setting(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn file_lists() {
        assert_eq!(file_list(&["a".to_owned(), "-b".to_owned()]).ok(), Some(b"a\0-b\0".to_vec()));
        assert!(file_list(&[]).is_err());
        assert!(file_list(&["a\0b".to_owned()]).is_err());
        assert!(file_list(&[String::new()]).is_err());
    }
}
