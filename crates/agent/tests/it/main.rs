//! The agent as its users see it: the real executable behind its socket, by hand and as PID 1.
#![expect(clippy::print_stderr, reason = "a test that cannot run on this machine says so")]

mod code;
mod files;
mod git;
mod guest;
mod init;
mod leak;
mod lsp;
mod machine;
mod process;
mod proxy;
mod script;
mod shell;
mod shutdown;
mod socket;
mod ssh;
mod support;
mod system;
mod terminal;
mod toolbox;
mod upgrade;
