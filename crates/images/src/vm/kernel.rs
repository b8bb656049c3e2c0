//! The kernel of a virtual machine and the modules it starts with: the tree's own, a given one, or Debian's for clouds.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use super::{
    KernelChoice,
    modules::{self, ModuleList},
    tool::{APT_CACHE, APT_GET, DEPMOD, DPKG_DEB, Tools},
};
use crate::{
    Error, Result,
    root::{Limits, escaped},
    store,
};

/// Most bytes of a kernel.
const KERNEL_BYTES_MAX: u64 = 256 << 20;

/// Longest name of a package or release.
const NAME_BYTES_MAX: usize = 128;

/// A kernel in the scratch folder, with its modules.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) file: PathBuf,
    /// What it calls itself.
    pub(crate) release: Option<String>,
    /// Where it came from, for the manifest.
    pub(crate) origin: String,
    /// Its modules, in a folder named after its release.
    pub(crate) modules: Option<PathBuf>,
    /// Where they came from in the tree, and go back to.
    home: Option<PathBuf>,
}

/// A module as an initial file system holds it.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

impl Kernel {
    /// A kernel that was read out of a disk, with those of its modules that a machine starts with.
    pub(crate) fn of_disk(file: PathBuf, release: String, modules: PathBuf) -> Self {
        Self { file, release: Some(release), origin: "disk".to_owned(), modules: Some(modules), home: None }
    }

    /// The modules that a machine starts with, in the order in which they are loaded. None of a kernel that came without:
    /// everything is then taken to be built in.
    pub(crate) fn first_modules(&self, tools: &Tools<'_>) -> Result<Vec<Module>> {
        let Some(folder) = &self.modules else { return Ok(Vec::new()) };
        let mut first = Vec::new();
        for path in ModuleList::read(folder)?.load_order()? {
            let content = modules::content(tools, folder, &path)?;
            first.push(Module { name: modules::name_of(&path), content });
        }
        Ok(first)
    }

    /// Puts all modules into a tree: back where they were, or, if something there can load them, where it looks.
    pub(crate) fn install(&self, tree: &Path) -> Result<()> {
        let Some(folder) = &self.modules else { return Ok(()) };
        let home = match &self.home {
            Some(home) => home.clone(),
            None => {
                let loads = ["sbin/modprobe", "usr/sbin/modprobe", "bin/kmod", "usr/bin/kmod"];
                if !loads.iter().any(|program| lies_in(tree, program)) {
                    return Ok(());
                }
                let libraries = ["lib/.", "usr/lib/."].into_iter().find(|libraries| lies_in(tree, libraries));
                let Some(libraries) = libraries else { return Ok(()) };
                let place = tree.join(libraries).join("modules");
                match fs_err::create_dir(&place) {
                    Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(Error::at(&place)(error));
                    }
                    _ if !plain_directory(&place) => return Ok(()),
                    _ => place.join(folder.file_name().unwrap_or_default()),
                }
            }
        };
        if plain_directory(&home) {
            return Ok(());
        }
        fs_err::rename(folder, &home).map_err(Error::at(&home))
    }
}

/// Whether something has this name, symbolic links of the tree's own not followed: those of a merged `/usr` name
/// directories, and both of their names are tried.
fn lies_in(tree: &Path, path: &str) -> bool {
    let mut place = tree.to_path_buf();
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        place.push(name);
        if names.peek().is_some() && !plain_directory(&place) {
            return false;
        }
    }
    std::fs::symlink_metadata(&place).is_ok()
}

fn plain_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// The kernel that was asked for. Modules are taken out of the tree until [`Kernel::install`].
pub(crate) fn choose(
    tools: &Tools<'_>,
    choice: &KernelChoice,
    modules: Option<&Path>,
    tree: Option<&Path>,
) -> Result<Kernel> {
    let stage = tools.directory("kernel")?;
    let stage_modules = stage.join("lib/modules");
    fs_err::create_dir_all(&stage_modules).map_err(Error::at(&stage_modules))?;
    let mut kernel = match choice {
        KernelChoice::Automatic => match tree.map(own).transpose()?.flatten() {
            Some((file, release, home)) => {
                let copy = copied(tools, &file)?;
                Kernel {
                    file: copy,
                    release: Some(release),
                    origin: "tree".to_owned(),
                    modules: None,
                    home: Some(home),
                }
            }
            None => downloaded(tools, &default_package()?)?,
        },
        KernelChoice::Package(package) => downloaded(tools, package)?,
        KernelChoice::File(file) if file.extension().is_some_and(|ending| ending == "deb") => {
            unpacked(tools, file, "package".to_owned())?
        }
        KernelChoice::File(file) => {
            let copy = copied(tools, file)?;
            let release = release_of(&copy)?;
            let home =
                release.as_deref().and_then(|release| tree.and_then(|tree| own_modules(tree, release)));
            Kernel { file: copy, release, origin: "file".to_owned(), modules: None, home }
        }
    };
    if let Some(given) = modules {
        let (folder, release) = given_modules(given)?;
        let place = stage_modules.join(&release);
        fs_err::create_dir(&place).map_err(Error::at(&place))?;
        crate::import::fill(&folder, &place, tools.folder(), Limits::default(), &mut |_, _| {})?;
        (kernel.modules, kernel.home) = (Some(place), None);
        kernel.release.get_or_insert(release);
    } else if let Some(home) = &kernel.home {
        let place = stage_modules.join(home.file_name().unwrap_or_default());
        fs_err::rename(home, &place).map_err(Error::at(&place))?;
        kernel.modules = Some(place);
    }
    if let Some(folder) = &kernel.modules
        && !store::exists(&folder.join("modules.dep"))?
    {
        let release = folder.file_name().unwrap_or_default();
        tools.run(DEPMOD, &["--basedir".as_ref(), "kernel".as_ref(), release])?;
    }
    Ok(kernel)
}

/// The newest kernel of a tree whose modules it has too: file, release, folder of modules.
fn own(tree: &Path) -> Result<Option<(PathBuf, String, PathBuf)>> {
    let boot = tree.join("boot");
    if !plain_directory(&boot) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for name in store::entries(&boot)? {
        let Some(release) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")).map(str::to_owned)
        else {
            continue;
        };
        let file = boot.join(&name);
        if std::fs::symlink_metadata(&file).is_ok_and(|file| file.is_file())
            && let Some(home) = own_modules(tree, &release)
        {
            found.push((file, release, home));
        }
    }
    Ok(found.into_iter().max_by_key(|(_, release, _)| version_key(release)))
}

fn own_modules(tree: &Path, release: &str) -> Option<PathBuf> {
    let folders = [&["usr", "lib", "modules"][..], &["lib", "modules"]];
    folders.into_iter().find_map(|names| {
        let mut place = tree.to_path_buf();
        for name in names.iter().chain([&release]) {
            place.push(name);
            if !plain_directory(&place) {
                return None;
            }
        }
        Some(place)
    })
}

/// A release so that the newer one is the greater: numbers by their value.
pub(crate) fn version_key(release: &str) -> Vec<(u64, String)> {
    release
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .map(|part| {
            let digits = part.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(part.len());
            (part[..digits].parse().unwrap_or(0), part[digits..].to_owned())
        })
        .collect()
}

/// Folder and release of modules that were named by hand: the folder itself, or a root with one release in it.
fn given_modules(given: &Path) -> Result<(PathBuf, String)> {
    let named = |folder: &Path| Some(folder.file_name()?.to_str()?.to_owned());
    let refused = || {
        Error::Source(format!(
            "{} holds no kernel's modules: it should be lib/modules/RELEASE, or a folder with one such in it",
            given.display()
        ))
    };
    let given = fs_err::canonicalize(given).map_err(Error::at(given))?;
    if given.join("kernel").is_dir() {
        let release = named(&given).ok_or_else(refused)?;
        return Ok((given, release));
    }
    only_release(&given)?.ok_or_else(refused)
}

/// The only release whose modules lie in a root.
fn only_release(root: &Path) -> Result<Option<(PathBuf, String)>> {
    for folder in ["usr/lib/modules", "lib/modules"] {
        let folder = root.join(folder);
        if !plain_directory(&folder) {
            continue;
        }
        let names = store::entries(&folder)?;
        if let [name] = names.as_slice()
            && let Some(release) = name.to_str()
        {
            return Ok(Some((folder.join(name), release.to_owned())));
        }
    }
    Ok(None)
}

/// The kernel's package for virtual machines on this architecture.
fn default_package() -> Result<String> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("linux-image-cloud-amd64".to_owned()),
        "aarch64" => Ok("linux-image-cloud-arm64".to_owned()),
        _ => Err(Error::Source(
            "no kernel is known for this architecture: give one with --kernel FILE".to_owned(),
        )),
    }
}

/// Fetches a package of Debian and takes the kernel out of it.
fn downloaded(tools: &Tools<'_>, package: &str) -> Result<Kernel> {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte);
    if package.is_empty()
        || package.len() > NAME_BYTES_MAX
        || package.starts_with('-')
        || !package.bytes().all(letters)
    {
        return Err(Error::Source(format!("{} is no name of a package", escaped(package.as_bytes()))));
    }
    if APT_GET.find().is_none() {
        return Err(Error::Source(
            "the source has no kernel, and this host has no apt to fetch one: give one with --kernel FILE"
                .to_owned(),
        ));
    }
    let advised = |error| match error {
        Error::Tool { tool, problem } => Error::Tool {
            tool,
            problem: format!(
                "{problem}; `apt-get update` renews the list of packages, --kernel FILE needs none"
            ),
        },
        error => error,
    };
    // A package that only names the newest one has it among what it depends on.
    let depends = tools.run(APT_CACHE, &["depends", "--", package]).map_err(advised)?;
    let depends = String::from_utf8_lossy(&depends).into_owned();
    let real = depends.lines().find_map(|line| {
        let name = line.trim().strip_prefix("Depends: ")?;
        let rest = name.strip_prefix("linux-image-")?;
        (rest.starts_with(|letter: char| letter.is_ascii_digit()) && name.bytes().all(letters))
            .then_some(name)
    });
    let real = real.unwrap_or(package);
    // The folder is nobody's but root's, so apt must fetch as root.
    tools.run(APT_GET, &["-q", "-o", "APT::Sandbox::User=root", "download", "--", real]).map_err(advised)?;
    let names = store::entries(tools.folder())?;
    let found = names.iter().filter_map(|name| name.to_str()).find(|name| {
        name.strip_prefix(real).is_some_and(|rest| rest.starts_with('_')) && name.ends_with(".deb")
    });
    let found = found.ok_or_else(|| Error::Source(format!("apt fetched no file for the package {real}")))?;
    let version = found.split('_').nth(1).unwrap_or_default();
    unpacked(tools, &tools.folder().join(found), format!("{real} {version}"))
}

/// Takes the kernel out of a package's file.
fn unpacked(tools: &Tools<'_>, package: &Path, origin: String) -> Result<Kernel> {
    let package = fs_err::canonicalize(package).map_err(Error::at(package))?;
    let whole = tools.directory("package")?;
    tools.run(DPKG_DEB, &["--extract".as_ref(), package.as_os_str(), "package".as_ref()])?;
    let refused = |what: &str| Error::Source(format!("the package of the kernel has no {what}"));
    let (modules, release) = only_release(&whole)?.ok_or_else(|| refused("modules"))?;
    let file = whole.join("boot").join(format!("vmlinuz-{release}"));
    if !std::fs::symlink_metadata(&file).is_ok_and(|file| file.is_file()) {
        return Err(refused("kernel for its modules"));
    }
    let place = tools.folder().join("kernel/lib/modules").join(&release);
    fs_err::rename(&modules, &place).map_err(Error::at(&place))?;
    let file = copied(tools, &file)?;
    fs_err::remove_dir_all(&whole).map_err(Error::at(&whole))?;
    Ok(Kernel { file, release: Some(release), origin, modules: Some(place), home: None })
}

/// Copies a kernel into the scratch folder.
fn copied(tools: &Tools<'_>, kernel: &Path) -> Result<PathBuf> {
    let copy = tools.folder().join("vmlinuz");
    let file = File::open(kernel).map_err(Error::at(kernel))?;
    let mut into = File::create_new(&copy).map_err(Error::at(&copy))?;
    let length = std::io::copy(&mut file.take(KERNEL_BYTES_MAX + 1), &mut into).map_err(Error::at(&copy))?;
    crate::root::within("a kernel", length, KERNEL_BYTES_MAX)?;
    if length == 0 {
        return Err(Error::Source(format!("{} is empty, so it is no kernel", kernel.display())));
    }
    Ok(copy)
}

/// What a kernel of x86 says it is, by the header its loader reads.
fn release_of(kernel: &Path) -> Result<Option<String>> {
    const MAGIC_AT: u64 = 0x202;
    const VERSION_AT: u64 = 0x20e;
    let file = File::open(kernel).map_err(Error::at(kernel))?;
    let (mut magic, mut place) = ([0; 4], [0; 2]);
    if file.read_exact_at(&mut magic, MAGIC_AT).is_err() || magic != *b"HdrS" {
        return Ok(None);
    }
    file.read_exact_at(&mut place, VERSION_AT).map_err(Error::at(kernel))?;
    let mut text = [0; NAME_BYTES_MAX];
    let start = u64::from(u16::from_le_bytes(place)) + 0x200;
    let Ok(count) = file.read_at(&mut text, start) else { return Ok(None) };
    let text = &text[..count];
    let end = text.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(0);
    let letters = |byte: &u8| byte.is_ascii_alphanumeric() || b"+.-_~".contains(byte);
    let release = str::from_utf8(&text[..end])
        .ok()
        .filter(|text| !text.is_empty() && text.as_bytes().iter().all(letters));
    Ok(release.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_releases_are_greater() {
        let mut releases = ["6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "5.10.0-99-amd64", "6.12.1"];
        releases.sort_by_key(|release| version_key(release));
        assert_eq!(releases, ["5.10.0-99-amd64", "6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.1"]);
    }

    #[test]
    fn a_kernel_says_what_it_is() {
        let mut bytes = vec![0; 0x1000];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x20e..0x210].copy_from_slice(&0x400_u16.to_le_bytes());
        bytes[0x600..0x610].copy_from_slice(b"6.1.0-7 (someone");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(release_of(file.path()).unwrap().as_deref(), Some("6.1.0-7"));
        std::fs::write(file.path(), b"short").unwrap();
        assert_eq!(release_of(file.path()).unwrap(), None);
    }

    #[test]
    fn a_trees_kernel_is_one_with_modules() {
        let tree = tempfile::tempdir().unwrap();
        for folder in ["boot", "usr/lib/modules/6.1.0-9", "usr/lib/modules/6.1.0-10"] {
            std::fs::create_dir_all(tree.path().join(folder)).unwrap();
        }
        for release in ["6.1.0-9", "6.1.0-10", "9.9"] {
            std::fs::write(tree.path().join(format!("boot/vmlinuz-{release}")), "kernel").unwrap();
        }
        let (_, release, home) = own(tree.path()).unwrap().expect("a kernel");
        assert_eq!(release, "6.1.0-10");
        assert_eq!(home, tree.path().join("usr/lib/modules/6.1.0-10"));
        std::fs::remove_dir_all(tree.path().join("usr")).unwrap();
        std::os::unix::fs::symlink("/usr", tree.path().join("usr")).unwrap();
        assert!(own(tree.path()).unwrap().is_none(), "a link out of the tree is not followed");
    }
}
