//! How a persistent shell is started and spoken to.
//!
//! A shell is interactive (so that an interrupt or an error brings it back to its prompt instead of ending it) and
//! reads its script from a pipe. Its own descriptors 1 and 2 lead nowhere, which swallows prompts, job notices,
//! start-up banners and the traces of the agent's own lines; commands get the real output from a descriptor that only
//! the shell has. They never see that one, nor the script pipe: each command is run with it closed.
//!
//! - **bash** sources the command from a memory file, so its text is read in one piece, is a script of its own (an
//!   error ends the rest of it, `return` works, no `[1] 4711` for background jobs) and needs no quoting.
//! - **sh** (dash and whatever else an image has) evaluates it as one quoted word. `command` before `eval` keeps errors
//!   in special built-ins inside of it.
//! - **busybox ash** does the same, but takes its script pipe as a named file and not as its standard input: it reads
//!   that ahead into a buffer that its built-in programs, which it runs without exec, then take for their own input.

use std::path::Path;

use sandhaus_protocol::boot::ShellPreference;
use serde::{Deserialize, Serialize};

use super::scanner::Scanner;

/// The last real-time signal, which hardly any program uses.
const BASH_STOP_SIGNAL: i32 = 64;

/// Places of bash, in the order they are tried.
const BASH_PLACES: [&str; 3] = ["/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash"];

/// Places of sh.
const SH_PLACES: [&str; 2] = ["/bin/sh", "/usr/bin/sh"];

/// A shell language and the program that speaks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Dialect {
    /// bash.
    Bash(String),
    /// busybox ash.
    Ash(String),
    /// Any other POSIX shell.
    Sh(String),
}

/// What connects a shell with the agent beside its script pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Standard output of the commands, or their terminal.
    Output,
    /// Their standard error.
    Errors,
    /// Their standard input.
    Input,
}

/// What the commands of a shell are connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plumbing {
    /// A terminal for all output, nothing to read.
    Terminal,
    /// Separate pipes.
    Pipes {
        /// What they read.
        input: Input,
    },
}

/// What a command reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// Nothing.
    Empty,
    /// What is sent to it.
    Open,
}

/// Which program persistent shells run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ShellChoice {
    /// What the root file system has of these.
    Preferred(ShellPreference),
    /// This one; it speaks bash if it is called so.
    Program(String),
}

impl Dialect {
    /// The shell to use; `sh` also where there seems to be none, to fail with a clear message.
    pub(crate) fn choose(choice: &ShellChoice) -> Self {
        let present =
            |places: &[&str]| places.iter().find(|p| Path::new(p).exists()).map(|p| (*p).to_owned());
        let program = match choice {
            ShellChoice::Program(program) => Some(program.clone()),
            ShellChoice::Preferred(ShellPreference::Bash) => present(&BASH_PLACES),
            ShellChoice::Preferred(ShellPreference::Sh) => None,
        };
        Self::of(program.or_else(|| present(&SH_PLACES)).unwrap_or_else(|| SH_PLACES[0].to_owned()))
    }

    /// What a program speaks, by the name of the file that it really is.
    fn of(program: String) -> Self {
        let real = Path::new(&program).canonicalize().unwrap_or_default();
        match real.file_name().and_then(|name| name.to_str()) {
            Some("bash") => Self::Bash(program),
            Some(name) if name.starts_with("busybox") => Self::Ash(program),
            Some(_) | None => Self::Sh(program),
        }
    }

    /// Path of the program.
    pub(crate) fn program(&self) -> &str {
        match self {
            Self::Bash(program) | Self::Ash(program) | Self::Sh(program) => program,
        }
    }

    /// The command line that starts it.
    pub(crate) fn argv(&self) -> Vec<String> {
        let arguments: &[&str] = match self {
            Self::Bash(_) => &["--norc", "--noprofile", "--noediting", "-i", "+m", "+H", "+o", "history"],
            Self::Ash(_) => &["-i", "+m", "/proc/self/fd/6"],
            Self::Sh(_) => &["-i", "+m"],
        };
        std::iter::once(self.program()).chain(arguments.iter().copied()).map(str::to_owned).collect()
    }

    /// Number of the descriptor that the script pipe has in the new shell.
    pub(crate) fn pipe_fd(&self) -> u8 {
        match self {
            Self::Ash(_) => 6,
            Self::Bash(_) | Self::Sh(_) => 0,
        }
    }

    /// Number of the descriptor that a wire between the agent and the shell has there. sh knows single digits only;
    /// bash gets numbers that no script uses.
    pub(crate) fn wire(&self, wire: Wire) -> u8 {
        match (self, wire) {
            (Self::Bash(_), Wire::Output) => 61,
            (Self::Bash(_), Wire::Errors) => 60,
            (Self::Bash(_), Wire::Input) => 59,
            (Self::Ash(_) | Self::Sh(_), Wire::Output) => 9,
            (Self::Ash(_) | Self::Sh(_), Wire::Errors) => 8,
            (Self::Ash(_) | Self::Sh(_), Wire::Input) => 7,
        }
    }

    /// Number of the descriptor of the memory file, where the dialect reads one.
    pub(crate) fn script_fd(&self) -> Option<u8> {
        match self {
            Self::Bash(_) => Some(62),
            Self::Ash(_) | Self::Sh(_) => None,
        }
    }

    /// What the memory file holds for `command`. The copy of the file's descriptor that this source call has is closed
    /// first, silently even under `set -x`; the call itself restores the original afterwards.
    pub(crate) fn file_parts<'a>(&self, command: &'a str) -> Option<[&'a [u8]; 3]> {
        match self {
            Self::Bash(_) => Some([b"{ exec 63<&-; } 2>/dev/null; ", command.as_bytes(), b"\n"]),
            Self::Ash(_) | Self::Sh(_) => None,
        }
    }

    /// The signal that ends the rest of a list once the child has ended that the shell waits for. bash takes no notice of
    /// an interrupt when that child died of something else, as one that was killed did; a trap it runs before the next
    /// command. The other shells leave the list at the interrupt itself.
    pub(crate) fn stop_signal(&self) -> Option<i32> {
        match self {
            Self::Bash(_) => Some(BASH_STOP_SIGNAL),
            Self::Ash(_) | Self::Sh(_) => None,
        }
    }

    /// The first line: what the shell itself prints as it ends, from a trap, is output too. Nothing else comes this
    /// way, since bash's prompts go to its standard error and sh gets empty ones.
    pub(crate) fn first_line(&self) -> String {
        let output = self.wire(Wire::Output);
        match self {
            Self::Bash(_) => format!("trap '\\builtin kill -INT $$' {BASH_STOP_SIGNAL}\n"),
            Self::Ash(_) => format!("PS1=; PS2=; exec >&{output}; exec 6<&-\n"),
            Self::Sh(_) => format!("PS1=; PS2=; exec >&{output}\n"),
        }
    }

    /// The line written to the script pipe to run `command`.
    pub(crate) fn run_line(&self, command: &str, plumbing: Plumbing) -> String {
        let output = self.wire(Wire::Output);
        let redirections = match plumbing {
            Plumbing::Terminal => format!("</dev/null >&{output} 2>&{output} {output}>&-"),
            Plumbing::Pipes { input } => {
                let (errors, wire) = (self.wire(Wire::Errors), self.wire(Wire::Input));
                let input = match input {
                    Input::Empty => "</dev/null".to_owned(),
                    Input::Open => format!("<&{wire}"),
                };
                format!("{input} >&{output} 2>&{errors} {wire}<&- {errors}>&- {output}>&-")
            }
        };
        match self {
            Self::Bash(_) => format!("\\command . /proc/self/fd/63 63<&62 62<&- {redirections}\n"),
            Self::Ash(_) | Self::Sh(_) => format!("\\command eval {} {redirections}\n", quote(command)),
        }
    }

    /// The lines that print the end marker: after a command, and once more after an interrupt, since a shell may
    /// throw away what it had read ahead. The empty line ends whatever an error left half-read.
    pub(crate) fn end_lines(&self, nonce: &str, exec_id: u64) -> String {
        format!("\n{}", Scanner::end_command(nonce, exec_id, self.wire(Wire::Output)))
    }
}

/// One shell word that evaluates to exactly `text`.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn quoting_is_exact(text in "[^\0]{0,60}|['\"\\\\ $`!\n]{0,20}") {
            let output = Command::new("/bin/sh")
                .args(["-c", &format!("printf %s {}", quote(&text))])
                .output()
                .expect("sh runs");
            prop_assert_eq!(output.stdout, text.into_bytes());
        }
    }
}
