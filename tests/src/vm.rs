//! Images of virtual machines, built once for all tests by the binary under test.
//!
//! They lie in a catalogue beneath the cache folder; a test gets them into its own data directory by name. A change of
//! the binary or of a recipe builds them anew.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::{FlockOperation, flock};

use crate::{binary, cache_dir, checkout, server::Options, session::Session, tree};

/// Name of the image of a machine that lives in its memory: busybox, with the agent as its first process.
pub const INITRAMFS_IMAGE: &str = "tiny";

/// Name of the image of a machine with that on a small disk, so that it has files that outlive its memory.
pub const DISK_IMAGE: &str = "small";

/// Name of the image with Debian and systemd on a disk of 2 GiB, with the agent as a service.
pub const DEBIAN_IMAGE: &str = "debian-vm";

/// How a server is started whose sandboxes are virtual machines of [`INITRAMFS_IMAGE`] unless a request says otherwise;
/// `more` are further lines of its configuration.
pub fn options(more: &str) -> Options {
    let config = format!(
        "default_engine: qemu\ndefault_image: {INITRAMFS_IMAGE}\ndefaults:\n  mem_limit_mb: 256\n{more}"
    );
    Options { config: Some(config), ..Options::default() }
}

/// Whether images can be built and booted here; else the test is skipped aloud.
pub fn bootable(name: &str) -> bool {
    if !crate::runnable(name) {
        return false;
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    for program in ["qemu-system-x86_64", "qemu-img", "mke2fs", "depmod", "dpkg-deb"] {
        if !std::env::split_paths(&paths)
            .chain(["/usr/sbin".into()])
            .any(|folder| folder.join(program).exists())
        {
            crate::skip(name, &format!("{program} is not installed"));
            return false;
        }
    }
    if std::env::consts::ARCH != "x86_64" {
        crate::skip(name, "the guest is of another architecture than this machine");
        return false;
    }
    true
}

/// Gives a data directory the image [`INITRAMFS_IMAGE`].
pub fn initramfs_image(data: &Path) {
    provide(data, INITRAMFS_IMAGE, |catalogue| {
        let tree = tree::busybox_tree();
        let mut build = build(catalogue, INITRAMFS_IMAGE, tree.path());
        ran(build.arg("--initramfs-only"));
    });
}

/// Gives a data directory the image [`DISK_IMAGE`].
pub fn disk_image(data: &Path) {
    provide(data, DISK_IMAGE, |catalogue| {
        let tree = tree::busybox_tree();
        let mut build = build(catalogue, DISK_IMAGE, tree.path());
        ran(build.args(["--size", "128MiB", "--no-compress"]));
    });
}

/// Gives a data directory the image [`DEBIAN_IMAGE`].
pub fn debian_image(data: &Path) {
    provide(data, DEBIAN_IMAGE, |catalogue| {
        let root = debian_root();
        let mut build = build(catalogue, DEBIAN_IMAGE, root.path());
        // Compressing takes longer than all tests together gain by it.
        ran(build.args(["--size", "2GiB", "--no-compress"]));
    });
}

/// Has a guest count in its memory for as long as it runs, and waits until it has begun.
pub fn count(session: &Session) {
    session.output(
        "kept=in-memory; mkdir -p /tmp; (n=0; while :; do n=$((n+1)); echo $n > /tmp/m; mv /tmp/m /tmp/n; sleep 0.05; done) & \
         until test -e /tmp/n; do sleep 0.05; done",
    );
}

/// How far it has counted.
pub fn counted(session: &Session) -> u64 {
    session.output("cat /tmp/n").parse().expect("a number")
}

/// It goes on from where it was: not from the beginning, and further with time.
#[track_caller]
pub fn goes_on(session: &Session, from: u64) {
    let now = counted(session);
    assert!(now >= from, "{now} after {from}");
    crate::settles("the counter goes on", || counted(session) > now);
    assert_eq!(session.output("echo $kept"), "in-memory");
}

/// A tree of Debian with systemd, for whoever builds an image of it.
pub fn debian_root() -> tempfile::TempDir {
    let root =
        tempfile::Builder::new().prefix("sandhaus-root-").tempdir_in(cache_dir()).expect("make a folder");
    let cache = cached("guest-tree", &["tree.sh"]);
    ran(Command::new(guest("image-root.sh")).arg(cache).arg(root.path()));
    root
}

/// The package of the kernel that all guests have, fetched by the first who wants it.
pub fn kernel_package() -> PathBuf {
    let folder = cached("guest-kernel", &["kernel.sh", "initramfs-init"]);
    ran(Command::new(guest("kernel.sh")).arg(&folder));
    folder.join("linux-image.deb")
}

/// A command line that builds an image of a tree with the kernel of all guests.
pub fn build(data: &Path, name: &str, from: &Path) -> Command {
    let mut command = binary::command(data);
    command.args(["image", "build-vm", "--name", name, "--from"]).arg(from);
    command.arg("--kernel").arg(kernel_package());
    command
}

/// Puts an image of the cache into a data directory; `make` builds it if it is not there yet.
fn provide(data: &Path, name: &str, make: impl FnOnce(&Path)) {
    let cache = cache();
    let lock = fs::File::create(cache.with_extension("lock")).expect("open the lock");
    flock(&lock, FlockOperation::LockExclusive).expect("lock the cache");
    if !cache.join(format!("images/names/{name}.json")).exists() {
        make(&cache);
    }
    drop(lock);
    let (from, into) = (cache.join("images"), data.join("images"));
    let record = fs::read_to_string(from.join(format!("names/{name}.json"))).expect("read the name");
    let record: serde_json::Value = serde_json::from_str(&record).expect("a record");
    let digest = record["digest"].as_str().expect("a digest").trim_start_matches("sha256:");
    // A data directory is made by whoever opens it first, with the access that it chooses.
    ran(binary::command(data).args(["--quiet", "image", "list"]));
    let place = into.join("content").join(digest);
    if !place.exists() {
        let partial = into.join("tmp").join(format!("of-tests-{}", std::process::id()));
        fs::create_dir_all(&partial).expect("make a folder");
        for file in fs::read_dir(from.join("content").join(digest)).expect("list the image") {
            let file = file.expect("list the image");
            let target = partial.join(file.file_name());
            // Nobody ever changes them, so one copy does for all.
            if fs::hard_link(file.path(), &target).is_err() {
                fs::copy(file.path(), &target).expect("copy the image");
            }
        }
        fs::rename(&partial, &place).expect("publish the image");
    }
    for version in [name.to_owned(), format!("{name}.1")] {
        let file = format!("names/{version}.json");
        fs::copy(from.join(&file), into.join(&file)).expect("copy the name");
    }
}

/// The data directory with the images of this binary. Those of earlier ones go.
fn cache() -> PathBuf {
    let recipe = cached("vm-images", &["kernel.sh", "tree.sh", "image-root.sh"]);
    let binary = fs::metadata(binary::path()).expect("look at the binary");
    let stamp = format!("{:x}{:08x}{:x}", binary.mtime(), binary.mtime_nsec(), binary.len());
    let name = format!("{}-{stamp}", recipe.file_name().expect("a name").display());
    for entry in fs::read_dir(cache_dir()).expect("list the cache") {
        let entry = entry.expect("list the cache");
        let found = entry.file_name();
        let found = found.to_string_lossy();
        if found.starts_with("vm-images-") && !found.starts_with(&name) && entry.path().is_dir() {
            // Another test may just do the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let cache = cache_dir().join(name);
    fs::create_dir_all(&cache).expect("make the cache");
    cache
}

/// A folder for what is made by these files of a recipe; a change of them makes it another folder.
fn cached(name: &str, recipe: &[&str]) -> PathBuf {
    let recipe: Vec<u8> =
        recipe.iter().flat_map(|file| fs::read(guest(file)).expect("read the recipe")).collect();
    let checksum = recipe.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    cache_dir().join(format!("{name}-{checksum:016x}"))
}

fn guest(file: &str) -> PathBuf {
    checkout().join("tests/guest").join(file)
}

/// Runs a command to its end; its errors are the test's.
#[track_caller]
fn ran(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}:\n{errors}", output.status);
}
