//! `sandhaus-wsl`: starts, stops and looks after a Sandhaus server inside of WSL2, from Windows.
//!
//! Reading order: [`cli`] (what can be asked for), [`commands`] (what is done), [`examination`] (what can be wrong, and
//! what to do about it), [`distributions`], [`mounts`] and [`text`] (what `wsl.exe` and Linux say, parsed), [`wsl`]
//! (running `wsl.exe`), [`reach`] (asking the server from Windows).
//!
//! Every program is started with a list of arguments. No command line is put together from text, neither for Windows
//! nor for a shell inside, and what might not survive `wsl.exe`'s own parsing is refused.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

mod cli;
mod commands;
mod distributions;
mod examination;
mod mounts;
mod reach;
mod text;
mod wsl;

use cli::Arguments;
use commands::Reply;

fn main() -> ExitCode {
    let arguments = Arguments::of(std::env::args_os());
    if std::env::consts::FAMILY != "windows" {
        return print(&Reply::failed(
            "error: sandhaus-wsl runs on Windows, where it looks after a server inside of WSL2\n\
             hint: here in Linux, use `sandhaus` itself: sandhaus daemon -d, sandhaus ps, sandhaus stop\n",
        ));
    }
    print(&commands::run(&arguments, &wsl::System::new(), &reach::System))
}

fn print(reply: &Reply) -> ExitCode {
    // Whoever closes our output early does not want the rest.
    let _ = io::stdout().write_all(reply.out.as_bytes());
    let _ = io::stderr().write_all(reply.err.as_bytes());
    ExitCode::from(reply.code)
}
