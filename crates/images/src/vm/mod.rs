//! Images of virtual machines: built of a tree, of Debian's packages or of somebody else's disk, or imported.
//!
//! Unlike the rest of this crate it runs programs: `mke2fs`, `debugfs`, `qemu-img` and such, each by an argument list in
//! a clean environment, with a scratch folder of the catalogue as its world (`tool`). Nothing is mounted and nothing of
//! an image is executed on the host, except by `mmdebstrap`, which installs packages.
//!
//! ```text
//!  SOURCE ──▶ tree ──┬──▶ kernel, modules ──▶ initramfs (the agent as /init)   cpio, modules, kernel
//!                    └──▶ + agent, service, network, user                      guest
//!                              │
//!                              └──▶ ext4 ──▶ 0.qcow2 (or what differs from another image's disk)   filesystem, qcow2
//!  somebody else's disk ──▶ the same, written into its own file system         stock, gpt
//! ```
//! All of it is in a scratch folder until the last step gives it its digest and its names; a build that is killed leaves
//! what the next one sweeps.

mod build;
mod cpio;
mod export;
mod filesystem;
mod gpt;
mod guest;
mod import;
mod kernel;
mod manifest;
mod modules;
mod qcow2;
mod stock;
#[cfg(test)]
mod tests;
mod tool;
mod versions;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

pub(crate) use self::manifest::{INITRAMFS, KERNEL, layer_name};
pub use self::{
    export::DiskFormat,
    manifest::{FileRecord, KernelRecord, Manifest, Origin},
};
use crate::{Image, ImageName};

/// What builds take for the present, so that two of them come to the same: 14 November 2023.
const BUILD_TIME_S: i64 = 1_700_000_000;

/// Size of a disk unless another is asked for.
pub const DISK_BYTES_DEFAULT: u64 = 10 << 30;

/// Smallest disk.
pub const DISK_BYTES_MIN: u64 = 64 << 20;

/// Longest addition to a kernel's command line.
pub const COMMAND_LINE_BYTES_MAX: usize = 1024;

/// Where the files of a virtual machine come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmSource {
    /// Debian's packages of this suite, installed by `mmdebstrap`.
    Debian {
        /// Such as `bookworm`.
        suite: String,
        /// What for.
        purpose: Purpose,
    },
    /// A directory or an archive with a root file system.
    Tree(PathBuf),
    /// An image of the catalogue.
    Image(ImageName),
    /// A disk with a system on it: a qcow2 file, or a plain one whose name ends in `.img` or `.raw`.
    Disk(PathBuf),
}

/// What an installed Debian is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Programs without a screen.
    Plain,
    /// A desktop that can be seen from outside.
    Desktop,
}

/// Which kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelChoice {
    /// The source's own, else Debian's for clouds.
    Automatic,
    /// This file: a kernel, or a package of Debian with one in it (`.deb`).
    File(PathBuf),
    /// This package of Debian, fetched by `apt-get`.
    Package(String),
}

/// Where the files end up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// On a disk of this many bytes; absent: [`DISK_BYTES_DEFAULT`], or as many as the source's own disk has.
    Disk(Option<u64>),
    /// In the machine's memory: all of the tree in its initial file system, and no disk.
    Memory,
}

/// Whether the disk's file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// By zstd: a third of the size, for some seconds.
    Zstd,
    /// Not at all.
    None,
}

/// Whether the disk is one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layering {
    /// A disk that somebody else made, and over it what was added; else one file.
    Natural,
    /// One file.
    Flat,
    /// What differs from the disk of this image, over that.
    Over(ImageName),
}

/// How to build an image of a virtual machine.
#[derive(Debug, Clone)]
pub struct BuildVm<'a> {
    /// Of what.
    pub source: VmSource,
    /// Where its files end up.
    pub form: Form,
    /// Which kernel it has.
    pub kernel: KernelChoice,
    /// Modules of that kernel, where they do not come with it.
    pub modules: Option<PathBuf>,
    /// Whether its disk is compressed.
    pub compression: Compression,
    /// Whether its disk is one file.
    pub layering: Layering,
    /// What the kernel's command line has besides.
    pub append: Option<String>,
    /// The agent's executable.
    pub agent: &'a [u8],
    /// Cancelled to stop.
    pub interrupt: CancellationToken,
}

/// How to import a disk as an image of a virtual machine.
#[derive(Debug, Clone)]
pub struct ImportVm {
    /// The qcow2 file.
    pub disk: PathBuf,
    /// The image over whose disk it lies, if its header names a file below it.
    pub base: Option<ImageName>,
    /// Its kernel; absent: that of `base`, else the disk's own, by firmware.
    pub kernel: Option<PathBuf>,
    /// The initial file system that goes with the kernel.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub append: Option<String>,
    /// Cancelled to stop.
    pub interrupt: CancellationToken,
}

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildProgress {
    /// What it does.
    pub stage: Stage,
    /// How much of it is done, and of how much, where that is known: bytes, or percent times a hundred.
    pub done: u64,
    /// See `done`.
    pub total: Option<u64>,
}

/// What a build does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Installs packages.
    Install,
    /// Copies files.
    Copy,
    /// Finds or fetches the kernel.
    Kernel,
    /// Makes the file system.
    FileSystem,
    /// Writes the disk's file.
    Disk,
    /// Brings it to the disk of the host and gives it its name.
    Store,
}

/// What came of a build or an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltVm {
    /// The image.
    pub image: Image,
    /// Its name that stays: `NAME.1`, `NAME.2` …
    pub version: ImageName,
    /// Whether there was something new.
    pub novelty: Novelty,
}

/// Whether a build came to something new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Novelty {
    /// A version of its own.
    New,
    /// The same as the newest version, which therefore stands.
    Same,
}

/// Whether this host has the program that installs Debian.
pub fn can_install_debian() -> bool {
    tool::MMDEBSTRAP.find().is_some()
}

/// Told how far a build is.
pub type BuildReport<'a> = &'a mut dyn FnMut(BuildProgress);
