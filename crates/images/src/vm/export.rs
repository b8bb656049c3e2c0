//! Writing the disk of an image out as one file, for other programs that run virtual machines.

use std::{
    fmt,
    os::unix::fs::MetadataExt as _,
    path::{Path, absolute},
    str::FromStr,
};

use tokio_util::sync::CancellationToken;

use super::{
    build::{link_disk, room_for},
    layer_name,
    tool::{QEMU_IMG, Tools},
};
use crate::{Catalogue, Error, ImageName, Result, catalogue::refuse_built_in};

/// Unit in which the kernel tells how much of a file is on disk.
const BLOCK_BYTES: u64 = 512;

/// What a disk is written out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// A qcow2 file, compressed, that names no other.
    Qcow2,
    /// Its bytes, with holes.
    Raw,
}

impl DiskFormat {
    /// The one that a file name asks for by its ending.
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "qcow2" => Some(Self::Qcow2),
            "img" | "raw" => Some(Self::Raw),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

impl FromStr for DiskFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "qcow2" => Ok(Self::Qcow2),
            "raw" => Ok(Self::Raw),
            other => Err(format!("{other:?} is none of qcow2 and raw")),
        }
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Catalogue {
    /// Writes the disk of an image out into the file `into`, all its layers as one. The kernel that starts it is not in it,
    /// unless it was on the disk before.
    pub fn export_disk(
        &self,
        name: &ImageName,
        format: DiskFormat,
        into: &Path,
        interrupt: &CancellationToken,
    ) -> Result<()> {
        refuse_built_in(name)?;
        let Some(disk) = self.tree(name)?.disk else {
            let problem = "has no disk: its files go into an archive, .tar, .tar.gz, .tar.zst or .oci.tar";
            return Err(Error::Form { image: name.to_string(), problem });
        };
        if disk.layers.is_empty() {
            let problem = "lives in the memory of its machines and has no disk";
            return Err(Error::Form { image: name.to_string(), problem });
        }
        let into = absolute(into).map_err(Error::at(into))?;
        let mut needed_bytes = 0;
        for layer in &disk.layers {
            needed_bytes += fs_err::metadata(layer).map_err(Error::at(layer))?.blocks() * BLOCK_BYTES;
        }
        room_for(into.parent().unwrap_or(&into), needed_bytes)?;
        let scratch = self.vm_scratch(0)?;
        // Links, so that nobody takes them away meanwhile.
        let layers = link_disk(self, name, &scratch.directory("image")?)?;
        let top = format!("image/{}", layer_name(layers - 1));
        let mut arguments = vec!["convert", "-f", "qcow2", "-O", format.name()];
        if format == DiskFormat::Qcow2 {
            // The kind of compression that every reader of the format knows.
            arguments.extend(["-c", "-W", "-o", "compat=1.1"]);
        }
        let mut arguments: Vec<_> = arguments.into_iter().map(AsRef::as_ref).collect();
        arguments.extend([top.as_ref(), into.as_os_str()]);
        Tools::new(&scratch, interrupt).run(QEMU_IMG, &arguments).map(drop)
    }
}
