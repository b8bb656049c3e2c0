//! Local image trees: what a sandbox's root file system is made of.
//!
//! An image is a stack of directories (layers, shared between images) plus binds, with the defaults its maker gave
//! (environment, user, work directory, command). This crate pulls them from registries, imports and exports them, keeps
//! the catalogue and answers [`Catalogue::tree`]. It knows no sandbox and no engine: layers are only ever read by those,
//! and unpacking can never write outside its own folder. It starts no other program, but for building and importing images
//! of virtual machines ([`vm`]), which nothing of a sandbox's life waits for.
//!
//! Reading order: `root` (writing a tree from names that nobody has checked), `archive`, `import`, `layer`, `store` (what
//! lies where), `content` and `catalogue` (names and images), `registry` and `pull`, `vm`.

mod account;
mod archive;
mod blob;
mod catalogue;
mod content;
mod digest;
mod error;
mod export;
mod host;
mod import;
mod layer;
mod layout;
mod merged;
mod name;
mod pax;
mod pull;
mod registry;
mod root;
mod scaffold;
mod store;
#[cfg(test)]
mod tests;
pub mod vm;

pub use account::Account;
pub use catalogue::{Catalogue, Image, ImageDetails, Kind, LayerInfo, Prune, Pruned};
pub use error::{Error, Result};
pub use export::ExportFormat;
pub use import::ImportOptions;
pub use name::{IMAGE_NAME_BYTES_MAX, ImageName};
pub use pull::{LayerSize, LayerState, Progress, PullOptions, PullProgress};
pub use registry::{client::PlainHttp, credentials::Credentials, manifest::Platform, reference::Reference};

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A root file system ready to be stacked by an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Directories on the host, top first, owned by the real host root with the image's own ids. The topmost is the
    /// *scaffold*, made by this crate: it has every directory of [`SCAFFOLD_DIRS`] as a real directory, so that no
    /// symbolic link of the image can stand where an engine mounts, and `/etc/passwd` and `/etc/group` with the
    /// workload's user added.
    pub layers: Vec<PathBuf>,
    /// Host directories or files shown read-only, nosuid, nodev and without id mapping. Only the image `host` has them.
    pub binds: Vec<TreeBind>,
    /// Defaults of the image.
    pub config: ImageConfig,
    /// What it is instead of layers, if it is the disk of a virtual machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskImage>,
}

/// The disk of a virtual machine, and what starts it. Files that nobody writes to any more; whoever needs them for longer
/// than the image is held links them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImage {
    /// qcow2 files, lowest first: each but the first lies over the one before and names it, by its file name alone, which
    /// is its place in this list with `.qcow2`. None at all: the machine lives in its initial file system alone.
    pub layers: Vec<PathBuf>,
    /// The kernel; absent: the disk's own, by firmware.
    pub kernel: Option<PathBuf>,
    /// The initial file system that goes with the kernel.
    pub initramfs: Option<PathBuf>,
    /// Command line of the kernel, but for the console.
    pub command_line: String,
    /// Size of the disk as the machine sees it, in bytes.
    pub size_bytes: u64,
}

/// A read-only view of a part of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeBind {
    /// Absolute path on the host, symbolic links resolved.
    pub source: PathBuf,
    /// Absolute path inside; exists in the scaffold as a directory or an empty file, as the source is.
    pub target: PathBuf,
}

/// What an image says about how to run in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Directory to start in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// User, as the image names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// That user, as the image's own account files have it; absent if there is no `user`, or if they do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// Program that is to be run, with its first arguments.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Its further arguments unless others are given, or the whole command where there is no entry point.
    #[serde(default)]
    pub cmd: Vec<String>,
}

/// Directories that every scaffold has, with their modes: the engine's mount points and the places a workload expects.
pub const SCAFFOLD_DIRS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/sandbox", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("workspace", 0o755),
];

/// Uid and gid of the unprivileged user inside every image.
pub const WORKLOAD_ID: u32 = 1000;

/// Login name of the unprivileged user inside every image.
pub const WORKLOAD_NAME: &str = "sandbox";

/// Name of the built-in image that is there without an import: the view of this host.
pub const HOST_IMAGE: &str = "host";

/// Home of the unprivileged user inside every image.
pub const WORKLOAD_HOME: &str = "/home/sandbox";
