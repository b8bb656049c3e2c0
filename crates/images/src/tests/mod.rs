//! Tests over the whole catalogue, on real files. They run as root, as the server does.

mod attacks;
mod catalogue;
mod host;
mod pack;

use std::path::Path;

use crate::{Catalogue, ImageName};

/// A folder in memory where the host has that: what these tests wait for otherwise is the disk.
fn quick_directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("make a folder")
}

fn name(name: &str) -> ImageName {
    ImageName::parse(name).expect("a valid name")
}

/// Every path below a directory with what it is, for comparing whole trees.
fn listing(directory: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt as _;
    let mut lines = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = std::fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_file() {
                String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
            } else if metadata.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else {
                open.push(path.clone());
                String::new()
            };
            let shown = path.strip_prefix(directory).unwrap().to_path_buf();
            lines.push(format!(
                "{shown:?} {:o} {}:{} {content:?}",
                metadata.mode(),
                metadata.uid(),
                metadata.gid()
            ));
        }
    }
    lines.sort();
    lines
}

/// Nothing is half done in the catalogue at `directory`.
fn assert_no_leftovers(directory: &Path) {
    assert_eq!(listing(&directory.join("tmp")), Vec::<String>::new());
}

/// A catalogue on a host that has next to nothing, so that making it is quick.
fn small_catalogue(directory: &Path) -> Catalogue {
    let host = directory.join("host");
    std::fs::create_dir_all(host.join("usr/bin")).unwrap();
    Catalogue::open_on(&directory.join("images"), &host).unwrap()
}
