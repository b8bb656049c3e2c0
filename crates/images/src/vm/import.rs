//! Importing a disk that somebody else made, as it is.

use std::{collections::BTreeMap, path::Path};

use super::{
    BuildProgress, BuildReport, BuiltVm, FileRecord, INITRAMFS, ImportVm, KERNEL, Origin, Stage,
    build::{Made, MadeKernel, check_command_line, link_disk, room_for},
    layer_name, qcow2,
    tool::{QEMU_IMG, Tools},
};
use crate::{Catalogue, Error, ImageConfig, ImageName, Result, store};

/// Most bytes of an initial file system that is imported.
const INITRAMFS_BYTES_MAX: u64 = 4 << 30;

impl Catalogue {
    /// Imports a qcow2 file as an image of virtual machines and gives it the next version of a name. Its header decides
    /// whether it is taken: none that names another file, but for one that is to lie over an image's disk, and there the
    /// name is replaced without ever being opened.
    pub fn import_vm(&self, name: &ImageName, import: &ImportVm, report: BuildReport<'_>) -> Result<BuiltVm> {
        self.refuse_versions_of(name)?;
        check_command_line(import.append.as_deref())?;
        let header = check(import)?;
        let length = fs_err::metadata(&import.disk).map_err(Error::at(&import.disk))?.len();
        room_for(self.store().root(), length)?;
        let scratch = self.vm_scratch(length)?;
        let tools = Tools::new(&scratch, &import.interrupt);
        let whole = scratch.directory("image")?;
        let mut stage = |stage| {
            tools.go_on()?;
            report(BuildProgress { stage, done: 0, total: None });
            Ok::<_, Error>(())
        };
        stage(Stage::Copy)?;
        let place = match &import.base {
            Some(base) => link_disk(self, base, &whole)?,
            None => 0,
        };
        let disk = whole.join(layer_name(place));
        copy(&import.disk, &disk)?;
        // What was checked is what was copied: somebody may have written to the file meanwhile.
        if qcow2::header(&disk)?.as_ref() != Some(&header) {
            return Err(Error::Source("it changed while it was copied".to_owned()));
        }
        let file = format!("image/{}", layer_name(place));
        if place > 0 {
            let below = layer_name(place - 1);
            tools.run(QEMU_IMG, &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", &below, &file])?;
        }
        stage(Stage::Disk)?;
        tools.run(QEMU_IMG, &["check", "-q", "-f", "qcow2", &file])?;
        let kernel = self.import_kernel(import, &whole)?;
        stage(Stage::Store)?;
        let digest = FileRecord::of(&import.disk)?.digest;
        let base = import.base.as_ref().map(|base| self.details(base)).transpose()?;
        let base_disk = base.as_ref().and_then(|base| base.disk.clone());
        let inherited = base_disk.as_ref().filter(|_| import.kernel.is_none());
        let mut command_line = inherited.map(|base| base.command_line.clone()).unwrap_or_default();
        if let Some(append) = &import.append {
            command_line = format!("{command_line} {append}").trim().to_owned();
        }
        let made = Made {
            origin: Origin::Disk { digest },
            layers: place + 1,
            size_bytes: header.size_bytes,
            kernel,
            init: None,
            agent: None,
            command_line,
            config: base.map_or_else(ImageConfig::default, |base| base.config),
            tools: BTreeMap::new(),
        };
        self.enter_vm(name, &scratch, &whole, made.manifest(&whole)?)
    }

    /// Puts the kernel that was given, or that of the image below, into the new one's folder.
    fn import_kernel(&self, import: &ImportVm, whole: &Path) -> Result<Option<MadeKernel>> {
        let (kernel, initramfs, made) = match (&import.kernel, &import.base) {
            (Some(kernel), _) => {
                let made = MadeKernel { origin: "file".to_owned(), release: None, modules: Vec::new() };
                (kernel.clone(), import.initramfs.clone(), made)
            }
            (None, Some(base)) => {
                let record = self.details(base)?.disk.and_then(|disk| disk.kernel);
                let files = self.tree(base)?.disk;
                let (Some(record), Some(files)) = (record, files) else { return Ok(None) };
                let Some(kernel) = files.kernel else { return Ok(None) };
                let made =
                    MadeKernel { origin: record.origin, release: record.release, modules: record.modules };
                (kernel, files.initramfs, made)
            }
            (None, None) => return Ok(None),
        };
        copy(&kernel, &whole.join(KERNEL))?;
        if let Some(initramfs) = initramfs {
            let length = fs_err::metadata(&initramfs).map_err(Error::at(&initramfs))?.len();
            crate::root::within("an initial file system", length, INITRAMFS_BYTES_MAX)?;
            copy(&initramfs, &whole.join(INITRAMFS))?;
        }
        Ok(Some(made))
    }
}

fn check(import: &ImportVm) -> Result<qcow2::Header> {
    let refused = |problem: &str| Error::Source(format!("{}: {problem}", import.disk.display()));
    if import.initramfs.is_some() && import.kernel.is_none() {
        return Err(refused("an initial file system is of no use without the kernel it belongs to"));
    }
    if import.append.is_some() && import.kernel.is_none() && import.base.is_none() {
        return Err(refused("a command line is of no use without a kernel"));
    }
    if !fs_err::metadata(&import.disk).map_err(Error::at(&import.disk))?.is_file() {
        return Err(refused("it is no file"));
    }
    let Some(header) = qcow2::header(&import.disk)? else {
        return Err(refused("it is not in the format qcow2"));
    };
    match (&header.backing, &import.base) {
        (Some(_), None) => Err(refused(
            "its header names a backing file, which could be any file of this host; say over which image it lies, or \
             flatten it with `qemu-img convert`",
        )),
        (None, Some(_)) => Err(refused("it is whole, so it lies over no other image")),
        (Some(_), Some(_)) | (None, None) => Ok(header),
    }
}

/// Copies a file, its holes too.
pub(crate) fn copy(from: &Path, into: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    const PIECE_BYTES: usize = 1 << 20;
    let source = std::fs::File::open(from).map_err(Error::at(from))?;
    if !source.metadata().map_err(Error::at(from))?.is_file() {
        return Err(Error::Source(format!("{} is no file", from.display())));
    }
    let file = std::fs::File::create_new(into).map_err(Error::at(into))?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        let count = source.read_at(&mut piece, at).map_err(Error::at(from))?;
        if count == 0 {
            break;
        }
        if piece[..count].iter().any(|byte| *byte != 0) {
            file.write_all_at(&piece[..count], at).map_err(Error::at(into))?;
        }
        at += count as u64;
    }
    file.set_len(at).map_err(Error::at(into))?;
    debug_assert!(store::exists(into)?);
    Ok(())
}
