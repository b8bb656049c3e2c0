//! The older tool's ways to say things on the command line: its names for this binary, its flags with one dash, a
//! server without a subcommand.
//!
//! Only what that tool had is rewritten, and only up to the command that `run` and `exec` pass on, so that nothing of
//! ours can be meant otherwise.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

/// Under which name this binary was called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum CalledAs {
    /// Its own.
    #[default]
    Sandhaus,
    /// The older tool's: what it prints has that tool's shapes, since scripts read them.
    Sandkasten,
}

/// Names of the older tool's two programs.
const SANDKASTEN: &str = "sandkasten";
const IMGBUILDER: &str = "imgbuilder";

/// Whether a flag has a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Value,
    Nothing,
}

/// Every long flag of the older tool.
const FLAGS: &[(&str, Takes)] = &[
    ("config", Takes::Value),
    ("data-dir", Takes::Value),
    ("log-level", Takes::Value),
    ("host", Takes::Value),
    ("listen", Takes::Value),
    ("api-key", Takes::Value),
    ("default-image", Takes::Value),
    ("pull", Takes::Value),
    ("name", Takes::Value),
    ("tar", Takes::Value),
    ("skip-pull", Takes::Nothing),
    ("force", Takes::Nothing),
    ("detach", Takes::Nothing),
];

/// Commands that pass arguments on.
const PASS_ON: &[&str] = &["run", "exec"];

/// What asks for help or the version, without any command.
const ASKS: &[&str] = &["-h", "--help", "-V", "--version"];

/// The command line in our own spelling, and the name it was called by.
pub(crate) fn settle(arguments: impl Iterator<Item = OsString>) -> (CalledAs, Vec<OsString>) {
    let mut arguments = arguments;
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
    let (command, mut rest) = respell(arguments);
    match (name.as_str(), command) {
        (IMGBUILDER, _) => rest.insert(0, "image".into()),
        (SANDKASTEN, None) if !rest.iter().any(|word| ASKS.iter().any(|ask| word == ask)) => {
            rest.insert(0, "serve".into());
        }
        _ => {}
    }
    let called_as = match name.as_str() {
        SANDKASTEN | IMGBUILDER => CalledAs::Sandkasten,
        _ => CalledAs::Sandhaus,
    };
    rest.insert(0, program);
    (called_as, rest)
}

/// Flags with two dashes, and the subcommand.
fn respell(mut arguments: impl Iterator<Item = OsString>) -> (Option<String>, Vec<OsString>) {
    let mut command: Option<String> = None;
    let mut rest = Vec::new();
    while let Some(word) = arguments.next() {
        let Some(text) = word.to_str() else {
            rest.push(word);
            continue;
        };
        if text == "--" {
            rest.push(word);
            break;
        }
        if let Some((flag, takes)) = old_flag(text) {
            rest.push(flag.into());
            if takes == Takes::Value {
                rest.extend(arguments.next());
            }
            continue;
        }
        let is_command = command.is_none() && !text.starts_with('-');
        let passes_on = is_command && PASS_ON.contains(&text);
        if is_command {
            command = Some(text.to_owned());
        }
        rest.push(word);
        if passes_on {
            break;
        }
    }
    rest.extend(arguments);
    (command, rest)
}

/// A flag of the older tool in our spelling, and whether its value is the next word.
fn old_flag(word: &str) -> Option<(String, Takes)> {
    let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    let (name, value) = match bare.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (bare, None),
    };
    // Its only flag of one letter can have two dashes as well.
    if name == "d" && word.starts_with("--") {
        return Some((word[1..].to_owned(), Takes::Nothing));
    }
    let (name, takes) = FLAGS.iter().find(|(known, _)| *known == name)?;
    Some(match value {
        Some(value) => (format!("--{name}={value}"), Takes::Nothing),
        None => (format!("--{name}"), *takes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(line: &str) -> (CalledAs, String) {
        let (called_as, words) = settle(line.split(' ').map(OsString::from));
        let words: Vec<_> = words.iter().map(|word| word.to_str().expect("text")).collect();
        (called_as, words.join(" "))
    }

    #[test]
    fn the_older_tools_spellings_become_ours() {
        let cases = [
            ("sandkasten", "sandkasten serve"),
            ("/usr/bin/sandkasten --config x.yaml", "/usr/bin/sandkasten serve --config x.yaml"),
            ("sandkasten -config x.yaml -d", "sandkasten serve --config x.yaml -d"),
            ("sandkasten -config=daemon", "sandkasten serve --config=daemon"),
            ("sandkasten -config daemon ps", "sandkasten --config daemon ps"),
            ("sandkasten daemon -detach", "sandkasten daemon --detach"),
            ("sandkasten daemon --d", "sandkasten daemon -d"),
            ("sandkasten daemon -d=true", "sandkasten daemon -d=true"),
            ("sandkasten ps -host http://x", "sandkasten ps --host http://x"),
            ("sandkasten rm -config -name a b", "sandkasten rm --config -name a b"),
            (
                "sandkasten image pull -name python python:3.12",
                "sandkasten image pull --name python python:3.12",
            ),
            ("sandkasten --help", "sandkasten --help"),
            ("sandkasten version", "sandkasten version"),
            ("imgbuilder list", "imgbuilder image list"),
            ("imgbuilder import -name n --tar f.tar", "imgbuilder image import --name n --tar f.tar"),
            ("imgbuilder import -tar=f.tar -name=n", "imgbuilder image import --tar=f.tar --name=n"),
            ("imgbuilder", "imgbuilder image"),
        ];
        for (line, wanted) in cases {
            assert_eq!(settled(line), (CalledAs::Sandkasten, wanted.to_owned()), "{line}");
        }
    }

    #[test]
    fn our_own_command_lines_mean_what_they_say() {
        let cases = [
            "sandhaus",
            "sandhaus --config x.yaml",
            "sandhaus run -it -- find . -name x",
            "sandhaus run find . -name x -config y",
            "sandhaus exec 0123abcd-ef0 tar -tar x",
            "sandhaus ps -a -o json",
            "sandhaus cp -- -config y",
            "sandhaus logs -f 0123abcd-ef0",
        ];
        for line in cases {
            assert_eq!(settled(line), (CalledAs::Sandhaus, line.to_owned()));
        }
        assert_eq!(settled("sandhaus ps -config x").1, "sandhaus ps --config x");
    }

    #[test]
    fn what_is_not_text_goes_through() {
        use std::os::unix::ffi::OsStrExt;
        let words = ["sandhaus".into(), OsStr::from_bytes(b"-\xff").to_owned(), "ps".into()];
        assert_eq!(settle(words.clone().into_iter()).1, words);
    }
}
