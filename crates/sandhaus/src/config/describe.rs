//! The table of keys as others read it: a JSON schema for editors, and the table of the guide.

use serde_json::{Map, Value, json};

use super::{
    Config,
    keys::{KEYS, Key, Kind},
};

/// The JSON schema of a configuration file.
pub(crate) fn schema() -> Value {
    let defaults = Config::default();
    let mut root = Map::new();
    for key in KEYS {
        match key.name.split_once('.') {
            None => {
                root.insert(key.name.to_owned(), property(key, &defaults));
            }
            Some((group, name)) => {
                let group = root.entry(group).or_insert_with(
                    || json!({ "type": ["object", "null"], "properties": {}, "additionalProperties": false }),
                );
                group["properties"][name] = property(key, &defaults);
            }
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of Sandhaus",
        "type": "object",
        "properties": root,
        "additionalProperties": false,
    })
}

fn property(key: &Key, defaults: &Config) -> Value {
    let mut property = kind_schema(key.kind);
    let mut about = key.about.to_owned();
    if let Some(reason) = key.ignored {
        about = format!("{about} No effect: {reason}.");
        property["deprecated"] = json!(true);
    } else if !key.is_secret() {
        property["default"] = key.shown(defaults);
    }
    property["description"] = json!(format!("{about} Environment: SANDHAUS_{}.", key.env));
    property
}

fn kind_schema(kind: Kind) -> Value {
    let network = || json!({ "type": "string", "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$" });
    match kind {
        Kind::Secret => json!({ "type": "string", "pattern": "^[!-~]*$" }),
        Kind::Listen => {
            json!({ "type": "string", "pattern": "^.*:[0-9]{1,5}$", "examples": ["127.0.0.1:8080"] })
        }
        Kind::Path => json!({ "type": "string", "pattern": "^/" }),
        Kind::PathOrNothing => json!({ "type": "string", "pattern": "^(/.*)?$" }),
        Kind::Text(_) => json!({ "type": "string" }),
        Kind::Choice(choices) => json!({ "enum": choices }),
        Kind::Number { least, most } => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Kind::Cores => json!({ "type": "number", "minimum": 0 }),
        Kind::Mebibytes => json!({
            "oneOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9.]+ ?[A-Za-z]+$", "examples": ["2GiB"] },
            ],
        }),
        Kind::Truth => json!({ "type": "boolean" }),
        Kind::Image => json!({ "type": "string" }),
        Kind::Registries => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::Images => json!({ "type": "array", "items": { "type": "string" } }),
        Kind::ImageCounts { most } => json!({
            "type": "object",
            "additionalProperties": { "type": "integer", "minimum": 0, "maximum": most },
        }),
        Kind::Network => network(),
        Kind::Networks => json!({ "type": "array", "items": network() }),
        Kind::Addresses => json!({ "type": "array", "items": { "type": "string" } }),
    }
}

/// The table of the guide, in Markdown.
pub(crate) fn guide_table() -> String {
    let defaults = Config::default();
    let mut text =
        "| Key | Variable | Value | Default | What it decides |\n|---|---|---|---|---|\n".to_owned();
    for key in KEYS {
        let about = match key.ignored {
            Some(reason) => format!("{} No effect: {reason}.", key.about),
            None => key.about.to_owned(),
        };
        let default = match (key.ignored, key.is_secret()) {
            (Some(_), _) => String::new(),
            (None, true) => "none".to_owned(),
            (None, false) => default_in_words(&key.shown(&defaults)),
        };
        let (name, env, value) = (key.name, key.env, in_words(key.kind));
        text.push_str(&format!("| `{name}` | `SANDHAUS_{env}` | {value} | {default} | {about} |\n"));
    }
    text
}

fn default_in_words(value: &Value) -> String {
    match value {
        Value::Array(items) if items.is_empty() => "empty".to_owned(),
        Value::Object(items) if items.is_empty() => "empty".to_owned(),
        Value::String(text) => format!("`{text}`"),
        other => format!("`{other}`"),
    }
}

fn in_words(kind: Kind) -> String {
    match kind {
        Kind::Secret => "printable text without blanks".to_owned(),
        Kind::Listen => "`IP:PORT`, `localhost:PORT`, `:PORT`".to_owned(),
        Kind::Path => "absolute path".to_owned(),
        Kind::PathOrNothing => "absolute path or empty".to_owned(),
        Kind::Text(words) => words.to_owned(),
        Kind::Choice(choices) => {
            choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(", ")
        }
        Kind::Number { least, most } => format!("{least} to {most}"),
        Kind::Cores => "number of cores such as `0.5`".to_owned(),
        Kind::Mebibytes => "MiB, or a size such as `2GiB`".to_owned(),
        Kind::Truth => "`true`, `false`".to_owned(),
        Kind::Image => "image name".to_owned(),
        Kind::Registries => "list of hosts".to_owned(),
        Kind::Images => "list of image names".to_owned(),
        Kind::ImageCounts { most } => format!("image names, each with 0 to {most}"),
        Kind::Network => "IPv4 `ADDRESS/BITS`".to_owned(),
        Kind::Networks => "list of `ADDRESS/BITS`".to_owned(),
        Kind::Addresses => "list of IP addresses".to_owned(),
    }
}
