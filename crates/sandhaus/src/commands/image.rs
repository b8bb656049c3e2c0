//! `sandhaus image`: the catalogue of the data directory, with or without a server beside.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use rustix::{stdio, termios::isatty};
use sandhaus_images::{
    Catalogue, Error, ExportFormat, Image, ImageDetails, ImageName, ImportOptions, PlainHttp, Prune, Pruned,
    PullOptions, Reference, vm::Manifest,
};
use sandhaus_sandbox::Instance;
use tokio_util::sync::CancellationToken;

use crate::{
    advice::{Advice, print_error, print_note},
    cli::{ExportAs, ImageArguments, ImageCommand, ImportArguments, Output, PullArguments, ServerArguments},
    commands::{run::Quiet, vm_image},
    config::Config,
    domain,
    interrupt::Signals,
    output::{Table, human_bytes, print, print_json, visible},
    progress::{ByteCount, LayerBars},
    server::{Server, explain},
    spelling::CalledAs,
};

/// Status of a process that a signal ended, as shells give it, is this and the signal's number.
const STATUS_SIGNAL: u8 = 128;

/// Does what was asked for.
pub(crate) async fn image(
    arguments: &ImageArguments,
    config: &Config,
    quiet: Quiet,
    called_as: CalledAs,
) -> Result<ExitCode> {
    match &arguments.command {
        ImageCommand::Pull(arguments) => pull(config, arguments, quiet).await,
        ImageCommand::Import(arguments) => import(config, arguments, quiet, called_as),
        ImageCommand::BuildVm(arguments) => vm_image::build(config, arguments, quiet).await,
        ImageCommand::ImportVm(arguments) => vm_image::import(config, arguments, quiet).await,
        ImageCommand::Rollback { name } => vm_image::rollback(config, name, quiet),
        ImageCommand::Export { format, name, file } => export(config, name, file, *format, quiet),
        ImageCommand::List { output } => list(config, *output, called_as),
        ImageCommand::Inspect { output, names } => inspect(config, names, *output),
        ImageCommand::Validate { names } => validate(config, names),
        ImageCommand::Rm { names } => remove(config, names, called_as).await,
        ImageCommand::Prune { all, output } => {
            let what = if *all { Prune::Unused } else { Prune::Nameless };
            prune(config, what, *output).await
        }
        ImageCommand::Tag { name, new } => tag(config, name, new, quiet),
    }
}

pub(crate) async fn pull(config: &Config, arguments: &PullArguments, quiet: Quiet) -> Result<ExitCode> {
    let reference = Reference::parse(&arguments.reference)?;
    let name = match &arguments.name {
        Some(name) => ImageName::parse(name)?,
        None => reference.default_name()?,
    };
    let catalogue = domain::open_catalogue(config)?;
    let listed = config.insecure_registries.iter().any(|registry| registry == reference.registry());
    let options = PullOptions {
        platform: arguments.platform.clone(),
        plain_http: if arguments.insecure || listed { PlainHttp::Anywhere } else { PlainHttp::Loopback },
        credentials: None,
        replace: arguments.replace,
        interrupt: CancellationToken::new(),
    };
    let mut signals = Signals::listen()?;
    let bars = Arc::new(LayerBars::new(quiet));
    let pulling = {
        let bars = bars.clone();
        catalogue.pull(&name, &reference, &options, Arc::new(move |event| bars.note(event)))
    };
    tokio::pin!(pulling);
    let mut signal = None;
    let outcome = loop {
        // Both are cancel-safe: the pull is only ever polled further, a signal is taken only when it returns.
        tokio::select! {
            outcome = &mut pulling => break outcome,
            number = signals.end() => {
                signal = Some(number);
                options.interrupt.cancel();
            }
        }
    };
    bars.finish();
    let image = match (outcome, signal) {
        (Err(Error::Interrupted), Some(signal)) => {
            print_note(&format!(
                "interrupted; what has arrived is kept: `sandhaus image pull {}` goes on from there",
                arguments.reference
            ));
            let number = u8::try_from(signal).unwrap_or(u8::MAX - STATUS_SIGNAL);
            return Ok(ExitCode::from(STATUS_SIGNAL + number));
        }
        (outcome, _) => outcome.map_err(pull_failure).with_context(|| format!("pull {reference}"))?,
    };
    match arguments.output {
        Output::Json => print_json(&image)?,
        Output::Table => {
            if quiet == Quiet::No {
                print_note(&format!("pulled {name}: {}, {}", human_bytes(image.size_bytes), image.digest));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Why a pull failed, with what to do about it.
fn pull_failure(error: Error) -> anyhow::Error {
    match &error {
        Error::Exists(name) => Advice::new(
            format!("image {name} was imported by hand"),
            "--replace puts the pulled image in its place, --name gives it another",
        )
        .into(),
        Error::Platform { .. } => Advice::new(
            error.to_string(),
            "--platform chooses another one, which runs only where its machine is",
        )
        .into(),
        Error::Registry { registry, .. } => Advice::new(
            error.to_string(),
            format!("check the name {registry:?} and the network; HTTPS_PROXY names a proxy"),
        )
        .with_source(error)
        .into(),
        _ => error.into(),
    }
}

fn import(
    config: &Config,
    arguments: &ImportArguments,
    quiet: Quiet,
    called_as: CalledAs,
) -> Result<ExitCode> {
    let (name, source) = import_subject(arguments)?;
    let name = ImageName::parse(&name)?;
    let source = fs_err::canonicalize(source)?;
    let catalogue = domain::open_catalogue(config)?;
    let mut count = ByteCount::new("importing", quiet);
    let options = ImportOptions { replace: arguments.replace, platform: arguments.platform.clone() };
    let image = catalogue
        .import(&name, &source, &options, &mut |done, total| count.update(done, total))
        .map_err(|error| match error {
            Error::Exists(_) => {
                Advice::new(error.to_string(), "--replace puts the new image in its place").into()
            }
            error => anyhow::Error::from(error),
        })
        .with_context(|| format!("import {} as {name}", source.display()))?;
    drop(count);
    if called_as == CalledAs::Sandkasten {
        print(&format!("Imported image: {name}\n"))?;
    } else if quiet == Quiet::No {
        print_note(&format!("imported {name}: {}, {}", human_bytes(image.size_bytes), image.digest));
    }
    Ok(ExitCode::SUCCESS)
}

/// Name and source, in the order of either spelling.
fn import_subject(arguments: &ImportArguments) -> Result<(String, PathBuf)> {
    let ImportArguments { name_option, source_option, name, source, .. } = arguments;
    match (name_option, source_option, name, source) {
        (None, None, Some(name), Some(source)) => Ok((name.clone(), source.clone())),
        (Some(name), Some(source), None, None) => Ok((name.clone(), source.clone())),
        (Some(name), None, Some(source), None) => Ok((name.clone(), PathBuf::from(source))),
        (None, Some(source), Some(name), None) => Ok((name.clone(), source.clone())),
        _ => bail!("give one name and one source: `sandhaus image import NAME TARBALL|DIR`"),
    }
}

fn export(
    config: &Config,
    name: &str,
    file: &Path,
    format: Option<ExportAs>,
    quiet: Quiet,
) -> Result<ExitCode> {
    let name = ImageName::parse(name)?;
    let format = format.or_else(|| ExportAs::of_path(file)).ok_or_else(|| {
        Advice::new(
            format!("the name {} does not tell the format", file.display()),
            "end it with .tar, .tar.gz, .tar.zst, .oci.tar, .qcow2 or .img, or say --format",
        )
    })?;
    let catalogue = domain::open_catalogue(config)?;
    if file == Path::new("-") {
        let ExportAs::Files(format) = format else {
            bail!("a disk cannot be written to a stream: name a file");
        };
        if isatty(stdio::stdout()) {
            bail!("an archive is nothing for a terminal: send standard output to a file or a program");
        }
        write_image(&catalogue, &name, format, &mut std::io::stdout().lock())?;
        return Ok(ExitCode::SUCCESS);
    }
    // Beside its place and moved there when it is whole, so that nobody takes half of it for all.
    let partial = file.with_added_extension("partial");
    let written = match format {
        ExportAs::Files(format) => File::create(&partial)
            .with_context(|| format!("create {}", partial.display()))
            .and_then(|mut output| write_image(&catalogue, &name, format, &mut output)),
        ExportAs::Disk(format) => {
            Ok(catalogue.export_disk(&name, format, &partial, &CancellationToken::new())?)
        }
    }
    .and_then(|()| Ok(fs_err::rename(&partial, file)?));
    if let Err(error) = written {
        // It may not be there: then there is nothing to remove.
        let _ = std::fs::remove_file(&partial);
        return Err(error);
    }
    if quiet == Quiet::No {
        let size = fs_err::metadata(file)?.len();
        print_note(&format!("exported {name} to {}: {}", file.display(), human_bytes(size)));
    }
    Ok(ExitCode::SUCCESS)
}

fn write_image(
    catalogue: &Catalogue,
    name: &ImageName,
    format: ExportFormat,
    output: &mut dyn Write,
) -> Result<()> {
    catalogue.export(name, format, output).map_err(|error| match error {
        // A reader that went away is told as such.
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe => source.into(),
        error => anyhow::Error::from(error),
    })?;
    output.flush()?;
    Ok(())
}

fn list(config: &Config, output: Output, called_as: CalledAs) -> Result<ExitCode> {
    let images = domain::open_catalogue(config)?.list()?;
    match (output, called_as) {
        (Output::Json, _) => print_json(&images)?,
        (Output::Table, CalledAs::Sandhaus) => print(&table(&images)?)?,
        (Output::Table, CalledAs::Sandkasten) => print(&list_of_sandkasten(&images))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The older tool's list.
fn list_of_sandkasten(images: &[Image]) -> String {
    let lines = images.iter().map(|image| format!("  - {} (created: {})\n", image.name, image.created_at));
    format!("Images:\n{}", lines.collect::<String>())
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
            shortened(&image.digest),
        ]);
    }
    Ok(table.render())
}

fn shortened(digest: &str) -> &str {
    digest.get(..DIGEST_SHOWN).unwrap_or(digest)
}

fn inspect(config: &Config, names: &[String], output: Output) -> Result<ExitCode> {
    let catalogue = domain::open_catalogue(config)?;
    let mut images = Vec::new();
    for name in names {
        images.push(catalogue.details(&ImageName::parse(name)?)?);
    }
    match (output, images.as_slice()) {
        (Output::Json, [one]) => print_json(one)?,
        (Output::Json, several) => print_json(&several)?,
        (Output::Table, images) => {
            for details in images {
                print(&facts(details))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn facts(details: &ImageDetails) -> String {
    let config = &details.config;
    let or_none = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut table = Table::new(["FACT", "VALUE"]);
    table.row(["name", details.image.name.as_str()]);
    table.row(["digest", &details.image.digest]);
    table.row(["size", &human_bytes(details.image.size_bytes)]);
    table.row(["created", &details.image.created_at]);
    table.row(["reference", &or_none(&details.reference)]);
    table.row(["platform", &or_none(&details.platform)]);
    table.row(["user", &or_none(&config.user)]);
    table.row(["workdir", &or_none(&config.workdir)]);
    table.row(["entrypoint", &config.entrypoint.join(" ")]);
    table.row(["cmd", &config.cmd.join(" ")]);
    for (name, value) in &config.env {
        table.row(["env", &format!("{name}={value}")]);
    }
    if let Some(disk) = &details.disk {
        disk_facts(disk, &mut table);
    }
    for layer in &details.layers {
        table.row(["layer", &format!("{} {}", shortened(&layer.digest), human_bytes(layer.size_bytes))]);
    }
    table.render()
}

/// What an image of a virtual machine was made of.
fn disk_facts(disk: &Manifest, table: &mut Table) {
    table.row(["disk", &human_bytes(disk.size_bytes)]);
    for layer in &disk.layers {
        table.row(["layer", &format!("{} {}", shortened(&layer.digest), human_bytes(layer.size_bytes))]);
    }
    if let Some(kernel) = &disk.kernel {
        let release = kernel.release.as_deref().unwrap_or("of unknown release");
        table.row(["kernel", &format!("{release} ({})", kernel.origin)]);
    }
    if let Some(initramfs) = &disk.initramfs {
        table.row([
            "initramfs",
            &format!("{} {}", shortened(&initramfs.digest), human_bytes(initramfs.size_bytes)),
        ]);
    }
    table.row(["init", disk.init.as_deref().unwrap_or("its own")]);
    table.row(["command line", &disk.command_line]);
}

fn validate(config: &Config, names: &[String]) -> Result<ExitCode> {
    let catalogue = domain::open_catalogue(config)?;
    let mut status = ExitCode::SUCCESS;
    for name in names {
        let validated = ImageName::parse(name).and_then(|name| catalogue.validate(&name));
        match validated {
            Ok(()) => print(&format!("Image {} is valid\n", visible(name)))?,
            Err(error) => {
                print_error(&error.into());
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn tag(config: &Config, name: &str, new: &str, quiet: Quiet) -> Result<ExitCode> {
    let (name, new) = (ImageName::parse(name)?, ImageName::parse(new)?);
    domain::open_catalogue(config)?.tag(&name, &new)?;
    if quiet == Quiet::No {
        print_note(&format!("{new} now stands for what {name} stands for"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn prune(config: &Config, what: Prune, output: Output) -> Result<ExitCode> {
    let pruned = match running_server(config)? {
        Some(server) => {
            let reply = server.client().prune_images(what == Prune::Unused).await.map_err(explain)?;
            let names = reply.names.iter().map(|name| ImageName::parse(name)).collect::<Result<_, _>>()?;
            Pruned { names, freed_bytes: reply.freed_bytes }
        }
        None => {
            let catalogue = domain::open_catalogue(config)?;
            // Held until it is done, so that no server starts meanwhile.
            let instance = Instance::acquire(&config.data_dir)?;
            let needed = domain::needed_images(&instance)?;
            catalogue.prune(what, &|digest| needed.contains(digest))?
        }
    };
    match output {
        Output::Json => print_json(&pruned)?,
        Output::Table => {
            for name in &pruned.names {
                print(&format!("{name}\n"))?;
            }
            print_note(&format!("freed {}", human_bytes(pruned.freed_bytes)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn remove(config: &Config, names: &[String], called_as: CalledAs) -> Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for name in names {
        match remove_one(config, name).await {
            Ok(()) if called_as == CalledAs::Sandkasten => {
                print(&format!("Deleted image: {}\n", visible(name)))?;
            }
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
    if let Some(server) = running_server(config)? {
        return server.client().remove_image(name.as_str()).await.map_err(explain);
    }
    let catalogue = domain::open_catalogue(config)?;
    // Held until the image is gone, so that no server starts meanwhile.
    let instance = Instance::acquire(&config.data_dir)?;
    let needed = domain::needed_images(&instance)?;
    Ok(catalogue.remove(&name, &|digest| needed.contains(digest))?)
}

/// The server that holds the data directory, if one does.
fn running_server(config: &Config) -> Result<Option<Server>> {
    if Instance::holder(&config.data_dir)?.is_none() {
        return Ok(None);
    }
    let server = ServerArguments { host: None };
    let server = Server::find_running(&server, config)?
        .context("a server is just starting on the data directory: try again")?;
    Ok(Some(server))
}
