//! `sandhaus image …`.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, Subcommand};
use sandhaus_images::{ExportFormat, Platform, vm::DiskFormat};

use super::Output;
use crate::values::Bytes;

#[derive(Debug, Args)]
pub(crate) struct ImageArguments {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Pull an image from a registry
    Pull(PullArguments),
    /// Make an image of an archive or a directory of this host
    Import(ImportArguments),
    /// Build an image for virtual machines; each build of a name is a version of its own: NAME.1, NAME.2, …
    BuildVm(BuildVmArguments),
    /// Take a disk that is there as an image for virtual machines, as a version of its name
    ImportVm(ImportVmArguments),
    /// Let a name stand for the version before the one it stands for
    Rollback {
        /// Name of the image
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Write an image to a file
    Export {
        /// How: tar, tar.gz, tar.zst, or oci for an OCI image in an archive; qcow2 or raw for the disk of a virtual machine
        /// [default: as the file's name ends]
        #[arg(long, value_name = "FORMAT")]
        format: Option<ExportAs>,
        /// Name of the image
        #[arg(value_name = "NAME")]
        name: String,
        /// Where to; - for standard output
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// List images
    #[command(visible_alias = "ls")]
    List {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
        output: Output,
    },
    /// Show everything known about images
    Inspect {
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Json, value_name = "FORMAT")]
        output: Output,
        /// Names of the images
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Read every file of images and check that none has changed
    Validate {
        /// Names of the images
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove image names; the content goes with its last name
    #[command(visible_alias = "delete")]
    Rm {
        /// Names of the images
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Remove what no name leads to: old contents, layers, parts of images that were never pulled whole
    Prune {
        /// Also images that no sandbox uses
        #[arg(short, long)]
        all: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
        output: Output,
    },
    /// Give an image another name
    Tag {
        /// Name of the image
        #[arg(value_name = "NAME")]
        name: String,
        /// Its further name; if it stands for another image it moves
        #[arg(value_name = "NEW")]
        new: String,
    },
}

/// What an image is written out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExportAs {
    /// Its files.
    Files(ExportFormat),
    /// Its disk.
    Disk(DiskFormat),
}

impl ExportAs {
    /// What a file's name asks for by its ending.
    pub(crate) fn of_path(path: &Path) -> Option<Self> {
        let files = ExportFormat::of_path(path).map(Self::Files);
        files.or_else(|| DiskFormat::of_path(path).map(Self::Disk))
    }
}

impl FromStr for ExportAs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let files = text.parse().map(Self::Files);
        files
            .or_else(|_| text.parse().map(Self::Disk))
            .map_err(|_| format!("{text:?} is none of tar, tar.gz, tar.zst, oci, qcow2 and raw"))
    }
}

#[derive(Debug, Args)]
pub(crate) struct PullArguments {
    /// Name of the image here [default: the last part of the reference]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The kind of machine, such as linux/arm64 [default: this one's]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<Platform>,
    /// Speak plain HTTP where the registry has no TLS; on this host that is always allowed
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Take the name even from an image that was imported
    #[arg(long)]
    pub(crate) replace: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
    /// The image, such as python:3.12-slim or registry.example.org/team/app@sha256:…
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct BuildVmArguments {
    /// Of what: debian:SUITE, a directory or archive with a root file system, an image of here or of a registry, or a
    /// disk with a system on it (FILE.qcow2, FILE.img)
    #[arg(long, value_name = "SOURCE")]
    pub(crate) from: String,
    /// Name of the image
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// Size of its disk [default: 10GiB, or that of the disk it is made of]
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Bytes>,
    /// With a desktop, where Debian is installed
    #[arg(long)]
    pub(crate) desktop: bool,
    /// Install Debian by mmdebstrap, rather than pull its image where mmdebstrap is missing
    #[arg(long)]
    pub(crate) bootstrap: bool,
    /// The kernel: a file, or a package of Debian [default: the source's own, else Debian's for clouds]
    #[arg(long, value_name = "FILE|PACKAGE")]
    pub(crate) kernel: Option<String>,
    /// Modules of the kernel, where they do not come with it
    #[arg(long, value_name = "DIR")]
    pub(crate) modules: Option<PathBuf>,
    /// Keep all files in the machine's memory: no disk
    #[arg(long)]
    pub(crate) initramfs_only: bool,
    /// Do not compress the disk, which takes its time
    #[arg(long)]
    pub(crate) no_compress: bool,
    /// Store only what differs from the disk of this image
    #[arg(long, value_name = "IMAGE")]
    pub(crate) base: Option<String>,
    /// Make one file of the disk that it is made of and what is added to it
    #[arg(long, conflicts_with = "base")]
    pub(crate) flatten: bool,
    /// What the kernel's command line has besides
    #[arg(long, value_name = "WORDS")]
    pub(crate) append: Option<String>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ImportVmArguments {
    /// Name of the image
    #[arg(long, value_name = "NAME")]
    pub(crate) name: String,
    /// The image over whose disk the file lies, if its header names a backing file
    #[arg(long, value_name = "IMAGE")]
    pub(crate) base: Option<String>,
    /// Its kernel [default: that of --base, else its own, by firmware]
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initial file system that belongs to the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initramfs: Option<PathBuf>,
    /// The kernel's command line, or what is added to that of --base
    #[arg(long, value_name = "WORDS")]
    pub(crate) append: Option<String>,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
    /// The disk, in the format qcow2
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

impl PullArguments {
    /// A plain pull, printed for people.
    pub(crate) fn of(reference: &str) -> Self {
        Self {
            name: None,
            platform: None,
            insecure: false,
            replace: false,
            output: Output::Table,
            reference: reference.to_owned(),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// Replace the image that has the name
    #[arg(long)]
    pub(crate) replace: bool,
    /// The kind of machine, where the source has images for several [default: this one's]
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<Platform>,
    /// Name of the image, as the older tool spells it
    #[arg(long = "name", value_name = "NAME", hide = true)]
    pub(crate) name_option: Option<String>,
    /// The archive, as the older tool spells it
    #[arg(long = "tar", value_name = "FILE", hide = true)]
    pub(crate) source_option: Option<PathBuf>,
    /// Name of the image
    #[arg(value_name = "NAME", required_unless_present = "name_option")]
    pub(crate) name: Option<String>,
    /// A tar archive (plain, gzip or zstd) or a directory: a root file system, an OCI layout, or what `docker save` writes
    #[arg(value_name = "TARBALL|DIR", required_unless_present = "source_option")]
    pub(crate) source: Option<PathBuf>,
}
