//! What the sources of a crate may name, which `cargo metadata` cannot see.

use std::path::Path;

use anyhow::Context as _;

use crate::lexer::{Placed, Token, tokens};

/// Folders of the gateway that each translate one public API.
const DIALECTS: &[&str] = &["v1", "daytona", "runner"];

/// Words that mean one engine; the domain and the edge know engines only as opaque names.
const ENGINE_WORDS: &[&str] = &["namespace", "qemu", "cloud_hypervisor", "cloud-hypervisor", "libvirt"];

/// Crates that may not say any of [`ENGINE_WORDS`].
const ENGINE_BLIND: &[&str] = &["crates/sandbox/src/", "crates/gateway/src/"];

/// The only file that chooses between operating systems.
const SYSTEM_SWITCH: &str = "crates/agent/src/sys/mod.rs";

/// Where `unsafe` may be opened: beneath these, and nowhere else.
const UNSAFE_PLACES: &[&str] = &[
    "benches/src/floor/",
    "crates/agent/src/sys/linux/",
    "crates/engines/src/namespace/",
    "crates/engines/src/net/inside.rs",
    "crates/engines/src/qemu/spawn.rs",
    "crates/engines/src/net/tap.rs",
    "crates/sandbox/src/instance.rs",
    "crates/sandbox/src/loop_device.rs",
    "crates/sandhaus/src/background.rs",
    "crates/sandhaus/src/kvm.rs",
    "crates/sandhaus/src/process.rs",
    "crates/sandhaus/tests/terminal.rs",
];

/// A file of the checkout, by its path from the root, with `/` between the parts.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every Rust file beneath the workspace's folders.
pub(crate) fn read_all(root: &Path) -> anyhow::Result<Vec<Source>> {
    let mut found = Vec::new();
    for folder in ["crates", "tests", "benches", "xtask"] {
        found.extend(read_folder(root, folder, "rs")?);
    }
    found.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(found)
}

/// Every file with this extension beneath a folder.
pub(crate) fn read_folder(root: &Path, folder: &str, extension: &str) -> anyhow::Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                // Build output and caches hold no source of ours.
                if !matches!(path.file_name().and_then(|name| name.to_str()), Some("target" | ".cache")) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs_err::read_to_string(&path)?;
                let path = path.strip_prefix(root).context("a path beneath the root")?;
                found.push(Source { path: path.to_string_lossy().into_owned(), text });
            }
        }
    }
    Ok(found)
}

/// Everything in `source` that breaks a rule, as `path:line: what`.
pub(crate) fn violations(source: &Source) -> Vec<String> {
    let tokens = tokens(&source.text);
    let mut found = Vec::new();
    let mut report = |line: usize, what: String| found.push(format!("{}:{line}: {what}", source.path));
    dialects(&source.path, &tokens, &mut report);
    engine_words(&source.path, &tokens, &mut report);
    system_switches(&source.path, &tokens, &mut report);
    unsafe_openings(&source.path, &tokens, &mut report);
    server_parts(&source.path, &tokens, &mut report);
    found
}

fn dialects(path: &str, tokens: &[Placed], report: &mut impl FnMut(usize, String)) {
    let Some(inside) = path.strip_prefix("crates/gateway/src/") else { return };
    let Some(own) = DIALECTS.iter().find(|dialect| {
        inside.strip_prefix(**dialect).is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
    }) else {
        return;
    };
    for (line, token) in tokens {
        if let Token::Word(word) = token
            && word != own
            && DIALECTS.contains(&word.as_str())
        {
            report(*line, format!("dialect {own} names dialect {word}"));
        }
    }
}

fn engine_words(path: &str, tokens: &[Placed], report: &mut impl FnMut(usize, String)) {
    if !ENGINE_BLIND.iter().any(|place| path.starts_with(place)) {
        return;
    }
    for (line, token) in tokens {
        let said = match token {
            Token::Word(word) | Token::Text(word) => word.to_lowercase(),
            Token::Sign(_) => continue,
        };
        if let Some(word) = ENGINE_WORDS.iter().find(|word| said.contains(**word)) {
            report(*line, format!("names an engine: {word}"));
        }
    }
}

fn system_switches(path: &str, tokens: &[Placed], report: &mut impl FnMut(usize, String)) {
    if path == SYSTEM_SWITCH {
        return;
    }
    for (at, (line, token)) in tokens.iter().enumerate() {
        let Token::Word(word) = token else { continue };
        if !matches!(word.as_str(), "cfg" | "cfg_attr" | "cfg_if") {
            continue;
        }
        // The condition is what stands in the parentheses that follow; `cfg!` has a sign between.
        let condition = tokens[at + 1..].iter().take_while(|(_, token)| *token != Token::Sign(']')).take(40);
        let mut depth = 0_i32;
        for (_, token) in condition {
            match token {
                Token::Sign('(') => depth += 1,
                Token::Sign(')') => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                Token::Word(name) | Token::Text(name) if depth > 0 && name == "windows" => {
                    report(*line, format!("chooses by operating system; only {SYSTEM_SWITCH} does"));
                    break;
                }
                Token::Word(_) | Token::Text(_) | Token::Sign(_) => {}
            }
        }
    }
}

fn unsafe_openings(path: &str, tokens: &[Placed], report: &mut impl FnMut(usize, String)) {
    if UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
        return;
    }
    for (line, token) in tokens {
        if *token == Token::Word("unsafe_code".to_owned()) {
            report(
                *line,
                "opens unsafe code; the places that may are listed in xtask/src/source.rs".to_owned(),
            );
        }
    }
}

/// The domain speaks HTTP to agents, but serves none.
fn server_parts(path: &str, tokens: &[Placed], report: &mut impl FnMut(usize, String)) {
    if !path.starts_with("crates/sandbox/src/") {
        return;
    }
    for window in tokens.windows(4) {
        let [
            (line, Token::Word(krate)),
            (_, Token::Sign(':')),
            (_, Token::Sign(':')),
            (_, Token::Word(module)),
        ] = window
        else {
            continue;
        };
        if matches!(krate.as_str(), "hyper" | "hyper_util") && module == "server" {
            report(*line, format!("uses {krate}::server"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str) -> Vec<String> {
        violations(&Source { path: path.to_owned(), text: text.to_owned() })
    }

    #[test]
    fn a_dialect_that_names_another_is_found() {
        for text in
            ["use crate::daytona::Error;", "use super::super::{auth, runner};", "crate::daytona::routes()"]
        {
            assert_eq!(check("crates/gateway/src/v1/sessions.rs", text).len(), 1, "{text}");
        }
        assert_eq!(check("crates/gateway/src/v1.rs", "mod a; use crate::daytona;").len(), 1);
        for text in ["use crate::v1::wire;", "// as crate::daytona does", "let daytona_like = 1;"] {
            assert_eq!(check("crates/gateway/src/v1/sessions.rs", text), Vec::<String>::new(), "{text}");
        }
        assert_eq!(check("crates/gateway/src/lib.rs", "mod v1; mod daytona;"), Vec::<String>::new());
    }

    #[test]
    fn an_engine_named_by_the_domain_or_the_edge_is_found() {
        let place = "crates/sandbox/src/plan.rs";
        assert_eq!(check(place, "use crate::Namespace;"), [format!("{place}:1: names an engine: namespace")]);
        assert_eq!(check(place, "\nlet e = EngineName(\"qemu\".into());").len(), 1);
        assert_eq!(
            check("crates/gateway/src/lib.rs", "struct CloudHypervisor; mod cloud_hypervisor;").len(),
            1
        );
        assert_eq!(check("crates/gateway/src/lib.rs", "fn libvirt_uri() {}").len(), 1);
        assert_eq!(check(place, "/// Lives in namespaces.\nfn a() {}"), Vec::<String>::new());
        assert_eq!(
            check("crates/engines/src/namespace/mod.rs", "struct NamespaceEngine;"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_choice_of_operating_system_elsewhere_is_found() {
        for text in [
            "#[cfg(windows)] fn a() {}",
            "#[cfg(not(windows))] fn a() {}",
            "#[cfg(all(test, target_os = \"windows\"))] fn a() {}",
            "fn a() { if cfg!(windows) {} }",
            "#[cfg_attr(windows, expect(unused))] fn a() {}",
        ] {
            assert_eq!(check("crates/agent/src/process.rs", text).len(), 1, "{text}");
            assert_eq!(check(SYSTEM_SWITCH, text), Vec::<String>::new(), "{text}");
        }
        for text in ["#[cfg(test)] mod tests { fn windows() {} }", "#[cfg(unix)] fn windows() {}"] {
            assert_eq!(check("crates/agent/src/process.rs", text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn unsafe_code_opened_elsewhere_is_found() {
        let text = "#![expect(unsafe_code, reason = \"speed\")]";
        assert_eq!(check("crates/gateway/src/auth.rs", text).len(), 1);
        assert_eq!(check("crates/engines/src/net.rs", text).len(), 1);
        assert_eq!(check("crates/engines/src/namespace/sys.rs", text), Vec::<String>::new());
    }

    #[test]
    fn a_server_inside_the_domain_is_found() {
        let place = "crates/sandbox/src/toolbox.rs";
        assert_eq!(check(place, "use hyper::server::conn::http1;").len(), 1);
        assert_eq!(check(place, "hyper_util::server::graceful()").len(), 1);
        assert_eq!(check(place, "use hyper::client::conn::http1;"), Vec::<String>::new());
    }

    #[test]
    fn lines_are_those_of_the_file() {
        let text = "// one\n\"two\nthree\";\n#[cfg(windows)]\nfn a() {}";
        assert!(check("crates/agent/src/main.rs", text)[0].starts_with("crates/agent/src/main.rs:4: "));
    }
}
