//! The command line: definitions only.

use std::ffi::{OsStr, OsString};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Long options that the older tool also took with one dash.
const ONE_DASH: &[&str] = &["distro", "config", "binary"];

/// Longest argument that is passed on, in bytes.
const ARGUMENT_BYTES_MAX: usize = 4096;

/// Start, stop and check a Sandhaus server inside of WSL2
#[derive(Debug, Parser)]
#[command(
    name = "sandhaus-wsl",
    version,
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done; 1 something is wrong, with what to do about it; 2 wrong usage; 3 (status) the \
                  server does not run."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Command {
    /// Start the server in the background
    Start,
    /// Tell whether the server runs, with its sandboxes
    Status {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
        output: Output,
    },
    /// End the server; its sandboxes go on
    Stop,
    /// Check Windows, WSL and the distribution, and say what to do about what is wrong
    Doctor {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
        output: Output,
    },
}

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Where the server is.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// WSL distribution [default: the one that `wsl --list` marks]
    #[arg(short, long, global = true, value_name = "NAME", value_parser = parse_distribution)]
    pub(crate) distro: Option<String>,
    /// Configuration of the server, as Linux names the file [default: /etc/sandhaus/sandhaus.yaml, if it is there]
    #[arg(short, long, global = true, value_name = "FILE", value_parser = parse_path)]
    pub(crate) config: Option<String>,
    /// The program inside of the distribution
    #[arg(short, long, global = true, value_name = "PROGRAM", default_value = "sandhaus", value_parser = parse_program)]
    pub(crate) binary: String,
}

impl Arguments {
    /// Parses a command line; what is wrong with it ends the process with status 2.
    pub(crate) fn of(arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self::parse_from(arguments.into_iter().map(with_two_dashes))
    }
}

/// `-distro X` and `-distro=X` mean `--distro X`.
fn with_two_dashes(argument: OsString) -> OsString {
    let known = argument.to_str().and_then(|text| text.strip_prefix('-')).is_some_and(|text| {
        let name = text.split('=').next().unwrap_or(text);
        ONE_DASH.contains(&name)
    });
    if !known {
        return argument;
    }
    let mut longer = OsString::from(OsStr::new("-"));
    longer.push(argument);
    longer
}

fn parse_distribution(text: &str) -> Result<String, String> {
    let allowed = |letter: char| letter.is_alphanumeric() || matches!(letter, '.' | '_' | '-');
    if text.is_empty() || text.starts_with('-') || !text.chars().all(allowed) {
        return Err("a distribution's name has letters, digits, dots, dashes and underscores".to_owned());
    }
    bounded(text)
}

fn parse_program(text: &str) -> Result<String, String> {
    if text.contains('/') || text.contains('\\') {
        return parse_path(text);
    }
    if text.is_empty() || text.starts_with('-') {
        return Err("must be a program's name or its path".to_owned());
    }
    checked(text)
}

fn parse_path(text: &str) -> Result<String, String> {
    let is_windows =
        text.contains('\\') || matches!(text.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    if is_windows {
        return Err(
            "is a path of Windows: name the file as Linux does, such as /etc/sandhaus/sandhaus.yaml, and \
                    keep it inside of the distribution"
                .to_owned(),
        );
    }
    if !text.starts_with('/') {
        return Err("must be an absolute path inside of the distribution".to_owned());
    }
    checked(text)
}

/// What `wsl.exe` surely passes on as it is.
fn checked(text: &str) -> Result<String, String> {
    if text.chars().any(|letter| letter.is_control() || matches!(letter, '"' | '\\' | '$' | '`')) {
        return Err("must not have quotes, dollars, backslashes or control characters in it".to_owned());
    }
    bounded(text)
}

fn bounded(text: &str) -> Result<String, String> {
    if text.len() > ARGUMENT_BYTES_MAX {
        return Err(format!("is longer than {ARGUMENT_BYTES_MAX} bytes"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, clap::Error> {
        let words = ["sandhaus-wsl"].iter().chain(words).map(OsString::from);
        Arguments::try_parse_from(words.map(with_two_dashes))
    }

    #[test]
    fn the_definitions_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn old_spellings_mean_the_same() {
        for words in [
            &["start", "-d", "Debian", "-c", "/etc/s.yaml", "-b", "/opt/sandhaus"][..],
            &["start", "--distro", "Debian", "--config=/etc/s.yaml", "--binary", "/opt/sandhaus"],
            &["start", "-distro", "Debian", "-config=/etc/s.yaml", "-binary", "/opt/sandhaus"],
            &["-d=Debian", "-config", "/etc/s.yaml", "-binary=/opt/sandhaus", "start"],
        ] {
            let place = parse(words).expect("a good command line").place;
            assert_eq!(place.distro.as_deref(), Some("Debian"), "{words:?}");
            assert_eq!(place.config.as_deref(), Some("/etc/s.yaml"), "{words:?}");
            assert_eq!(place.binary, "/opt/sandhaus", "{words:?}");
        }
        assert_eq!(parse(&["stop"]).expect("a good command line").place.binary, "sandhaus");
    }

    #[test]
    fn wrong_usage_ends_with_2() {
        for words in [&[][..], &["restart"], &["start", "--nonsense"], &["start", "-c"], &["start", "extra"]]
        {
            assert_eq!(parse(words).expect_err("wrong usage").exit_code(), 2, "{words:?}");
        }
    }

    #[test]
    fn what_might_be_read_as_something_else_is_refused() {
        for words in [
            ["-c", "C:\\Users\\me\\sandhaus.yaml"],
            ["-c", "c:/sandhaus.yaml"],
            ["-c", "\\\\wsl.localhost\\Debian\\etc\\s.yaml"],
            ["-c", "sandhaus.yaml"],
            ["-c", "/etc/$(reboot)"],
            ["-c", "/etc/a\"b"],
            ["-c", "/etc/a\nb"],
            ["-b", "-rf"],
            ["-b", ""],
            ["-d", "Debian; reboot"],
            ["-d", "--unregister"],
            ["-d", ""],
        ] {
            let refused = parse(&["start", words[0], words[1]]).expect_err("refused");
            assert_eq!(refused.exit_code(), 2, "{words:?}");
        }
        for path in ["/etc/with blanks/s.yaml", "/etc/straße.yaml", "/a;b&c|d'e.yaml"] {
            assert_eq!(parse(&["start", "-c", path]).expect("fine").place.config.as_deref(), Some(path));
        }
    }
}
