//! The topmost layer of every image: the directories that an engine mounts on, as real directories, and the accounts.
//!
//! A directory of the scaffold merges with the image's own where that is a directory too, and hides it where it is
//! anything else; so no symbolic link of an image ever stands at a mount point.

use std::{io::Read as _, path::Path};

use crate::{
    Account, Error, Result, SCAFFOLD_DIRS, WORKLOAD_HOME, WORKLOAD_ID, WORKLOAD_NAME,
    merged::{Merged, Node},
    root::{Attributes, EntryPath, Limits, Root},
};

/// Raised when scaffolds are to be made anew for images that are there already.
pub(crate) const SCAFFOLD_VERSION: u32 = 1;

/// Largest account file of an image that is read; a larger one is as none.
const ACCOUNT_BYTES_MAX: usize = 1 << 20;

/// Login name of the workload's user if the image gives its usual one to another id.
const OTHER_WORKLOAD_NAME: &str = "sandbox-1000";

/// Addresses that every program expects to know.
const HOSTS: &[u8] = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// The accounts of an image without any.
const DEFAULT_PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";

/// The groups of an image without any. Terminals belong to group 5 in every sandbox.
const DEFAULT_GROUP: &[u8] = b"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";

/// What a scaffold says about who is who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accounts {
    /// `/etc/passwd` with the workload's user.
    pub(crate) passwd: Vec<u8>,
    /// `/etc/group` with the workload's group.
    pub(crate) group: Vec<u8>,
}

impl Accounts {
    /// An image's own accounts, or the least there must be, with the workload's added.
    pub(crate) fn merged(passwd: Option<&[u8]>, group: Option<&[u8]>, shell: &str) -> Self {
        with_user(passwd, group, (WORKLOAD_NAME, WORKLOAD_HOME), shell)
    }

    /// The accounts for an image.
    fn of_image(image: &Merged) -> Result<Self> {
        let passwd = read_inside(image, "etc/passwd")?;
        let group = read_inside(image, "etc/group")?;
        let shell = if is_file(image, "bin/bash")? { "/bin/bash" } else { "/bin/sh" };
        Ok(Self::merged(non_empty(passwd.as_ref()), non_empty(group.as_ref()), shell))
    }
}

/// The accounts of a tree, or the least there must be, with a user of this name and home added who has the id of the
/// workload.
pub(crate) fn with_user(
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
    (name, home): (&str, &str),
    shell: &str,
) -> Accounts {
    let id = WORKLOAD_ID;
    let passwd = with_entry(passwd.unwrap_or(DEFAULT_PASSWD), name, |name| {
        // The star: no password opens it, and no entry of a shadow file is missed.
        format!("{name}:*:{id}:{id}::{home}:{shell}\n")
    });
    let group = with_entry(group.unwrap_or(DEFAULT_GROUP), name, |name| format!("{name}:x:{id}:\n"));
    Accounts { passwd, group }
}

/// Makes the scaffold of an image in the empty directory `scaffold`. `implied` are directories that its layers hold
/// without saying what they are like, with what layers below say.
pub(crate) fn build(image: &Merged, implied: &[(String, Attributes)], scaffold: &Path) -> Result<()> {
    let mut root = Root::open(scaffold, Limits::default())?;
    directories(&mut root)?;
    for (path, attributes) in implied {
        if SCAFFOLD_DIRS.iter().all(|(scaffold, _)| scaffold != path) {
            root.directory(&EntryPath::parse(path.as_bytes())?, attributes)?;
        }
    }
    accounts(&mut root, &Accounts::of_image(image)?)?;
    // Exported containers have an empty file here, which their runtime filled.
    if non_empty(read_inside(image, "etc/hosts")?.as_ref()).is_none() {
        hosts(&mut root)?;
    }
    root.finish()
}

/// The account that an image's configuration names, if it has it.
pub(crate) fn account(image: &Merged, user: &str) -> Result<Option<Account>> {
    let passwd = read_inside(image, "etc/passwd")?;
    let group = read_inside(image, "etc/group")?;
    let bytes = |file: &Option<Contents>| non_empty(file.as_ref()).unwrap_or_default().to_vec();
    Ok(Account::find(user, &bytes(&passwd), &bytes(&group)))
}

/// Makes the directories that every scaffold has.
pub(crate) fn directories(root: &mut Root) -> Result<()> {
    for (path, mode) in SCAFFOLD_DIRS {
        let owner = if matches!(*path, "home/sandbox" | "workspace") { WORKLOAD_ID } else { 0 };
        root.directory(&EntryPath::parse(path.as_bytes())?, &Attributes::owned(*mode, owner))?;
    }
    Ok(())
}

/// Writes the account files.
pub(crate) fn accounts(root: &mut Root, accounts: &Accounts) -> Result<()> {
    let attributes = Attributes::of_root(0o644);
    root.file(&EntryPath::parse(b"etc/passwd")?, &accounts.passwd, &attributes)?;
    root.file(&EntryPath::parse(b"etc/group")?, &accounts.group, &attributes)
}

/// Writes the names of the loopback addresses.
pub(crate) fn hosts(root: &mut Root) -> Result<()> {
    root.file(&EntryPath::parse(b"etc/hosts")?, HOSTS, &Attributes::of_root(0o644))
}

/// An account file with the line of the workload added, unless its id has one already.
fn with_entry(file: &[u8], wanted: &str, line: impl Fn(&str) -> String) -> Vec<u8> {
    let mut name_is_taken = false;
    for entry in file.split(|byte| *byte == b'\n') {
        let mut fields = entry.split(|byte| *byte == b':');
        let name = fields.next().unwrap_or_default();
        let id = fields.nth(1).and_then(|id| str::from_utf8(id).ok()).and_then(|id| id.parse::<u32>().ok());
        if id == Some(WORKLOAD_ID) {
            return file.to_vec();
        }
        name_is_taken |= name == wanted.as_bytes();
    }
    let mut merged = file.to_vec();
    if merged.last().is_some_and(|last| *last != b'\n') {
        merged.push(b'\n');
    }
    let name = if name_is_taken { OTHER_WORKLOAD_NAME } else { wanted };
    merged.extend_from_slice(line(name).as_bytes());
    merged
}

/// A small file of an image. `None` if it is not there or is no regular file.
fn read_inside(image: &Merged, path: &str) -> Result<Option<Contents>> {
    let Some(Node::File(file, stat)) = image.find(path)? else { return Ok(None) };
    let length = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    if length > ACCOUNT_BYTES_MAX {
        return Ok(Some(Contents::TooLong));
    }
    let mut content = Vec::with_capacity(length);
    std::fs::File::from(file)
        .take(ACCOUNT_BYTES_MAX as u64)
        .read_to_end(&mut content)
        .map_err(Error::at(path))?;
    Ok(Some(Contents::Whole(content)))
}

fn is_file(image: &Merged, path: &str) -> Result<bool> {
    Ok(matches!(image.find(path)?, Some(Node::File(..))))
}

/// What a file of an image holds.
enum Contents {
    /// All of it.
    Whole(Vec<u8>),
    /// More than was read.
    TooLong,
}

fn non_empty(contents: Option<&Contents>) -> Option<&[u8]> {
    match contents {
        Some(Contents::Whole(content)) if !content.is_empty() => Some(content),
        Some(Contents::Whole(_) | Contents::TooLong) | None => None,
    }
}
