//! `sandhaus image build-vm`, `import-vm` and `rollback`: images of virtual machines, made on this host.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use sandhaus_images::{
    Catalogue, Error, ImageName, Reference,
    vm::{
        BuildProgress, BuildReport, BuildVm, BuiltVm, Compression, Form, ImportVm, KernelChoice, Layering,
        Novelty, Purpose, VmSource,
    },
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    advice::print_note,
    agent,
    cli::{BuildVmArguments, ImportVmArguments, Output, PullArguments},
    commands::{image, run::Quiet},
    config::Config,
    domain,
    interrupt::Signals,
    output::{human_bytes, print_json},
    progress::StageBar,
};

/// Status of a process that a signal ended, as shells give it, is this and the signal's number.
const STATUS_SIGNAL: u8 = 128;

/// What Debian's suites are called by.
const DEBIAN: &str = "debian:";

/// Endings of files that are disks.
const DISK_ENDINGS: &[&str] = &["qcow2", "img", "raw"];

/// Builds an image.
pub(crate) async fn build(config: &Config, arguments: &BuildVmArguments, quiet: Quiet) -> Result<ExitCode> {
    let name = ImageName::parse(&arguments.name)?;
    let catalogue = domain::open_catalogue(config)?;
    let source = match source(&catalogue, arguments)? {
        Found::Here(source) => source,
        Found::Registry(reference) => {
            let status = image::pull(config, &PullArguments::of(&arguments.from), quiet).await?;
            if status != ExitCode::SUCCESS {
                return Ok(status);
            }
            VmSource::Image(reference.default_name()?)
        }
    };
    if arguments.desktop && !matches!(source, VmSource::Debian { .. }) {
        bail!("--desktop goes with an installed Debian alone: --from debian:bookworm");
    }
    let build = BuildVm {
        source,
        form: match arguments.initramfs_only {
            true if arguments.size.is_some() => {
                bail!("--size goes with a disk, and --initramfs-only has none")
            }
            true => Form::Memory,
            false => Form::Disk(arguments.size.map(|size| size.0)),
        },
        kernel: match &arguments.kernel {
            None => KernelChoice::Automatic,
            Some(kernel) if kernel.contains('/') || Path::new(kernel).exists() => {
                KernelChoice::File(absolute(Path::new(kernel))?)
            }
            Some(package) => KernelChoice::Package(package.clone()),
        },
        modules: arguments.modules.as_deref().map(absolute).transpose()?,
        compression: if arguments.no_compress { Compression::None } else { Compression::Zstd },
        layering: match &arguments.base {
            Some(base) => Layering::Over(ImageName::parse(base)?),
            None if arguments.flatten => Layering::Flat,
            None => Layering::Natural,
        },
        append: arguments.append.clone(),
        agent: agent::EXECUTABLE,
        interrupt: CancellationToken::new(),
    };
    let interrupt = build.interrupt.clone();
    let what = format!("build {name} from {}", arguments.from);
    let shown = (quiet, arguments.output);
    watched(what, shown, interrupt, move |report| catalogue.build_vm(&name, &build, report)).await
}

/// Imports a disk.
pub(crate) async fn import(config: &Config, arguments: &ImportVmArguments, quiet: Quiet) -> Result<ExitCode> {
    let name = ImageName::parse(&arguments.name)?;
    let catalogue = domain::open_catalogue(config)?;
    let import = ImportVm {
        disk: absolute(&arguments.file)?,
        base: arguments.base.as_deref().map(ImageName::parse).transpose()?,
        kernel: arguments.kernel.as_deref().map(absolute).transpose()?,
        initramfs: arguments.initramfs.as_deref().map(absolute).transpose()?,
        append: arguments.append.clone(),
        interrupt: CancellationToken::new(),
    };
    let interrupt = import.interrupt.clone();
    let what = format!("import {} as {name}", arguments.file.display());
    let shown = (quiet, arguments.output);
    watched(what, shown, interrupt, move |report| catalogue.import_vm(&name, &import, report)).await
}

/// Goes back by one version.
pub(crate) fn rollback(config: &Config, name: &str, quiet: Quiet) -> Result<ExitCode> {
    let name = ImageName::parse(name)?;
    let (image, version) = domain::open_catalogue(config)?.rollback(&name)?;
    if quiet == Quiet::No {
        print_note(&format!("{name} now stands for {version}: {}", image.digest));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where a source is.
enum Found {
    Here(VmSource),
    Registry(Reference),
}

/// What the argument names: a path if it looks like one or is there, then Debian if it can be installed, then an image
/// of the catalogue, then one of a registry.
fn source(catalogue: &Catalogue, arguments: &BuildVmArguments) -> Result<Found> {
    let from = arguments.from.as_str();
    let path = Path::new(from);
    let is_disk = path.extension().is_some_and(|ending| DISK_ENDINGS.iter().any(|known| ending == *known));
    if from.starts_with(['/', '.']) || path.is_file() || (path.is_dir() && from.contains('/')) {
        let path = absolute(path)?;
        return Ok(Found::Here(if is_disk { VmSource::Disk(path) } else { VmSource::Tree(path) }));
    }
    let purpose = if arguments.desktop { Purpose::Desktop } else { Purpose::Plain };
    if let Some(suite) = from.strip_prefix(DEBIAN)
        && (arguments.bootstrap || arguments.desktop || sandhaus_images::vm::can_install_debian())
    {
        return Ok(Found::Here(VmSource::Debian { suite: suite.to_owned(), purpose }));
    }
    if arguments.bootstrap {
        bail!("--bootstrap installs Debian: --from debian:bookworm");
    }
    if let Ok(name) = ImageName::parse(from)
        && catalogue.get(&name).is_ok()
    {
        return Ok(Found::Here(VmSource::Image(name)));
    }
    Ok(Found::Registry(Reference::parse(from)?))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    Ok(fs_err::canonicalize(path)?)
}

/// Does blocking work with its progress shown, until it is done or a signal stops it, and tells what came of it.
async fn watched(
    what: String,
    (quiet, output): (Quiet, Output),
    interrupt: CancellationToken,
    work: impl FnOnce(BuildReport<'_>) -> std::result::Result<BuiltVm, Error> + Send + 'static,
) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let mut bar = StageBar::new(quiet);
    let working =
        tokio::task::spawn_blocking(move || work(&mut |progress: BuildProgress| bar.note(progress)));
    tokio::pin!(working);
    let mut signal = None;
    let outcome = loop {
        // Both are cancel-safe: the work is only ever polled further, a signal is taken only when it returns.
        tokio::select! {
            outcome = &mut working => break outcome.context("the build broke off")?,
            number = signals.end() => {
                signal = Some(number);
                interrupt.cancel();
            }
        }
    };
    let built = match (outcome, signal) {
        (Err(Error::BuildInterrupted), Some(signal)) => {
            print_note("interrupted; nothing is left of it");
            let number = u8::try_from(signal).unwrap_or(u8::MAX - STATUS_SIGNAL);
            return Ok(ExitCode::from(STATUS_SIGNAL + number));
        }
        (outcome, _) => outcome.context(what)?,
    };
    let (image, version) = (&built.image, &built.version);
    match output {
        Output::Json => {
            print_json(&json!({"image": image, "version": version, "new": built.novelty == Novelty::New}))?
        }
        Output::Table if quiet == Quiet::No => {
            let size = human_bytes(image.size_bytes);
            print_note(&match built.novelty {
                Novelty::New => format!("{} is {version}: {size}, {}", image.name, image.digest),
                Novelty::Same => {
                    format!("{} is {version} still, nothing in it is new: {}", image.name, image.digest)
                }
            });
        }
        Output::Table => {}
    }
    Ok(ExitCode::SUCCESS)
}
