//! Root file systems for images, made on the spot.

use std::{path::PathBuf, process::Command};

/// The static busybox of this machine.
pub fn busybox() -> PathBuf {
    let found =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("busybox-static is installed: ./x setup does that")
}

/// A tree that any shell command can run in: one static busybox and what it needs.
pub fn busybox_tree() -> tempfile::TempDir {
    let tree = tempfile::tempdir().expect("make a folder");
    for folder in ["bin", "etc", "usr/bin"] {
        fs_err::create_dir_all(tree.path().join(folder)).expect("make a folder of the tree");
    }
    fs_err::copy(busybox(), tree.path().join("bin/busybox")).expect("copy busybox");
    let applets = Command::new(busybox()).arg("--list").output().expect("start busybox").stdout;
    let applets = String::from_utf8(applets).expect("names are text");
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        std::os::unix::fs::symlink("/bin/busybox", tree.path().join("bin").join(applet)).expect("link it");
    }
    fs_err::write(tree.path().join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("write passwd");
    fs_err::write(tree.path().join("etc/marker"), "imported\n").expect("write the marker");
    tree
}
