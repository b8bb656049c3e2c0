//! Errors that carry a remedy, and how any error is printed.

use std::{error::Error, fmt};

use owo_colors::{OwoColorize, Stream};

/// An error that tells what to do about it.
#[derive(Debug)]
pub(crate) struct Advice {
    message: String,
    remedy: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl Advice {
    /// What failed, and what to do about it.
    pub(crate) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into(), source: None }
    }

    /// The same with its cause.
    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Advice {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Whether colours may be used on standard error: on a terminal, and not against the person's wish.
pub(crate) fn stderr_has_colours() -> bool {
    let plain = "x";
    plain.if_supports_color(Stream::Stderr, |text| text.bold()).to_string() != plain
}

/// Prints an error to standard error: what failed, why, and what to do about it. Nothing that came from elsewhere
/// reaches the terminal unescaped.
#[expect(clippy::print_stderr, reason = "this is where errors are shown")]
pub(crate) fn print_error(error: &anyhow::Error) {
    let label = "error:".if_supports_color(Stream::Stderr, |text| text.red()).to_string();
    eprintln!("{label} {}", crate::output::visible(&error.to_string()));
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let text = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !said.contains(&text) {
            eprintln!("  because: {}", crate::output::visible(&text));
        }
        said = text;
    }
    for advice in error.chain().filter_map(|cause| cause.downcast_ref::<Advice>()) {
        let label = "hint:".if_supports_color(Stream::Stderr, |text| text.cyan()).to_string();
        eprintln!("{label} {}", advice.remedy);
    }
}

/// Prints what failed to standard error, where the exit status tells more than an error could.
#[expect(clippy::print_stderr, reason = "this is where errors are shown")]
pub(crate) fn print_failure(text: &str) {
    let label = "error:".if_supports_color(Stream::Stderr, |text| text.red()).to_string();
    eprintln!("{label} {}", crate::output::visible(text));
}

/// Prints a note to standard error.
#[expect(clippy::print_stderr, reason = "this is where notes are shown")]
pub(crate) fn print_note(text: &str) {
    eprintln!("{}", crate::output::visible(text));
}

/// Prints a warning to standard error.
#[expect(clippy::print_stderr, reason = "this is where warnings are shown")]
pub(crate) fn print_warning(text: &str) {
    let label = "warning:".if_supports_color(Stream::Stderr, |text| text.yellow()).to_string();
    eprintln!("{label} {}", crate::output::visible(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_found_below_other_context() {
        let error = anyhow::Error::from(Advice::new("no", "do")).context("start");
        let remedies: Vec<_> = error.chain().filter_map(|cause| cause.downcast_ref::<Advice>()).collect();
        assert_eq!(remedies.len(), 1);
        assert_eq!(remedies[0].remedy, "do");
    }
}
