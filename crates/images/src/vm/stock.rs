//! An image of a virtual machine from a disk that somebody else made, such as a distribution's image for clouds: the agent
//! is written into its file system, its kernel and modules are read out of it. It is neither mounted nor booted.
//!
//! `debugfs` reads and writes the file system. It has a language of its own, so names in its commands are constants of
//! ours, or names of the disk that consist of harmless letters; and it dumps single files to places of ours, since a
//! whole folder would go to wherever the disk's names lead.

use std::path::{Path, PathBuf};

use sandhaus_protocol::initramfs::{self as document, Initramfs};

use super::{
    Form, KernelChoice, Layering, Origin, Stage,
    build::{Made, Work, first_program, module_paths, room_for, write_kernel},
    filesystem::run_commands,
    gpt::{self, ExtFileSystem},
    guest::{self, Content, InitSystem, Look, Piece},
    import::copy,
    kernel::{self, Kernel, version_key},
    manifest::FileRecord,
    modules::ModuleList,
    qcow2,
    tool::{DEBUGFS, E2FSCK, QEMU_IMG, Tools, failure},
};
use crate::{Error, ImageConfig, Result, blob::BlobDigest, store};

/// Names of plain disks in the scratch folder: as it came, and as it becomes.
const BEFORE: &str = "before.raw";
const AFTER: &str = "after.raw";

/// What the kernel is told besides: nobody is there to configure the machine, and looking for them takes long.
const COMMAND_LINE: &str = "cloud-init=disabled";

/// Folders that may hold modules.
const MODULE_FOLDERS: &[&str] = &["usr/lib/modules", "lib/modules"];

/// How much more room a disk takes while it is worked on than its file: plain twice, and its new files.
const ROOM_FACTOR: u64 = 5;

/// Most names of a folder that are looked at.
const NAMES_MAX: usize = 10_000;

/// Longest name of the disk's that gets into a command.
const NAME_BYTES_MAX: usize = 255;

/// Builds from a disk.
pub(crate) fn make(work: &mut Work<'_>, disk: &Path) -> Result<Made> {
    work.stage(Stage::Copy)?;
    let (digest, size_bytes) = plain(work, disk)?;
    let tools = work.tools;
    let (before, after) = (tools.folder().join(BEFORE), tools.folder().join(AFTER));
    let systems = gpt::ext_file_systems(&before)?;
    let flat = work.build.layering == Layering::Flat;
    let layers_before = if work.build.layering == Layering::Natural {
        work.stage(Stage::Disk)?;
        work.convert(BEFORE, "image/0.qcow2", &[])?;
        1
    } else {
        0
    };
    if flat {
        fs_err::rename(&before, &after).map_err(Error::at(&after))?;
    } else {
        copy(&before, &after)?;
    }
    let root = root_of(tools, &systems)?;
    let look = Inside::new(tools, root);
    let init = InitSystem::of(&look)?;

    work.stage(Stage::Kernel)?;
    let kernel = kernel_of(work, &look, &systems)?;
    let modules = kernel.first_modules(&tools)?;

    work.stage(Stage::FileSystem)?;
    look.write(&guest::pieces(&look, init, work.build.agent)?)?;
    check(tools, root)?;
    let document = Initramfs {
        modules: module_paths(&modules),
        root: Some(document::Root {
            device: root.device(),
            filesystem: Some("ext4".to_owned()),
            options: String::new(),
            init: first_program(init),
        }),
    };
    let made_kernel = write_kernel(work, &kernel, &modules, &document, None)?;
    let size_bytes = grown(&after, size_bytes, &work.build.form)?;
    let layers = if layers_before == 0 {
        work.write_disk(AFTER)?
    } else {
        work.stage(Stage::Disk)?;
        work.write_over(BEFORE, AFTER, layers_before)?;
        layers_before + 1
    };
    Ok(Made {
        origin: Origin::Disk { digest },
        layers,
        size_bytes,
        kernel: Some(made_kernel),
        init: Some(init),
        agent: Some(BlobDigest::of(work.build.agent).to_string()),
        command_line: work.command_line(COMMAND_LINE),
        config: ImageConfig::default(),
        tools: work.versions()?,
    })
}

/// Makes a plain disk of a file that nobody has checked. Returns the file's digest and the size of the disk.
fn plain(work: &Work<'_>, disk: &Path) -> Result<(String, u64)> {
    let refused = |problem: &str| Error::Source(format!("{}: {problem}", disk.display()));
    let found = fs_err::metadata(disk).map_err(Error::at(disk))?;
    if !found.is_file() {
        return Err(refused("it is no file"));
    }
    room_for(work.tools.folder(), found.len().saturating_mul(ROOM_FACTOR))?;
    // Checked and read is a copy: nobody else can write to it meanwhile.
    let own = work.tools.folder().join("stock");
    copy(disk, &own)?;
    let record = FileRecord::of(&own)?;
    let size_bytes = match qcow2::header(&own)? {
        Some(qcow2::Header { backing: Some(_), .. }) => {
            return Err(refused(
                "its header names a backing file, which could be any file of this host; flatten it with `qemu-img convert`",
            ));
        }
        Some(header) => {
            work.tools.run(QEMU_IMG, &["convert", "-f", "qcow2", "-O", "raw", "stock", BEFORE])?;
            fs_err::remove_file(&own).map_err(Error::at(&own))?;
            header.size_bytes
        }
        None if disk.extension().is_some_and(|ending| ending == "img" || ending == "raw") => {
            let before = work.tools.folder().join(BEFORE);
            fs_err::rename(&own, &before).map_err(Error::at(&before))?;
            record.size_bytes
        }
        None => {
            return Err(refused(
                "it is not in the format qcow2, and no plain disk by its name (.img or .raw)",
            ));
        }
    };
    Ok((record.digest, size_bytes))
}

/// Makes a disk as large as was asked for. Its partitions stay as they are.
fn grown(disk: &Path, size_bytes: u64, form: &Form) -> Result<u64> {
    let Form::Disk(Some(wanted)) = form else { return Ok(size_bytes) };
    if *wanted < size_bytes {
        return Err(Error::Source(format!("the disk has {size_bytes} bytes, and it cannot be made smaller")));
    }
    let file = std::fs::File::options().write(true).open(disk).map_err(Error::at(disk))?;
    let wanted = wanted.next_multiple_of(512);
    file.set_len(wanted).map_err(Error::at(disk))?;
    Ok(wanted)
}

/// The file system that a machine starts from.
fn root_of(tools: Tools<'_>, systems: &[ExtFileSystem]) -> Result<ExtFileSystem> {
    for system in systems {
        let look = Inside::new(tools, *system);
        if look.has("etc/passwd")? {
            return Ok(*system);
        }
    }
    Err(Error::Source(
        "none of the disk's ext4 file systems has accounts, so none is a system's root".to_owned(),
    ))
}

/// Repairs what is safe to repair, and fails where that is not enough.
fn check(tools: Tools<'_>, system: ExtFileSystem) -> Result<()> {
    let ended = tools.end_of(E2FSCK, &["-f", "-p", &place(system)], &mut |_| {})?;
    match ended.status.code() {
        Some(0 | 1) => Ok(()),
        _ => Err(failure(E2FSCK, &ended)),
    }
}

/// What the tools of e2fsprogs call a file system within a disk.
fn place(system: ExtFileSystem) -> String {
    format!("{AFTER}?offset={}", system.start)
}

/// The kernel that was asked for, else the disk's own, else Debian's.
fn kernel_of(work: &Work<'_>, root: &Inside<'_>, systems: &[ExtFileSystem]) -> Result<Kernel> {
    if work.build.kernel != KernelChoice::Automatic || work.build.modules.is_some() {
        return kernel::choose(&work.tools, &work.build.kernel, work.build.modules.as_deref(), None);
    }
    let Some((release, modules)) = newest_release(root)? else {
        return kernel::choose(&work.tools, &work.build.kernel, None, None);
    };
    let file = work.tools.folder().join("vmlinuz");
    // Some have their kernels in a file system of their own.
    let mut found = root.dump(&format!("boot/vmlinuz-{release}"), &file)?;
    for system in systems {
        if !found {
            found = Inside::new(work.tools, *system).dump(&format!("vmlinuz-{release}"), &file)?;
        }
    }
    if !found {
        return kernel::choose(&work.tools, &work.build.kernel, None, None);
    }
    let folder = work.tools.directory("kernel")?.join(&release);
    fs_err::create_dir(&folder).map_err(Error::at(&folder))?;
    let from = format!("{modules}/{release}");
    for list in ["modules.dep", "modules.builtin"] {
        root.dump(&format!("{from}/{list}"), &folder.join(list))?;
    }
    if !store::exists(&folder.join("modules.dep"))? {
        return Err(Error::Source("its modules have no list of what needs what (modules.dep)".to_owned()));
    }
    for path in ModuleList::read(&folder)?.load_order()? {
        let harmless = path.split('/').all(|name| is_harmless(name) && !matches!(name, "." | ".."));
        if !harmless || path.len() > NAME_BYTES_MAX {
            return Err(Error::Source("its list of modules has paths that are none".to_owned()));
        }
        let target = folder.join(&path);
        let parent = target.parent().unwrap_or(&folder);
        fs_err::create_dir_all(parent).map_err(Error::at(parent))?;
        if !root.dump(&format!("{from}/{path}"), &target)? {
            return Err(Error::Source(format!("its module {path} is not there")));
        }
    }
    Ok(Kernel::of_disk(file, release, folder))
}

/// The newest release whose modules a root has, and the folder they are in.
fn newest_release(root: &Inside<'_>) -> Result<Option<(String, &'static str)>> {
    for folder in MODULE_FOLDERS {
        let mut releases = root.names(folder)?;
        releases.retain(|release| !matches!(release.as_str(), "." | ".."));
        releases.sort_by_key(|release| version_key(release));
        if let Some(newest) = releases.pop() {
            return Ok(Some((newest, folder)));
        }
    }
    Ok(None)
}

/// Whether a name means nothing to `debugfs`: no space, quote, bracket or slash.
fn is_harmless(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte))
}

/// A file system of the disk that is being changed.
struct Inside<'a> {
    tools: Tools<'a>,
    system: ExtFileSystem,
}

impl<'a> Inside<'a> {
    fn new(tools: Tools<'a>, system: ExtFileSystem) -> Self {
        Self { tools, system }
    }

    /// What `debugfs` prints to a command. It ends with success whatever came of it.
    fn ask(&self, command: &str) -> Result<String> {
        let ended = self.tools.end_of(DEBUGFS, &["-R", command, &place(self.system)], &mut |_| {})?;
        if !ended.status.success() {
            return Err(failure(DEBUGFS, &ended));
        }
        Ok(String::from_utf8_lossy(&ended.output).into_owned())
    }

    /// What kind of thing has a path, in `debugfs`' own word; links but the last followed.
    fn kind(&self, path: &str) -> Result<Option<String>> {
        let said = self.ask(&format!("stat /{path}"))?;
        let kind = said.split_once("Type: ").and_then(|(_, rest)| rest.split_whitespace().next());
        Ok(kind.map(str::to_owned))
    }

    /// Harmless names in a folder, in no order; none if it is not there.
    fn names(&self, folder: &str) -> Result<Vec<String>> {
        let said = self.ask(&format!("ls -p /{folder}"))?;
        // Lines of `/inode/mode/uid/gid/name/size/`.
        let names = said.lines().filter_map(|line| line.split('/').nth(5));
        Ok(names.filter(|name| is_harmless(name)).take(NAMES_MAX).map(str::to_owned).collect())
    }

    /// Copies a regular file to a place of ours; false if it is not there.
    fn dump(&self, path: &str, into: &Path) -> Result<bool> {
        if self.kind(path)?.as_deref() != Some("regular") {
            return Ok(false);
        }
        let copy = self.tools.folder().join("dumped");
        self.ask(&format!("dump /{path} dumped"))?;
        fs_err::rename(&copy, into).map_err(Error::at(into))?;
        Ok(true)
    }

    /// Writes what a guest needs, and reads it again: `debugfs` goes on after what it could not do.
    fn write(&self, pieces: &[Piece]) -> Result<()> {
        let mut commands = format!("set_current_time @{}\n", super::BUILD_TIME_S);
        let mut contents: Vec<PathBuf> = Vec::new();
        for piece in pieces {
            let path = piece.path;
            let there = self.kind(path)?;
            match &piece.content {
                Content::Directory(_, _) if there.is_some() => {}
                Content::Directory(mode, owner) => {
                    // From the top without a slash: with one, `debugfs` takes where it is for the top.
                    commands.push_str(&format!("cd /\nmkdir {path}\n"));
                    commands.push_str(&fields(path, 0o040_000 | mode, *owner));
                }
                Content::File(mode, content) => {
                    let name = format!("piece-{}", contents.len());
                    let file = self.tools.folder().join(&name);
                    fs_err::write(&file, content).map_err(Error::at(&file))?;
                    contents.push(file);
                    if there.is_some() {
                        commands.push_str(&format!("rm /{path}\n"));
                    }
                    let (folder, last) = path.rsplit_once('/').unwrap_or(("", path));
                    commands.push_str(&format!("cd /{folder}\nwrite {name} {last}\n"));
                    commands.push_str(&fields(path, 0o100_000 | mode, 0));
                }
                Content::Link(target) => {
                    if there.is_some() {
                        commands.push_str(&format!("rm /{path}\n"));
                    }
                    commands.push_str(&format!("cd /\nsymlink {path} {target}\n"));
                }
            }
        }
        run_commands(&self.tools, &commands, &place(self.system))?;
        let mut contents = contents.into_iter();
        for piece in pieces {
            let file = matches!(piece.content, Content::File(..)).then(|| contents.next()).flatten();
            self.check(piece, file)?;
        }
        Ok(())
    }

    fn check(&self, piece: &Piece, file: Option<PathBuf>) -> Result<()> {
        let refused = || {
            Error::Source(format!(
                "/{} could not be written into its file system, which may be full",
                piece.path
            ))
        };
        match &piece.content {
            // A link to a directory, such as of a merged /usr, does as well.
            Content::Directory(..) => {
                let kind = self.kind(piece.path)?;
                matches!(kind.as_deref(), Some("directory" | "symlink")).then_some(()).ok_or_else(refused)
            }
            Content::Link(_) => {
                (self.kind(piece.path)?.as_deref() == Some("symlink")).then_some(()).ok_or_else(refused)
            }
            Content::File(_, content) => {
                let again = self.tools.folder().join("again");
                let there = self.dump(piece.path, &again)?;
                let same = there && fs_err::read(&again).map_err(Error::at(&again))? == *content;
                if let Some(file) = file {
                    fs_err::remove_file(&file).map_err(Error::at(&file))?;
                }
                if same { Ok(()) } else { Err(refused()) }
            }
        }
    }
}

/// Commands that set what a new file is like.
fn fields(path: &str, mode: u32, owner: u32) -> String {
    format!(
        "set_inode_field /{path} mode 0{mode:o}\nset_inode_field /{path} uid {owner}\nset_inode_field /{path} gid {owner}\n"
    )
}

impl Look for Inside<'_> {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let copy = self.tools.folder().join("small");
        if !self.dump(path, &copy)? {
            return Ok(None);
        }
        fs_err::read(&copy).map(Some).map_err(Error::at(&copy))
    }

    fn has(&self, path: &str) -> Result<bool> {
        Ok(matches!(self.kind(path)?.as_deref(), Some("regular" | "symlink")))
    }
}
