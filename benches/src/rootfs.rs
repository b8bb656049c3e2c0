//! The root file system that everything measured runs in.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::floor;

/// A small Debian with the floor's runner in it, made once; a tree of one busybox where no mirror is at hand.
pub(crate) fn prepare(folder: &Path) -> anyhow::Result<PathBuf> {
    let root = folder.join("rootfs");
    if !root.join("bin/true").exists() {
        eprintln!("making a root file system, once");
        let made = Command::new("mmdebstrap")
            .args(["--quiet", "--variant=minbase", "--include=python3-minimal", "bookworm"])
            .arg(&root)
            .status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("no Debian can be made here; the tree of a busybox takes its place");
            busybox(&root)?;
        }
    }
    let source = folder.join("runner.c");
    fs_err::write(&source, include_str!("floor/runner.c"))?;
    let runner = root.join(floor::RUNNER);
    let compiled =
        Command::new("gcc").args(["-Os", "-static", "-s", "-o"]).arg(&runner).arg(&source).status()?;
    ensure!(compiled.success(), "the floor's runner does not compile");
    fs_err::create_dir_all(root.join("workspace"))?;
    Ok(root)
}

fn busybox(root: &Path) -> anyhow::Result<()> {
    let source = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists());
    let source = source.context("neither mmdebstrap nor busybox is here")?;
    for name in ["bin", "dev", "etc", "mnt", "proc", "root", "sys", "tmp", "usr/bin"] {
        fs_err::create_dir_all(root.join(name))?;
    }
    fs_err::copy(source, root.join("bin/busybox"))?;
    for name in ["sh", "bash", "true", "echo", "cat", "ls"] {
        let link = root.join("bin").join(name);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    fs_err::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(())
}
