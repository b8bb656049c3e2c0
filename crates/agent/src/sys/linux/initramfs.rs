//! The initramfs of a virtual machine: loads what its kernel has as modules, mounts the root, and hands over to it.

use std::{
    ffi::{CString, OsStr},
    fs::{self, File},
    io::{self, Read as _},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags};
use sandhaus_protocol::initramfs::{BYTES_MAX, Init, Initramfs, PATH, Root};

use super::{disks, first::say, uevents::Uevents};

/// How long the root's device may take to appear.
const DEVICE_MAX: Duration = Duration::from_secs(30);

/// Where the root is mounted before it becomes the root.
const NEW_ROOT: &str = "/sandhaus-root";

/// What goes along to the root.
const MOVED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Type numbers of file systems in memory: the only ones whose content is removed.
const RAMFS_MAGIC: i64 = 0x8584_58f6;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The kernel is to decompress the module: `MODULE_INIT_COMPRESSED_FILE`.
const COMPRESSED: i32 = 4;

/// Names of compressed modules end so.
const COMPRESSED_ENDINGS: [&str; 3] = ["xz", "zst", "gz"];

/// What the kernel's command line says about the root.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    device: Option<String>,
    filesystem: Option<String>,
    options: Option<String>,
    init: Option<String>,
    read_only: bool,
}

impl Said {
    fn parse(command_line: &str) -> Self {
        let mut said = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let (name, value) =
                word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
            let value = value.map(|value| value.trim_matches('"').to_owned());
            match name {
                "root" => said.device = value.or(said.device),
                "rootfstype" => said.filesystem = value.or(said.filesystem),
                "rootflags" => said.options = value.or(said.options),
                "init" => said.init = value.or(said.init),
                "ro" => said.read_only = true,
                "rw" => said.read_only = false,
                // Words after it are the first process's own.
                "--" => break,
                _ => {}
            }
        }
        said
    }
}

/// Does what the initramfs's document says, if this is an initramfs that has one. Returns where the agent itself goes on.
pub(super) fn leave() -> io::Result<()> {
    let document = match read_document() {
        Ok(document) => document,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(context(PATH, error)),
    };
    let document: Initramfs = serde_json::from_slice(&document)
        .map_err(|error| io::Error::other(format!("{PATH} is not valid: {error}")))?;
    for module in &document.modules {
        if let Err(error) = load(module) {
            say(format_args!("module {module} does not load: {error}"));
        }
    }
    let Some(root) = document.root else { return Ok(()) };
    let said = Said::parse(&fs::read_to_string("/proc/cmdline")?);
    mount_root(&root, &said)?;
    enter_root().map_err(|error| context("the root cannot be entered", error))?;
    let program = match (said.init, root.init) {
        (Some(init), _) => vec![init],
        (None, Init::Program(argv)) => argv,
        (None, Init::Agent) => return Ok(()),
    };
    Err(execute(&program))
}

fn read_document() -> io::Result<Vec<u8>> {
    let mut document = Vec::new();
    File::open(PATH)?.take(BYTES_MAX as u64 + 1).read_to_end(&mut document)?;
    match document.len() > BYTES_MAX {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(document),
    }
}

fn load(module: &str) -> io::Result<()> {
    let file = File::open(module)?;
    let ending = Path::new(module).extension().and_then(OsStr::to_str).unwrap_or_default();
    let compressed = COMPRESSED_ENDINGS.contains(&ending);
    let flags = if compressed { COMPRESSED } else { 0 };
    match rustix::system::finit_module(&file, c"", flags) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) if compressed => Err(io::Error::other(
            "this kernel does not decompress modules; the initramfs must hold them as they are",
        )),
        Err(error) => Err(error.into()),
    }
}

fn mount_root(root: &Root, said: &Said) -> io::Result<()> {
    let device = said.device.as_deref().unwrap_or(&root.device);
    let found = Uevents::open()?.wait_for(DEVICE_MAX, || disks::find(device))?;
    let found = found.ok_or_else(|| {
        io::Error::other(format!(
            "the root {device} did not appear within {} s; there are {}",
            DEVICE_MAX.as_secs(),
            disks::all().join(", ")
        ))
    })?;
    let kind = match said.filesystem.as_deref().or(root.filesystem.as_deref()) {
        Some(kind) => kind.to_owned(),
        None => disks::file_system(&found)
            .map_err(|error| context(&format!("the root {device} cannot be read"), error))?
            .ok_or_else(|| io::Error::other(format!("the root {device} has no file system known here")))?
            .to_owned(),
    };
    let options = CString::new(said.options.as_deref().unwrap_or(&root.options))?;
    let flags = if said.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    fs::create_dir_all(NEW_ROOT)?;
    rustix::mount::mount(&found, NEW_ROOT, kind.as_str(), flags, Some(options.as_c_str()))
        .map_err(|error| context(&format!("the root {device} cannot be mounted as {kind}"), error.into()))
}

/// Makes the mounted root the root. The initramfs's files are removed, as their memory is needed no more.
fn enter_root() -> io::Result<()> {
    for path in MOVED {
        let target = format!("{NEW_ROOT}{path}");
        let _ = fs::create_dir(&target);
        if rustix::mount::mount_move(path, &target).is_err() {
            // A root without that folder gets none; nothing of it may stay behind.
            rustix::mount::unmount(path, UnmountFlags::DETACH)?;
        }
    }
    let own = Path::new("/");
    let kind = rustix::fs::statfs(own)?.f_type;
    #[expect(clippy::useless_conversion, reason = "the number's type differs between machines")]
    if [RAMFS_MAGIC, TMPFS_MAGIC].contains(&i64::from(kind)) {
        remove_below(own, fs::metadata(own)?.dev());
    }
    rustix::process::chdir(NEW_ROOT)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    Ok(rustix::process::chdir("/")?)
}

/// Removes what is in this folder and on this device. What cannot be removed only costs its memory.
fn remove_below(folder: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).collect::<Vec<PathBuf>>() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            remove_below(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Becomes the root's first process, with the arguments that the kernel gave to this one. Answers only if that failed.
fn execute(argv: &[String]) -> io::Error {
    let Some((program, arguments)) = argv.split_first() else {
        return io::Error::other(format!("{PATH} names no program of the root"));
    };
    let error = Command::new(program).args(arguments).args(std::env::args_os().skip(1)).exec();
    context(&format!("{program} of the root cannot be executed"), error)
}

fn context(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_the_command_line_counts() {
        let said = Said::parse(
            "console=ttyS0 root=/dev/vda ro quiet root=\"LABEL=cloudimg-rootfs\" rootflags=noatime init=/bin/i rw -- ro root=x",
        );
        let wanted = Said {
            device: Some("LABEL=cloudimg-rootfs".to_owned()),
            filesystem: None,
            options: Some("noatime".to_owned()),
            init: Some("/bin/i".to_owned()),
            read_only: false,
        };
        assert_eq!(said, wanted);
        assert!(Said::parse("rw ro").read_only);
        assert_eq!(Said::parse(""), Said::default());
    }
}
