//! The terminal this process stands on: its size, and raw mode that ends on every way out.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::{
    stdio,
    termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr},
};
use sandhaus_protocol::process::Resize;

/// Size of a terminal that has none, and the sizes that the agent takes.
const DEFAULT_SIZE: Resize = Resize { cols: 80, rows: 24 };
const SIDE_MAX: u16 = 1000;

/// How the terminal was before raw mode, for the panic hook, which has no guard at hand.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// True if standard input is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    isatty(stdio::stdin())
}

/// Size of the terminal on any of the standard descriptors.
pub(crate) fn size() -> Resize {
    [tcgetwinsize(stdio::stdout()), tcgetwinsize(stdio::stdin()), tcgetwinsize(stdio::stderr())]
        .into_iter()
        .flatten()
        .find(|size| size.ws_col > 0 && size.ws_row > 0)
        .map_or(DEFAULT_SIZE, |size| Resize {
            cols: size.ws_col.min(SIDE_MAX),
            rows: size.ws_row.min(SIDE_MAX),
        })
}

/// Standard input's terminal in raw mode. Dropping it brings the former mode back; so does a panic.
#[derive(Debug)]
pub(crate) struct RawMode {
    _private: (),
}

impl RawMode {
    /// Turns raw mode on.
    pub(crate) fn enter() -> Result<Self> {
        let before = tcgetattr(stdio::stdin()).context("read terminal mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        BEFORE.lock().unwrap_or_else(PoisonError::into_inner).replace(before);
        install_panic_hook();
        let guard = Self { _private: () };
        tcsetattr(stdio::stdin(), OptionalActions::Flush, &raw).context("set terminal to raw mode")?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Brings the former mode back, once.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that has gone needs no mode.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Drain, &before);
    }
}

/// A panic's message must not be printed onto a raw terminal, nor leave one behind.
fn install_panic_hook() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}
