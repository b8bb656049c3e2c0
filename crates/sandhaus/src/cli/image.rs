//! `sandhaus image …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sandhaus_images::{ExportFormat, Platform};

use super::Output;

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
    /// Write an image to a file
    Export {
        /// How: tar, tar.gz, tar.zst, or oci for an OCI image in an archive [default: as the file's name ends]
        #[arg(long, value_name = "FORMAT")]
        format: Option<ExportFormat>,
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
