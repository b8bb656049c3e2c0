//! Every weakness of the older tool has a test named after it: `wNN_…` in Rust and in the browser's tests,
//! `test_wNN_…` in Python.

use std::collections::BTreeSet;

use crate::{
    lexer::{Token, tokens},
    source::Source,
};

/// How many weaknesses the contract numbers, from one.
const WEAKNESSES: u32 = 37;

/// Farthest that the attribute of a test lies before its function's name, in tokens.
const ATTRIBUTE_TOKENS_MAX: usize = 24;

/// The numbers for which no test is named, as sentences.
pub(crate) fn violations(rust: &[Source], python: &[Source], browser: &[Source]) -> Vec<String> {
    let mut shown: BTreeSet<u32> = rust.iter().flat_map(|source| in_rust(&source.text)).collect();
    shown.extend(python.iter().flat_map(|source| in_python(&source.text)));
    shown.extend(browser.iter().flat_map(|source| in_browser(&source.text)));
    (1..=WEAKNESSES)
        .filter(|number| !shown.contains(number))
        .map(|number| format!("no test is named after weakness {number}: w{number:02}_…"))
        .collect()
}

/// The number in `w07_what_it_shows`.
fn number(name: &str) -> Option<u32> {
    let (digits, rest) = name.strip_prefix('w')?.split_at_checked(2)?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && rest.len() > 1 && rest.starts_with('_');
    digits.parse().ok().filter(|_| plain)
}

/// Numbers of the functions that are tests.
fn in_rust(text: &str) -> Vec<u32> {
    let tokens = tokens(text);
    let word = |at: usize, text: &str| matches!(&tokens[at].1, Token::Word(word) if word == text);
    let named = |at: usize| {
        let Token::Word(name) = &tokens[at + 1].1 else { return None };
        let is_test =
            || (at.saturating_sub(ATTRIBUTE_TOKENS_MAX)..at).rev().any(|before| word(before, "test"));
        number(name).filter(|_| word(at, "fn") && is_test())
    };
    (0..tokens.len().saturating_sub(1)).filter_map(named).collect()
}

/// The same of a Python file.
fn in_python(text: &str) -> Vec<u32> {
    let named = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        number(line.strip_prefix("def test_")?.split('(').next()?)
    };
    text.lines().filter_map(named).collect()
}

/// The same of a file of Node's test runner.
fn in_browser(text: &str) -> Vec<u32> {
    let named = |line: &str| number(line.strip_prefix("test(\"")?.split('"').next()?);
    text.lines().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source { path: String::new(), text: text.to_owned() }
    }

    #[test]
    fn only_tests_count() {
        assert_eq!(
            in_rust("#[test]\nfn w07_a() {}\n#[tokio::test(start_paused = true)]\nasync fn w12_b() {}"),
            [7, 12]
        );
        for text in [
            "fn w07_a() {}",
            "// #[test] fn w07_a() {}",
            "#[test] fn w7_a() {}",
            "#[test] fn w07() {}",
            "#[test] fn w07_() {}",
            "#[test] fn wab_c() {}",
            "\"#[test] fn w07_a\"",
        ] {
            assert_eq!(in_rust(text), [0_u32; 0], "{text}");
        }
        assert_eq!(
            in_python("def test_w31_a(server):\nasync def test_w32_b(client):\ndef w33_c():\n"),
            [31, 32]
        );
        assert_eq!(in_browser("test(\"w32_a\", async () => {\n  test(\"w33_b\")\n// test(\"w34_c\")"), [32]);
    }

    #[test]
    fn what_has_no_test_is_named() {
        let all: String =
            (1..=WEAKNESSES).map(|number| format!("#[test] fn w{number:02}_x() {{}}\n")).collect();
        assert_eq!(violations(&[source(&all)], &[], &[]), Vec::<String>::new());
        let lacking = all.replace("w31_x", "other");
        assert_eq!(violations(&[source(&lacking)], &[], &[]), ["no test is named after weakness 31: w31_…"]);
        let python = [source("def test_w31_x():")];
        assert_eq!(violations(&[source(&lacking)], &python, &[]), Vec::<String>::new());
        let browser = [source("test(\"w31_x\", () => {});")];
        assert_eq!(violations(&[source(&lacking)], &[], &browser), Vec::<String>::new());
    }
}
