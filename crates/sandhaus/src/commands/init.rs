//! `sandhaus init`: a configuration with a key of its own, and the directories it names.

use std::{
    fmt::Write as _,
    io::Write as _,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use fs_err::os::unix::fs::OpenOptionsExt;
use serde_json::Value;

use crate::{
    advice::Advice,
    cli::{Global, ImageArguments, ImageCommand, InitArguments, PullArguments},
    commands::{image::image, run::Quiet},
    config::{self, Key, Loaded, SEARCH},
    domain,
    output::{print, visible},
    spelling::CalledAs,
};

/// Where the configuration goes unless another file is named: where every user of this host's command line looks.
const DEFAULT_FILE: &str = "/etc/sandhaus/sandhaus.yaml";

/// The same for the older tool's name.
const DEFAULT_FILE_OF_SANDKASTEN: &str = "sandkasten.yaml";

/// Random bytes of a key.
const KEY_BYTES: usize = 24;

/// How keys begin, so that people recognise one in the wrong place.
const KEY_PREFIX: &str = "sk-";

/// Keys that the file sets; all others stand in it as comments with their defaults.
const WRITTEN: &[&str] = &["listen", "api_key", "data_dir", "default_image"];

/// Makes both and tells how to go on.
pub(crate) async fn init(
    arguments: &InitArguments,
    loaded: &Loaded,
    named: Option<&Path>,
    quiet: Quiet,
    called_as: CalledAs,
) -> Result<ExitCode> {
    let path = match (named, called_as) {
        (Some(path), _) => path.to_owned(),
        (None, CalledAs::Sandhaus) => PathBuf::from(DEFAULT_FILE),
        (None, CalledAs::Sandkasten) => PathBuf::from(DEFAULT_FILE_OF_SANDKASTEN),
    };
    if path.exists() && !arguments.force {
        return Err(Advice::new(
            format!("{} is there already", path.display()),
            "--force replaces it, and with it the key; --config names another file",
        )
        .into());
    }
    // What can fail without a trace comes first.
    config::check_exposure(&loaded.config)?;
    let data_dir = &loaded.config.data_dir;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("make data directory {}", data_dir.display()))?;
    domain::open_catalogue(&loaded.config)?;
    write(&path, &document(loaded)?)?;
    if let Some(reference) = &arguments.pull {
        let pull = ImageArguments { command: ImageCommand::Pull(PullArguments::of(reference)) };
        let status = image(&pull, &loaded.config, quiet, called_as).await?;
        if status != ExitCode::SUCCESS {
            return Ok(status);
        }
    }
    if quiet == Quiet::No {
        print(&next_steps(&path, loaded))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Flags over environment over defaults, with a key in any case.
pub(crate) fn settle(arguments: &InitArguments, global: &Global) -> Result<Loaded> {
    let mut loaded = config::load_environment()?;
    if let Some(dir) = &global.data_dir {
        let dir = std::path::absolute(dir)?;
        loaded.set_by_flag("data_dir", "--data-dir", dir.to_str().context("--data-dir is not UTF-8")?)?;
    }
    if let Some(listen) = &arguments.listen {
        loaded.set_by_flag("listen", "--listen", listen)?;
    }
    if let Some(image) = &arguments.default_image {
        loaded.set_by_flag("default_image", "--default-image", image)?;
    }
    let key = arguments.api_key.clone().filter(|key| !key.is_empty());
    if key.is_some() || loaded.config.api_key.is_none() {
        loaded.set_by_flag("api_key", "--api-key", &key.unwrap_or_else(random_key))?;
    }
    Ok(loaded)
}

fn random_key() -> String {
    let mut bytes = [0_u8; KEY_BYTES];
    getrandom::fill(&mut bytes).expect("the kernel has random bytes");
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{KEY_PREFIX}{digits}")
}

/// The file: a few keys set, every other one as a comment.
fn document(loaded: &Loaded) -> Result<String> {
    let mut text = "# Configuration of Sandhaus. It takes effect when the server starts.\n\
                    # What every key means: `sandhaus config keys`; what is in effect: `sandhaus config show`.\n\n"
        .to_owned();
    let defaults = config::Config::default();
    let mut open = None;
    for key in config::effective() {
        let (group, name) = match key.name.split_once('.') {
            Some((group, name)) => (Some(group), name),
            None => (None, key.name),
        };
        if group != open
            && let Some(group) = group
        {
            writeln!(text, "\n{group}:")?;
        }
        open = group;
        let indent = if group.is_some() { "  " } else { "" };
        if WRITTEN.contains(&key.name) {
            writeln!(text, "{indent}{name}: {}", scalar(key, loaded)?)?;
        } else {
            // Of a secret only whether it is set is ever shown, which is nothing that could be set.
            let default = if key.is_secret() { Value::from("") } else { key.shown(&defaults) };
            writeln!(text, "{indent}# {}\n{indent}# {name}: {default}", key.about)?;
        }
    }
    Ok(text)
}

/// A value as YAML writes it on one line.
fn scalar(key: &Key, loaded: &Loaded) -> Result<String> {
    let value = match &loaded.config.api_key {
        Some(secret) if key.is_secret() => Value::String(secret.reveal().to_owned()),
        _ => key.shown(&loaded.config),
    };
    Ok(serde_yaml_ng::to_string(&value)?.trim_end().to_owned())
}

/// Writes the file as a whole, for its owner alone: it holds the key.
fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs_err::create_dir_all(dir)?;
    }
    let mut name = path.file_name().context("--config names no file")?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&new)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs_err::rename(&new, path)?;
    Ok(())
}

fn next_steps(path: &Path, loaded: &Loaded) -> String {
    let shown = visible(&path.display().to_string());
    let found = SEARCH.iter().any(|known| Path::new(known) == path);
    let named = if found { String::new() } else { format!(" --config {shown}") };
    format!(
        "configuration   {shown} (mode 0600, holds the API key)\n\
         data directory  {}\n\n\
         Next:\n  \
         sandhaus{named} doctor           # can this host run sandboxes?\n  \
         sandhaus{named} serve --detach   # start the server\n  \
         sandhaus{named} run -- uname -a  # a first sandbox\n",
        visible(&loaded.config.data_dir.display().to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_and_differ() {
        let (one, other) = (random_key(), random_key());
        assert_eq!(one.len(), KEY_PREFIX.len() + 48);
        assert_ne!(one, other);
    }
}
