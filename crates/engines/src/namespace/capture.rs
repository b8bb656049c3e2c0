//! What a sandbox has written, as layers over its image: snapshots of disks.
//!
//! ```text
//! layers/0 … layers/<n>   over the image, the last on top, with the image's ids
//! workspace/              /workspace, where it was the sandbox's own
//! ```
//!
//! The layers below the last are those of the snapshot that the sandbox itself is made of: their files have a further name
//! here, so that no snapshot depends on another. Nobody ever writes to any of them.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use sandhaus_sandbox::engine::{EngineError, EngineResult};

use super::{
    disk::{self, UPPER, WORKSPACE},
    layer_copy::{self, Owners, open_directory},
    steps::{self, CaptureStep},
    sys,
};

/// Where the layers lie.
const LAYERS: &str = "layers";

/// Most layers of a snapshot: with those of its image they are to be one file system.
pub(super) const LAYERS_MAX: usize = 64;

/// Writes what a disk holds, whose range of ids begins at `base`, into the empty directory `into`. Nobody may write to the
/// disk meanwhile.
pub(super) fn write(disk: &OwnedFd, base: u32, below: Option<&Path>, into: &Path) -> EngineResult<()> {
    let host = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENAMETOOLONG) => {
            EngineError::Invalid("its directories lie too deep within each other to be captured".to_owned())
        }
        _ => disk::failure("capture disk", error),
    };
    let below = below.map(layers).transpose()?.unwrap_or_default();
    if below.len() >= LAYERS_MAX {
        return Err(EngineError::Invalid(format!(
            "it is a copy of a copy {LAYERS_MAX} times over, the most that can be: begin again from an image"
        )));
    }
    let target = open_directory(rustix::fs::CWD, into).map_err(|error| host(error.into()))?;
    let made = |parent: &OwnedFd, name: &str| -> io::Result<OwnedFd> {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
        Ok(open_directory(parent, name)?)
    };
    let layers = made(&target, LAYERS).map_err(host)?;
    steps::pass(CaptureStep::Below, || -> io::Result<()> {
        // Top first, as they are named; the lowest is the first here.
        for (number, layer) in below.iter().rev().enumerate() {
            let layer = open_directory(rustix::fs::CWD, layer)?;
            layer_copy::copy_tree(&layer, &made(&layers, &number.to_string())?, Owners::Linked)?;
        }
        Ok(())
    })
    .map_err(host)?;
    let own = |name: &str| Ok::<_, io::Error>(open_directory(disk, name)?);
    steps::pass(CaptureStep::Layer, || {
        let layer = made(&layers, &below.len().to_string())?;
        layer_copy::copy_tree(&own(UPPER)?, &layer, Owners::OutOf(base))
    })
    .map_err(host)?;
    steps::pass(CaptureStep::Workspace, || {
        layer_copy::copy_tree(&own(WORKSPACE)?, &made(&target, WORKSPACE)?, Owners::OutOf(base))
    })
    .map_err(host)
}

/// The layers of a snapshot, top first.
pub(super) fn layers(snapshot: &Path) -> EngineResult<Vec<PathBuf>> {
    let directory = snapshot.join(LAYERS);
    let host = |error: io::Error| EngineError::host("open snapshot", error);
    let mut layers = Vec::new();
    loop {
        let layer = directory.join(layers.len().to_string());
        match layer.symlink_metadata() {
            Ok(_) if layers.len() >= LAYERS_MAX => {
                return Err(EngineError::Invalid(format!("a snapshot may have at most {LAYERS_MAX} layers")));
            }
            Ok(_) => layers.push(layer),
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(host(error)),
        }
    }
    if layers.is_empty() {
        return Err(host(io::ErrorKind::NotFound.into()));
    }
    layers.reverse();
    Ok(layers)
}

/// Gives a fresh disk the workspace that a snapshot has.
pub(super) fn fill_workspace(disk: &OwnedFd, base: u32, snapshot: &Path) -> io::Result<()> {
    let source = open_directory(rustix::fs::CWD, snapshot.join(WORKSPACE))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let target = sys::open_beneath(disk.as_fd(), Path::new(WORKSPACE), flags)?;
    layer_copy::copy_tree(&source, &target, Owners::Into(base))
}

/// Notes the snapshot that a disk is made of, beside it: as a way from there, so that a data directory can be moved.
pub(super) fn note_below(
    directory: &OwnedFd,
    name: &str,
    data_dir: &Path,
    snapshot: &Path,
) -> io::Result<()> {
    // From disks/<id>.
    let way = match snapshot.strip_prefix(data_dir) {
        Ok(inner) => Path::new("../..").join(inner),
        Err(_) => snapshot.to_owned(),
    };
    match rustix::fs::symlinkat(way, directory, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_copies_have_an_end() {
        let scratch = tempfile::tempdir().expect("a directory");
        let (snapshot, disk, into) =
            (scratch.path().join("snapshot"), scratch.path().join("disk"), scratch.path().join("into"));
        for directory in [&disk.join(UPPER), &disk.join(WORKSPACE), &into] {
            fs_err::create_dir_all(directory).expect("made");
        }
        assert!(layers(&snapshot).is_err(), "nothing is there");
        for number in 0..LAYERS_MAX {
            fs_err::create_dir_all(snapshot.join(LAYERS).join(number.to_string())).expect("made");
        }
        let named = layers(&snapshot).expect("there");
        assert_eq!(named.len(), LAYERS_MAX);
        assert!(named[0].ends_with("63") && named[63].ends_with("0"), "the top first");
        let disk = open_directory(rustix::fs::CWD, &disk).expect("opened");
        let refused = write(&disk, 0x4000_0000, Some(&snapshot), &into).expect_err("too many");
        assert!(matches!(&refused, EngineError::Invalid(text) if text.contains("64")), "{refused}");
        assert_eq!(fs_err::read_dir(&into).expect("readable").count(), 0);
        fs_err::remove_dir(&named[0]).expect("removed");
        write(&disk, 0x4000_0000, Some(&snapshot), &into).expect("the last that can be");
        assert_eq!(layers(&into).expect("there").len(), LAYERS_MAX);
    }
}
