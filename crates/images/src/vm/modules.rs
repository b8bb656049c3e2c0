//! Which modules of a kernel an initial file system must bring, and in which order they are loaded.

use std::{
    collections::{HashMap, HashSet},
    io::Read as _,
    path::Path,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::tool::{Tools, XZ};
use crate::{Error, Result, root::escaped};

/// What a machine's disk, network, random numbers and console need. Without the first ones nothing starts.
const NEEDED: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net", "ext4"];

/// What is taken if the kernel has it.
const WANTED: &[&str] = &["virtio_rng", "virtio_console", "virtio_balloon", "vmgenid", "overlay"];

/// Most bytes of a list of modules.
const LIST_BYTES_MAX: u64 = 16 << 20;

/// Most bytes of one module.
const MODULE_BYTES_MAX: u64 = 64 << 20;

/// A kernel's modules, as `modules.dep` and `modules.builtin` describe them.
#[derive(Debug, Default)]
pub(crate) struct ModuleList {
    /// Path and paths of what it needs, by name.
    modules: HashMap<String, (String, Vec<String>)>,
    builtin: HashSet<String>,
}

impl ModuleList {
    /// Reads the lists in a kernel's folder of modules.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            let mut text = String::new();
            let file = std::fs::File::open(&path).map_err(Error::at(&path))?;
            file.take(LIST_BYTES_MAX).read_to_string(&mut text).map_err(Error::at(&path))?;
            Ok::<_, Error>(text)
        };
        // Kernels without anything built in have no such list.
        let builtin = if crate::store::exists(&folder.join("modules.builtin"))? {
            text("modules.builtin")?
        } else {
            String::new()
        };
        Ok(Self::parse(&text("modules.dep")?, &builtin))
    }

    fn parse(dependencies: &str, builtin: &str) -> Self {
        let mut list = Self::default();
        for line in dependencies.lines() {
            let Some((path, needs)) = line.split_once(':') else { continue };
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            list.modules.insert(name_of(path), (path.to_owned(), needs));
        }
        list.builtin = builtin.lines().map(name_of).collect();
        list
    }

    /// Paths of the modules that a virtual machine starts with, each after what it needs.
    pub(crate) fn load_order(&self) -> Result<Vec<String>> {
        let mut order = Vec::new();
        let mut seen = HashSet::new();
        for name in NEEDED {
            if !self.modules.contains_key(*name) && !self.builtin.contains(*name) {
                return Err(Error::Source(format!(
                    "the kernel has no {name}: take one made for virtual machines, such as linux-image-cloud-amd64"
                )));
            }
        }
        for name in NEEDED.iter().chain(WANTED) {
            if let Some((path, _)) = self.modules.get(*name) {
                self.visit(path, &mut seen, &mut order);
            }
        }
        Ok(order)
    }

    /// Puts a module behind what it needs. `modules.dep` names everything needed, the last first; the walk is our own all
    /// the same, so that no order is taken on trust.
    fn visit(&self, path: &str, seen: &mut HashSet<String>, order: &mut Vec<String>) {
        if !seen.insert(path.to_owned()) {
            return;
        }
        if let Some((_, needs)) = self.modules.get(&name_of(path)) {
            for need in needs.iter().rev() {
                self.visit(need, seen, order);
            }
        }
        order.push(path.to_owned());
    }
}

/// A module's name: its file's, without endings, and with `_` for `-`, as the kernel has it.
pub(crate) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// The content of a module, plain: a kernel need not know how it was compressed.
pub(crate) fn content(tools: &Tools<'_>, folder: &Path, path: &str) -> Result<Vec<u8>> {
    let place = folder.join(path);
    let opened = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(Error::at(folder))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file =
        rustix::fs::openat2(&opened, path, flags, Mode::empty(), resolve).map_err(Error::at(&place))?;
    let file = std::fs::File::from(file);
    let mut plain = Vec::new();
    let limited = |reader: &mut dyn std::io::Read, plain: &mut Vec<u8>| {
        reader.take(MODULE_BYTES_MAX).read_to_end(plain).map_err(Error::at(&place))
    };
    match path.rsplit('.').next() {
        Some("xz") => {
            // By way of a name of ours: the path is the kernel package's.
            let copy = tools.folder().join("module.xz");
            fs_err::copy(&place, &copy).map_err(Error::at(&copy))?;
            plain = tools.run(XZ, &["--decompress", "--stdout", "module.xz"])?;
            fs_err::remove_file(&copy).map_err(Error::at(&copy))?;
        }
        Some("zst") => {
            let mut decoder = zstd::Decoder::new(file).map_err(Error::at(&place))?;
            limited(&mut decoder, &mut plain)?;
        }
        Some("gz") => drop(limited(&mut flate2::read::GzDecoder::new(file), &mut plain)?),
        _ => drop(limited(&mut { file }, &mut plain)?),
    }
    if !plain.starts_with(b"\x7fELF") {
        return Err(Error::Source(format!("{} is no kernel module", escaped(path.as_bytes()))));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci_modern_dev.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_pci_modern_dev.ko kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
";

    #[test]
    fn every_module_comes_after_what_it_needs() {
        let list = ModuleList::parse(DEPENDENCIES, "kernel/fs/ext4/ext4.ko\n");
        let order = list.load_order().unwrap();
        let place = |name: &str| order.iter().position(|path| name_of(path) == name).expect(name);
        for (first, then) in [
            ("virtio", "virtio_ring"),
            ("virtio_ring", "virtio_pci"),
            ("virtio_pci_modern_dev", "virtio_pci"),
            ("virtio_ring", "virtio_blk"),
            ("failover", "net_failover"),
            ("net_failover", "virtio_net"),
            ("virtio_pci", "virtio_rng"),
        ] {
            assert!(place(first) < place(then), "{first} after {then} in {order:?}");
        }
        assert_eq!(order.len(), 9, "each once: {order:?}");
    }

    #[test]
    fn a_kernel_without_what_is_needed_is_refused_by_name() {
        let error = ModuleList::parse(DEPENDENCIES, "").load_order().unwrap_err().to_string();
        assert!(error.contains("no ext4"), "{error}");
    }

    #[test]
    fn modules_that_need_each_other_come_to_an_end() {
        let list = "kernel/a/virtio_pci.ko: kernel/a/virtio_blk.ko\nkernel/a/virtio_blk.ko: kernel/a/virtio_pci.ko\n";
        let list = ModuleList::parse(list, "virtio_net.ko\next4.ko\n");
        assert_eq!(list.load_order().unwrap().len(), 2);
    }
}
