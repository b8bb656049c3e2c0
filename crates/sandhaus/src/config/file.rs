//! A configuration file: YAML, taken apart into keys with the lines they stand on.

use anyhow::{Context, Result};
use serde_yaml_ng::Value;

use super::keys;

/// A key of the file with its value.
#[derive(Debug)]
pub(super) struct Entry {
    /// Full name, with its group.
    pub(super) name: String,
    /// Its value.
    pub(super) value: Value,
    /// File and line.
    pub(super) place: String,
}

/// Every key of a document, in its order. `defaults: {cpu_limit: 1}` is the key `defaults.cpu_limit`; only groups of
/// known keys are opened.
pub(super) fn entries(file: &str, text: &str) -> Result<Vec<Entry>> {
    // Editors of another system put a mark before the first character.
    let text = text.trim_start_matches('\u{feff}');
    let document: Value =
        serde_yaml_ng::from_str(text).with_context(|| format!("configuration {file} is not valid YAML"))?;
    let mapping = match document {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(mapping) => mapping,
        _ => anyhow::bail!("configuration {file} must be a list of `key: value` lines"),
    };
    let mut entries: Vec<Entry> = Vec::new();
    let mut add = |name: String, value, line: Option<usize>| {
        let place = line.map_or(file.to_owned(), |line| format!("{file}:{line}"));
        if entries.iter().any(|entry| entry.name == name) {
            anyhow::bail!("configuration key {name} is given twice in {place}");
        }
        entries.push(Entry { name, value, place });
        Ok(())
    };
    for (key, value) in mapping {
        let Value::String(key) = key else {
            anyhow::bail!("configuration {file} has the key {}, which is not a word", shown(&key));
        };
        let line = line_of(text, &key, 0);
        match value {
            Value::Mapping(inner) if keys::is_group(&key) => {
                for (inner_key, inner_value) in inner {
                    let inner_key = match inner_key {
                        Value::String(word) => word,
                        other => shown(&other),
                    };
                    let inner_line = line.map(|group| line_of(text, &inner_key, group).unwrap_or(group));
                    add(format!("{key}.{inner_key}"), inner_value, inner_line)?;
                }
            }
            // An empty group, as a file with every line commented out has.
            Value::Null if keys::is_group(&key) => {}
            value => add(key, value, line)?,
        }
    }
    Ok(entries)
}

/// A value as a message shows it.
fn shown(value: &Value) -> String {
    serde_yaml_ng::to_string(value).map_or_else(|_| "…".to_owned(), |text| text.trim_end().to_owned())
}

/// Number of the line on which a key stands, as people count: at the left edge, or indented below the line `group`.
/// `None` where it shares its line with others; the parser itself does not tell.
fn line_of(text: &str, key: &str, group: usize) -> Option<usize> {
    for (index, line) in text.lines().enumerate().skip(group) {
        let content = line.trim_start_matches(' ');
        let indented = content.len() < line.len();
        let is_key = || {
            let bare = content.strip_prefix(['"', '\'']).unwrap_or(content);
            let rest = bare.strip_prefix(key)?;
            rest.trim_start_matches(['"', '\'', ' ']).starts_with(':').then_some(index + 1)
        };
        match (group, indented) {
            (0, true) => {}
            (0, false) => {
                if let Some(found) = is_key() {
                    return Some(found);
                }
            }
            // The group's block ends where the next word stands at the left edge.
            (_, false) if !content.is_empty() && !content.starts_with('#') => return None,
            (_, false) => {}
            (_, true) => {
                if let Some(found) = is_key() {
                    return Some(found);
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_on_their_lines() {
        let text = "# listen: no\nlisten: x\n\n'api_key' : y\ndefaults:\n  # cpu_limit: 3\n  cpu_limit: 2\n\n  \
                    pids_limit: 1\nsecurity: {seccomp: off}\npool:\n  enabled: true\nworkspace:\n  enabled: true\n";
        let found: Vec<(String, String)> =
            entries("f", text).expect("valid").into_iter().map(|entry| (entry.name, entry.place)).collect();
        let wanted = [
            ("listen", "f:2"),
            ("api_key", "f:4"),
            ("defaults.cpu_limit", "f:7"),
            ("defaults.pids_limit", "f:9"),
            ("security.seccomp", "f:10"),
            ("pool.enabled", "f:12"),
            ("workspace.enabled", "f:14"),
        ];
        assert_eq!(found, wanted.map(|(name, place)| (name.to_owned(), place.to_owned())));
    }

    #[test]
    fn what_shares_a_line_has_the_file_at_least() {
        let found = entries("f", "{listen: x, defaults: {cpu_limit: 2}}").expect("valid");
        assert_eq!(found.iter().map(|entry| entry.place.as_str()).collect::<Vec<_>>(), ["f", "f"]);
    }

    #[test]
    fn a_key_is_given_once() {
        let error = entries("f", "defaults.cpu_limit: 1\ndefaults:\n  cpu_limit: 2\n").expect_err("twice");
        assert!(error.to_string().contains("defaults.cpu_limit is given twice in f:3"), "{error}");
    }
}
