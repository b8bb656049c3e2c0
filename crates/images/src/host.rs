//! The built-in image `host`: a read-only view of this host's programs.
//!
//! `/usr` is shown as it is; where the host has real `/bin`, `/lib` and so on, these too. What programs need of `/etc`
//! is little and public, so it is copied into the scaffold instead of bound: that costs a sandbox no mounts, and
//! a sandbox of its own may change it. Accounts are made up; nothing of the host's homes, keys, shadow files or other
//! configuration is in it. A copy that no longer matches the host is made anew, under another path, so that sandboxes
//! which stand on the old one keep it.

use std::{
    ffi::OsStr,
    io::Read as _,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    Error, ImageConfig, Result, Tree, TreeBind,
    digest::{hexadecimal, summarize},
    root::{Attributes, EntryPath, Limits, Root},
    scaffold::{self, Accounts, SCAFFOLD_VERSION},
    store::{self, ChangeLock, Store},
};

/// How long a view is taken to match the host without looking again.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How many former views are kept for sandboxes that stand on them.
const FORMER_VIEWS_MAX: usize = 64;

/// Most bytes copied from the host's `/etc`.
const COPIED_BYTES_MAX: u64 = 32 << 20;

/// Most files and links copied from the host's `/etc`.
const COPIED_ENTRIES_MAX: u64 = 20_000;

/// Deepest folder copied from the host's `/etc`.
const COPIED_DEPTH_MAX: usize = 8;

/// Top directories that are links into `/usr` on most hosts and directories of their own on some.
const PROGRAM_DIRS: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// What of `/etc` is copied if it is there. Public by nature, and readable for everybody, or it is left out.
const PUBLIC_ETC: &[&str] = &[
    "alternatives",
    "bindresvport.blacklist",
    "ca-certificates.conf",
    "debian_version",
    "ethertypes",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "localtime",
    "lsb-release",
    "magic",
    "magic.mime",
    "mime.types",
    "netconfig",
    "networks",
    "os-release",
    "perl",
    "pki/ca-trust/extracted",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "protocols",
    "rpc",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
];

/// Beginnings of further names that are copied: settings of language runtimes, one folder for each version.
const PUBLIC_ETC_PREFIXES: &[&str] = &["java-", "python3"];

/// Directories of the view that stay empty, with their modes.
const EMPTY_DIRS: &[(&str, u32)] = &[
    ("media", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("srv", 0o755),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// Files of the view that are the same on every host.
const FIXED_FILES: &[(&str, &str)] = &[
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n",
    ),
    (
        "etc/profile",
        "export PATH=\"${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}\"\n\
         if [ \"${PS1-}\" ]; then\n  if [ \"$(id -u)\" -eq 0 ]; then PS1='# '; else PS1='$ '; fi\nfi\n",
    ),
    ("etc/bash.bashrc", "[ -z \"${PS1-}\" ] || PS1='\\u@\\h:\\w\\$ '\n"),
    ("etc/shells", "/bin/sh\n/bin/bash\n"),
];

/// The view as it is now, and what keeps it right.
#[derive(Debug)]
pub(crate) struct HostView {
    /// `/`, except in tests.
    host: PathBuf,
    tree: Tree,
    created_at: String,
    stamp: String,
    checked: Instant,
}

/// Which view holds.
#[derive(Debug, Serialize, Deserialize)]
struct Current {
    view: String,
    stamp: String,
    created_at: String,
}

/// What a view has besides its scaffold.
#[derive(Debug, Serialize, Deserialize)]
struct ViewRecord {
    binds: Vec<TreeBind>,
}

impl HostView {
    /// Takes the view that is there if it matches the host, or makes one.
    pub(crate) fn open(store: &Store, host: &Path) -> Result<Self> {
        let stamp = stamp(host);
        if let Some(current) = store::read_record::<Current>(&store.host().join("current.json"))?
            && current.stamp == stamp
            && let Some(view) =
                store::read_record::<ViewRecord>(&store.host().join(&current.view).join("view.json"))?
        {
            return Ok(Self::new(store, host, current, view));
        }
        Self::make(store, host, stamp, None)
    }

    /// The view, made anew if the host has changed.
    pub(crate) fn tree(&mut self, store: &Store) -> Tree {
        if self.checked.elapsed() >= CHECK_INTERVAL {
            let stamp = stamp(&self.host);
            self.checked = Instant::now();
            if stamp != self.stamp {
                match Self::make(store, &self.host, stamp, Some(self.created_at.clone())) {
                    Ok(view) => *self = view,
                    // The view that is there still works, if perhaps without the newest of the host's programs.
                    Err(error) => tracing::warn!(%error, "image host is not brought up to date"),
                }
            }
        }
        self.tree.clone()
    }

    /// Makes the next call of [`Self::tree`] look at the host.
    #[cfg(test)]
    pub(crate) fn forget_check(&mut self) {
        self.checked =
            Instant::now().checked_sub(CHECK_INTERVAL).expect("the clock began more than a second ago");
    }

    /// When this host's view was first made.
    pub(crate) fn created_at(&self) -> &str {
        &self.created_at
    }

    fn new(store: &Store, host: &Path, current: Current, view: ViewRecord) -> Self {
        Self {
            host: host.to_path_buf(),
            tree: Tree {
                layers: vec![store.host().join(&current.view).join("scaffold")],
                binds: view.binds,
                config: ImageConfig::default(),
                disk: None,
            },
            created_at: current.created_at,
            stamp: current.stamp,
            checked: Instant::now(),
        }
    }

    fn make(store: &Store, host: &Path, stamp: String, created_at: Option<String>) -> Result<Self> {
        let scratch = store.scratch(&store.lock()?)?;
        let whole = scratch.directory("view")?;
        let directory = scratch.directory("view/scaffold")?;
        let binds = build(host, &directory)?;
        store::write_new(&whole.join("view.json"), &ViewRecord { binds: binds.clone() })?;
        let mut identity = Sha256::new();
        identity.update(summarize(&directory)?.digest);
        for bind in &binds {
            identity.update(bind.source.as_os_str().as_bytes());
            identity.update([0]);
            identity.update(bind.target.as_os_str().as_bytes());
            identity.update([0]);
        }
        let view = hexadecimal(&identity.finalize());
        scratch.sync()?;
        let lock = store.lock()?;
        let place = store.host().join(&view);
        if !store::exists(&place.join("view.json"))? {
            store::publish(&whole, &place)?;
        }
        let before = store::read_record::<Current>(&store.host().join("current.json")).unwrap_or_default();
        let created_at = created_at.or(before.map(|before| before.created_at)).unwrap_or_else(now);
        let current = Current { view, stamp, created_at };
        store.write_record(&store.host().join("current.json"), &current, &lock)?;
        let former = former_views(store, &current.view, &lock)?;
        drop(lock);
        drop(former);
        Ok(Self::new(store, host, current, ViewRecord { binds }))
    }
}

/// The time now as records have it.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Takes the oldest views away, beyond those that are kept.
fn former_views(store: &Store, current: &str, lock: &ChangeLock) -> Result<Vec<store::Scratch>> {
    let mut views = Vec::new();
    for name in store::entries(&store.host())? {
        let path = store.host().join(&name);
        if name == OsStr::new(current) || !path.is_dir() {
            continue;
        }
        let modified =
            fs_err::metadata(&path).and_then(|metadata| metadata.modified()).map_err(Error::at(&path))?;
        views.push((modified, path));
    }
    views.sort();
    let surplus = views.len().saturating_sub(FORMER_VIEWS_MAX);
    let mut removed = Vec::new();
    for (_, path) in views.into_iter().take(surplus) {
        removed.extend(store.take_away(&path, lock)?);
    }
    Ok(removed)
}

/// A number that changes when the host's view may have to. A handful of `stat` calls.
fn stamp(host: &Path) -> String {
    let mut hasher = Sha256::new();
    hasher.update(SCAFFOLD_VERSION.to_le_bytes());
    let mut look = |path: PathBuf| {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            hasher.update([0]);
            return;
        };
        hasher.update([1]);
        hasher.update(metadata.dev().to_le_bytes());
        for number in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
            hasher.update(number.to_le_bytes());
        }
        hasher.update(metadata.ino().to_le_bytes());
    };
    for name in PROGRAM_DIRS.iter().chain(&["usr"]) {
        // A link's own time says that it was replaced; the times of what it leads to are of no interest.
        if host.join(name).is_symlink() {
            look(host.join(name));
        }
    }
    // The times of a folder tell of names that came and went in it, as a package manager changes files.
    let etc = host.join("etc");
    for name in PUBLIC_ETC {
        look(etc.join(name));
    }
    look(etc);
    hexadecimal(&hasher.finalize())
}

/// Fills the scaffold of the view and names what is bound over it.
fn build(host: &Path, scaffold: &Path) -> Result<Vec<TreeBind>> {
    let mut root = Root::open(scaffold, Limits::default())?;
    scaffold::directories(&mut root)?;
    for (path, mode) in EMPTY_DIRS {
        root.directory(&EntryPath::parse(path.as_bytes())?, &Attributes::of_root(*mode))?;
    }
    let mut binds = Vec::new();
    let usr = host.join("usr");
    let usr = fs_err::canonicalize(&usr).map_err(Error::at(&usr))?;
    binds.push(TreeBind { source: usr.clone(), target: PathBuf::from("/usr") });
    for name in PROGRAM_DIRS {
        let path = host.join(name);
        let entry = EntryPath::parse(name.as_bytes())?;
        let Ok(resolved) = fs_err::canonicalize(&path) else { continue };
        if let Ok(below) = resolved.strip_prefix(&usr) {
            let target = Path::new("usr").join(below);
            root.symlink(&entry, target.as_os_str().as_bytes(), &Attributes::of_root(0o777))?;
        } else if resolved.is_dir() {
            root.directory(&entry, &Attributes::of_root(0o755))?;
            binds.push(TreeBind { source: resolved, target: Path::new("/").join(name) });
        }
    }
    let shell = if host.join("usr/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    let passwd = format!(
        "root:x:0:0:root:/root:{shell}\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    );
    scaffold::accounts(&mut root, &Accounts::merged(Some(passwd.as_bytes()), None, shell))?;
    scaffold::hosts(&mut root)?;
    for (path, content) in FIXED_FILES {
        root.file(&EntryPath::parse(path.as_bytes())?, content.as_bytes(), &Attributes::of_root(0o644))?;
    }
    let mounts = EntryPath::parse(b"etc/mtab")?;
    root.symlink(&mounts, b"/proc/self/mounts", &Attributes::of_root(0o777))?;
    copy_public(host, &usr, &mut root)?;
    root.finish()?;
    Ok(binds)
}

/// Copies what of the host's `/etc` programs need.
fn copy_public(host: &Path, usr: &Path, root: &mut Root) -> Result<()> {
    let etc = host.join("etc");
    let mut names: Vec<PathBuf> = PUBLIC_ETC.iter().map(PathBuf::from).collect();
    if etc.is_dir() {
        for name in store::entries(&etc)? {
            if PUBLIC_ETC_PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
                names.push(name.into());
            }
        }
    }
    names.sort();
    let mut copy = Copy { root, bytes: 0, entries: 0 };
    for name in names {
        let path = etc.join(&name);
        let entry = EntryPath::parse(b"etc")?.join(name.as_os_str().as_bytes())?;
        let Ok(resolved) = fs_err::canonicalize(&path) else { continue };
        match resolved.strip_prefix(usr) {
            Ok(below) if path.is_symlink() => {
                let target = Path::new("/usr").join(below);
                copy.root.symlink(&entry, target.as_os_str().as_bytes(), &Attributes::of_root(0o777))?;
            }
            _ if everybody_reaches(&resolved, host) => copy.any(&resolved, &entry, 0)?,
            _ => {}
        }
    }
    Ok(())
}

/// Whether every directory on the way lets everybody through.
fn everybody_reaches(path: &Path, host: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .take_while(|ancestor| *ancestor != host)
        .all(|ancestor| std::fs::metadata(ancestor).is_ok_and(|metadata| metadata.mode() & 0o001 != 0))
}

/// Copying from the host, counted.
struct Copy<'a> {
    root: &'a mut Root,
    bytes: u64,
    entries: u64,
}

impl Copy<'_> {
    /// Copies what everybody on the host may read; links stay links. What is too much or changes meanwhile is left out.
    fn any(&mut self, source: &Path, entry: &EntryPath, depth: usize) -> Result<()> {
        self.entries += 1;
        if depth > COPIED_DEPTH_MAX || self.entries > COPIED_ENTRIES_MAX {
            tracing::debug!(path = %source.display(), "left out of the image host: too much");
            return Ok(());
        }
        let Ok(metadata) = std::fs::symlink_metadata(source) else { return Ok(()) };
        if metadata.is_symlink() {
            let Ok(target) = std::fs::read_link(source) else { return Ok(()) };
            self.root.symlink(entry, target.as_os_str().as_bytes(), &Attributes::of_root(0o777))
        } else if metadata.is_dir() && metadata.mode() & 0o005 == 0o005 {
            self.root.directory(entry, &Attributes::of_root(0o755))?;
            let Ok(mut names) = store::entries(source) else { return Ok(()) };
            names.sort();
            for name in names {
                self.any(&source.join(&name), &entry.join(name.as_bytes())?, depth + 1)?;
            }
            Ok(())
        } else if metadata.is_file() {
            self.file(source, entry)
        } else {
            Ok(())
        }
    }

    fn file(&mut self, source: &Path, entry: &EntryPath) -> Result<()> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
        let opened =
            std::fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(source);
        let Ok(file) = opened else { return Ok(()) };
        let metadata = file.metadata().map_err(Error::at(source))?;
        if !metadata.is_file() || metadata.mode() & 0o004 == 0 {
            return Ok(());
        }
        let left = COPIED_BYTES_MAX - self.bytes;
        if metadata.len() > left {
            tracing::debug!(path = %source.display(), "left out of the image host: too large");
            return Ok(());
        }
        let mut content = Vec::new();
        file.take(left).read_to_end(&mut content).map_err(Error::at(source))?;
        self.bytes += content.len() as u64;
        let mode = 0o644 | (metadata.mode() & 0o111);
        self.root.file(entry, &content, &Attributes::of_root(mode))
    }
}
