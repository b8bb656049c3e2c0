//! `sandhaus config`: the configuration, shown, checked and described.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::{
    advice::{Advice, print_error, print_warning},
    cli::{ConfigArguments, ConfigCommand, ConfigOutput},
    config::{self, Key, Loaded, Origin, effective},
    output::{Table, print, print_json, visible},
};

/// Shows the effective configuration.
pub(crate) fn config(arguments: &ConfigArguments, loaded: &Loaded) -> Result<ExitCode> {
    let output = match &arguments.command {
        ConfigCommand::Show { output } => output,
        ConfigCommand::Get { key } => return get(loaded, key),
        _ => unreachable!("what needs no configuration is done before one is read"),
    };
    match output {
        ConfigOutput::Table => print(&table(loaded))?,
        ConfigOutput::Json => print_json(&json(loaded))?,
        ConfigOutput::Yaml => print(&yaml(loaded)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints one value, for scripts: a secret as well, since it was asked for by name.
fn get(loaded: &Loaded, name: &str) -> Result<ExitCode> {
    let Some(key) = config::find(name).filter(|key| key.ignored.is_none()) else {
        let meant = config::nearest(name).map_or_else(
            || "`sandhaus config keys` lists them".to_owned(),
            |meant| format!("did you mean {meant}?"),
        );
        return Err(Advice::new(format!("there is no key {name:?}"), meant).into());
    };
    let value = match loaded.config.secret(key.name) {
        secret if key.is_secret() => secret.map_or("", |secret| secret.reveal()).to_owned(),
        _ => match key.shown(&loaded.config) {
            Value::String(text) => text,
            other => other.to_string(),
        },
    };
    print(&format!("{value}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the JSON schema.
pub(crate) fn print_schema() -> Result<ExitCode> {
    print_json(&config::schema())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the table of keys.
pub(crate) fn print_keys() -> Result<ExitCode> {
    print(&config::guide_table())?;
    Ok(ExitCode::SUCCESS)
}

/// Names everything wrong with a file; status 1 if it cannot be used, or is odd and `strict` was asked for.
pub(crate) fn check(file: &Path, strict: bool) -> Result<ExitCode> {
    let (errors, warnings) = config::check(file)?;
    warnings.iter().for_each(|warning| print_warning(warning));
    errors.iter().for_each(print_error);
    if !errors.is_empty() || (strict && !warnings.is_empty()) {
        return Ok(ExitCode::FAILURE);
    }
    print(&format!("{} is a valid configuration\n", visible(&file.display().to_string())))?;
    Ok(ExitCode::SUCCESS)
}

fn table(loaded: &Loaded) -> String {
    let mut table = Table::new(["KEY", "VALUE", "SOURCE"]);
    for key in effective() {
        let shown = match key.shown(&loaded.config) {
            Value::String(text) => text,
            other => other.to_string(),
        };
        table.row([key.name, &shown, &in_words(loaded.origin(key))]);
    }
    table.render()
}

fn in_words(origin: &Origin) -> String {
    match origin {
        Origin::Default => "default".to_owned(),
        Origin::File(place) => format!("file {place}"),
        Origin::Environment(variable) => format!("environment {variable}"),
        Origin::Flag(flag) => format!("flag {flag}"),
    }
}

fn json(loaded: &Loaded) -> Value {
    let shown = |key: &Key| {
        let (source, from) = match loaded.origin(key) {
            Origin::Default => ("default", None),
            Origin::File(place) => ("file", Some(place.as_str())),
            Origin::Environment(variable) => ("environment", Some(variable.as_str())),
            Origin::Flag(flag) => ("flag", Some(*flag)),
        };
        json!({ "value": key.shown(&loaded.config), "source": source, "from": from })
    };
    effective().map(|key| (key.name.to_owned(), shown(key))).collect::<Map<_, _>>().into()
}

/// A file that gives the same configuration, but for the secret.
fn yaml(loaded: &Loaded) -> Result<String> {
    let mut text = String::new();
    let mut open = None;
    for key in effective() {
        let (group, name) = match key.name.split_once('.') {
            Some((group, name)) => (Some(group), name),
            None => (None, key.name),
        };
        if group != open
            && let Some(group) = group
        {
            writeln!(text, "{group}:")?;
        }
        open = group;
        let indent = if group.is_some() { "  " } else { "" };
        // JSON is YAML; a secret is only a comment.
        let (mark, value) = (if key.is_secret() { "# " } else { "" }, key.shown(&loaded.config));
        writeln!(text, "{indent}{mark}{name}: {value}  # {}", visible(&in_words(loaded.origin(key))))?;
    }
    Ok(text)
}
