//! `sandhaus image`: the catalogue of the data directory, with or without a server beside.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use sandhaus_images::{Image, ImageName, ImportOptions};
use sandhaus_sandbox::Instance;

use crate::{
    advice::{Advice, print_error, print_note},
    cli::{ImageArguments, ImageCommand, Output, ServerArguments},
    commands::run::Quiet,
    config::Config,
    domain,
    output::{Table, human_bytes, print, print_json, visible},
    progress::ByteCount,
    server::{Server, explain},
};

/// Does what was asked for.
pub(crate) async fn image(arguments: &ImageArguments, config: &Config, quiet: Quiet) -> Result<ExitCode> {
    match &arguments.command {
        ImageCommand::Import { replace, name, source } => import(config, name, source, *replace, quiet),
        ImageCommand::List { output } => list(config, *output),
        ImageCommand::Rm { names } => remove(config, names).await,
        ImageCommand::Tag { name, new } => tag(config, name, new, quiet),
    }
}

fn import(config: &Config, name: &str, source: &Path, replace: bool, quiet: Quiet) -> Result<ExitCode> {
    let name = ImageName::parse(name)?;
    let source = fs_err::canonicalize(source)?;
    let catalogue = domain::open_catalogue(config)?;
    let mut count = ByteCount::new("importing", quiet);
    let image = catalogue
        .import(&name, &source, &ImportOptions { replace, platform: None }, &mut |done, total| count.update(done, total))
        .map_err(|error| match error {
            sandhaus_images::Error::Exists(_) => {
                Advice::new(error.to_string(), "--replace puts the new image in its place").into()
            }
            error => anyhow::Error::from(error),
        })
        .with_context(|| format!("import {} as {name}", source.display()))?;
    drop(count);
    if quiet == Quiet::No {
        print_note(&format!("imported {name}: {}, {}", human_bytes(image.size_bytes), image.digest));
    }
    Ok(ExitCode::SUCCESS)
}

fn list(config: &Config, output: Output) -> Result<ExitCode> {
    let images = domain::open_catalogue(config)?.list()?;
    match output {
        Output::Json => print_json(&images)?,
        Output::Table => print(&table(&images)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Characters of a digest that a table shows.
const DIGEST_SHOWN: usize = "sha256:".len() + 12;

fn table(images: &[Image]) -> Result<String> {
    let mut table = Table::new(["NAME", "KIND", "SIZE", "CREATED", "DIGEST"]);
    for image in images {
        let kind = serde_json::to_value(image.kind)?;
        table.row([
            image.name.as_str(),
            kind.as_str().unwrap_or_default(),
            &human_bytes(image.size_bytes),
            &image.created_at,
            image.digest.get(..DIGEST_SHOWN).unwrap_or(&image.digest),
        ]);
    }
    Ok(table.render())
}

fn tag(config: &Config, name: &str, new: &str, quiet: Quiet) -> Result<ExitCode> {
    let (name, new) = (ImageName::parse(name)?, ImageName::parse(new)?);
    domain::open_catalogue(config)?.tag(&name, &new)?;
    if quiet == Quiet::No {
        print_note(&format!("{new} now stands for what {name} stands for"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn remove(config: &Config, names: &[String]) -> Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for name in names {
        match remove_one(config, name).await {
            Ok(()) => print(&format!("{}\n", visible(name)))?,
            Err(error) => {
                print_error(&error.context(format!("cannot remove image {name}")));
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

/// Removes a name. A server knows which contents its sandboxes need, so one that runs is asked; else its rows are.
async fn remove_one(config: &Config, name: &str) -> Result<()> {
    let name = ImageName::parse(name)?;
    if Instance::holder(&config.data_dir)?.is_some() {
        let server = ServerArguments { host: None };
        let server = Server::find_running(&server, config)?
            .context("a server is just starting on the data directory: try again")?;
        return server.client().remove_image(name.as_str()).await.map_err(explain);
    }
    let catalogue = domain::open_catalogue(config)?;
    // Held until the image is gone, so that no server starts meanwhile.
    let instance = Instance::acquire(&config.data_dir)?;
    let needed = domain::needed_images(&instance)?;
    Ok(catalogue.remove(&name, &|digest| needed.contains(digest))?)
}
