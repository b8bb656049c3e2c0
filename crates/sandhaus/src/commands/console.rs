//! `sandhaus console`: the serial console of a sandbox, typed into.

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::BodyExt;
use sandhaus_client::Console;
use sandhaus_sandbox::{SandboxId, toolbox::Body};
use tokio::io::AsyncWriteExt;

use crate::{
    advice::print_note,
    cli::ConsoleArguments,
    commands::run::Quiet,
    config::Config,
    interrupt::Signals,
    server::{Server, explain},
    terminal::{self, RawMode},
};

/// The byte that Ctrl-] types: it ends this program, never the sandbox.
const ESCAPE: u8 = 0x1d;

/// Joins the console and this terminal until either ends.
pub(crate) async fn console(arguments: &ConsoleArguments, config: &Config, quiet: Quiet) -> Result<ExitCode> {
    let id = SandboxId::parse(&arguments.sandbox)?;
    let server = Server::find(&arguments.server, config)?;
    let mut signals = Signals::listen()?;
    let mut console = server.client().console(id.as_str()).await.map_err(explain)?;
    let on_terminal = terminal::stdin_is_terminal();
    if on_terminal && quiet == Quiet::No {
        print_note(&format!("console of {id}; Ctrl-] leaves it"));
    }
    let raw = on_terminal.then(RawMode::enter).transpose()?;
    let input = crate::body::stream(std::io::stdin())?;
    let joined = join(&mut console, input, on_terminal, &mut signals).await;
    drop(raw);
    if on_terminal {
        // The console's last line may not have ended.
        let _ = writeln!(std::io::stderr());
    }
    console.close().await;
    let left = joined?;
    if quiet == Quiet::No && left == Left::ItEnded {
        print_note("the console has ended");
    }
    Ok(ExitCode::SUCCESS)
}

/// Why the console was left.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// We wanted to.
    Asked,
    /// It ended.
    ItEnded,
}

async fn join(console: &mut Console, mut input: Body, escapes: bool, signals: &mut Signals) -> Result<Left> {
    let mut stdout = tokio::io::stdout();
    let mut typing = true;
    loop {
        // Every arm is cancel-safe: a frame, a message and a signal are taken whole or not at all.
        tokio::select! {
            printed = console.next() => match printed.map_err(explain)? {
                Some(bytes) => {
                    stdout.write_all(&bytes).await.context("write output")?;
                    stdout.flush().await.context("write output")?;
                }
                None => return Ok(Left::ItEnded),
            },
            typed = input.frame(), if typing => match typed {
                Some(frame) => {
                    let frame = frame.map_err(|error| anyhow::anyhow!(error)).context("read input")?;
                    let Ok(bytes) = frame.into_data() else { continue };
                    let (bytes, leaves) = until_escape(bytes, escapes);
                    if !bytes.is_empty() {
                        console.send(bytes).await.map_err(explain)?;
                    }
                    if leaves {
                        return Ok(Left::Asked);
                    }
                }
                // What a pipe has to say is said; what comes back goes on.
                None if !escapes => typing = false,
                None => return Ok(Left::Asked),
            },
            _ = signals.end() => return Ok(Left::Asked),
        }
    }
}

/// What is typed before the escape, and whether it comes.
fn until_escape(bytes: Bytes, escapes: bool) -> (Bytes, bool) {
    match bytes.iter().position(|byte| *byte == ESCAPE) {
        Some(at) if escapes => (bytes.slice(..at), true),
        _ => (bytes, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_terminal_has_an_escape() {
        let typed = Bytes::from_static(b"ls\r\x1dx");
        assert_eq!(until_escape(typed.clone(), true), (Bytes::from_static(b"ls\r"), true));
        assert_eq!(until_escape(typed.clone(), false), (typed, false));
        assert_eq!(until_escape(Bytes::from_static(b"ls\r"), true), (Bytes::from_static(b"ls\r"), false));
    }
}
