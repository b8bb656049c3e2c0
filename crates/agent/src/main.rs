//! `sandhaus-agent`: the daemon inside a sandbox. One HTTP API, on an inherited Unix socket as PID 1 of a container,
//! on TCP in a virtual machine, or on an address of its own: persistent shells, processes, sessions, terminals, files.
//!
//! Read in this order: [`boot`] (how it starts), [`guest`] (in a virtual machine), [`http`] (the routes), [`agent`] (its
//! state), [`ring`] and [`frames`] (how output is kept and streamed), [`shell`], [`process`], [`sys`] (the operating
//! system).
//! It knows no sandbox engine, no user and no other sandbox.

mod accounts;
mod agent;
mod boot;
mod clock;
mod code_run;
mod desktop;
mod error;
mod execute;
mod files;
mod frames;
#[cfg(test)]
mod fuzz;
mod git;
mod guest;
mod http;
mod interpreter;
mod lines;
mod log;
mod lsp;
mod ports;
mod process;
mod proxy;
mod pty;
mod ring;
mod script;
mod session;
mod shell;
mod ssh;
mod sys;
mod system;
mod terminal;
mod upgrade;
mod websocket;

use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    match boot::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed; the exit status still tells.
            let _ = writeln!(std::io::stderr(), "sandhaus-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
