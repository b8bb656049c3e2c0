//! Snapshots that travel: packed so that they need nothing else of this host, and checked when they come back.

use std::{io, os::unix::fs::PermissionsExt as _, path::Path};

use sandhaus_sandbox::engine::{EngineError, EngineResult};

use super::{
    disk::{Chain, INITRAMFS, KERNEL, PACKED, header_of, if_there, link},
    image_tool,
    manifest::{self, Digests, MEMORY, Machine, Manifest, STATE, VIDEO},
    restore::{Image, damaged},
};
use crate::{
    namespace::disk::failure,
    steps::{pass, sequence},
};

sequence! {
    /// Packing a snapshot.
    PackStep in "vm_pack" {
        Check = "check",
        Flatten = "flatten",
        Link = "link",
        Config = "config",
    }
}

/// Writes the snapshot in `from` into the empty directory `into`, so that it stands alone. Blocks for as long as
/// compressing its disk takes.
pub(super) fn pack(from: &Path, into: &Path) -> EngineResult<()> {
    let manifest = Manifest::read(from)?;
    let Some(disk) = manifest.disk else {
        return Err(EngineError::Invalid("a snapshot of memory alone cannot be packed".to_owned()));
    };
    pass(PackStep::Check, || if manifest.machine.is_some() { Image::open(from).map(drop) } else { Ok(()) })?;
    let host = |error: io::Error| failure("pack snapshot", error);
    let there = from.join(PACKED).symlink_metadata().is_ok();
    pass(PackStep::Flatten, || match there {
        true => link(&from.join(PACKED), &into.join(PACKED)).map_err(host),
        false => flatten(from, into),
    })?;
    pass(PackStep::Link, || {
        for name in [KERNEL, INITRAMFS, STATE, MEMORY, VIDEO] {
            if_there(link(&from.join(name), &into.join(name)))?;
        }
        Ok(())
    })
    .map_err(host)?;
    let digests = Digests::of(into)?;
    let image_layers = usize::from(digests.disk.is_some());
    let disk = manifest::Disk { image_layers, digests: Some(digests), ..disk };
    pass(PackStep::Config, || Manifest::new(manifest.machine, Some(disk)).write(into)).map_err(host).map(drop)
}

fn flatten(from: &Path, into: &Path) -> EngineResult<()> {
    let chain = Chain::read(from)?;
    if chain.top().is_none() {
        return Ok(());
    }
    image_tool::flatten(from, &chain, &into.join(PACKED))?;
    publish(&into.join(PACKED)).map_err(|error| failure("pack snapshot", error))
}

/// Checks all of a snapshot: every file is what was written, the disk stands alone and is sound. Gives the machine that it
/// holds, if it holds one.
pub(super) fn verify(directory: &Path) -> EngineResult<Option<Machine>> {
    let manifest = Manifest::read(directory)?;
    let disk = manifest.disk.as_ref().ok_or_else(|| {
        EngineError::Invalid("the snapshot holds memory alone, without its disk".to_owned())
    })?;
    for name in [PACKED, KERNEL, INITRAMFS, STATE, MEMORY, VIDEO] {
        // Machines are other users; they get descriptors of what anybody may read who is given one.
        if_there(publish(&directory.join(name)))
            .map_err(|error| EngineError::host("open snapshot", error))?;
    }
    match &disk.digests {
        Some(digests) => verify_packed(directory, disk, digests)?,
        None if Chain::read(directory)?.size_bytes != disk.size_bytes => return Err(damaged("the disk")),
        None => {}
    }
    let Some(machine) = manifest.machine else { return Ok(None) };
    Image::open_unseen(directory)?;
    Ok(Some(machine))
}

fn verify_packed(directory: &Path, disk: &manifest::Disk, digests: &Digests) -> EngineResult<()> {
    let found = Digests::of(directory)?;
    let files = [
        (PACKED, &digests.disk, &found.disk),
        (KERNEL, &digests.kernel, &found.kernel),
        (INITRAMFS, &digests.initramfs, &found.initramfs),
    ];
    if let Some((name, ..)) = files.iter().find(|(_, expected, found)| expected != found) {
        return Err(damaged(name));
    }
    if digests.disk.is_none() {
        return Ok(());
    }
    let header = header_of(&directory.join(PACKED))?;
    let invalid = |refusal| EngineError::Invalid(format!("{PACKED} cannot be used: {refusal}"));
    header.stands_alone().map_err(invalid)?;
    if header.size_bytes != disk.size_bytes {
        return Err(damaged(PACKED));
    }
    image_tool::check(directory)
}

fn publish(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_symlink() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a link"));
    }
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o444))
}
