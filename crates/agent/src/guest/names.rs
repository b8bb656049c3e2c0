//! By which names the machine is known, and the directories its workload is to find.
//!
//! The machine id is a sandbox's own: drawn anew when the disk meets another sandbox than the last one it met, and kept
//! over its restarts. Which that was stands in [`RECORD`].

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, chown},
    path::Path,
};

use sandhaus_protocol::boot::Workload;

use crate::{
    error::{Error, Result},
    sys,
};

/// Folder of what the agent keeps on the machine's disk.
const STATE_FOLDER: &str = "/var/lib/sandhaus";

/// Which sandbox the disk belonged to last.
const RECORD: &str = "/var/lib/sandhaus/sandbox";

const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
const MACHINE_ID: &str = "/etc/machine-id";
const BUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";

/// Marks lines that are the agent's to change.
const MARK: &str = "# sandhaus";

/// Largest `/etc/hosts` that is changed, in bytes.
const HOSTS_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a machine id.
const MACHINE_ID_BYTES: usize = 16;

/// Gives the machine its names. A root that cannot be written keeps those on its disk; the kernel's own name is set anyway.
pub(super) fn take(hostname: &str, sandbox_id: &str) -> Result<()> {
    sys::set_host_name(hostname)
        .map_err(|error| Error::internal(format_args!("cannot set the host name: {error}")))?;
    tell(HOSTNAME, write_changed(HOSTNAME, &format!("{hostname}\n")));
    tell(HOSTS, name_in_hosts(hostname));
    if fs::read_to_string(RECORD).is_ok_and(|record| record.trim_end() == sandbox_id) {
        return Ok(());
    }
    let machine_id = format!("{}\n", sys::random_hex(MACHINE_ID_BYTES));
    tell(MACHINE_ID, overwrite(Path::new(MACHINE_ID), &machine_id));
    // Often a symbolic link to the other one.
    if fs::symlink_metadata(BUS_MACHINE_ID).is_ok_and(|metadata| metadata.is_file()) {
        tell(BUS_MACHINE_ID, overwrite(Path::new(BUS_MACHINE_ID), &machine_id));
    }
    // Last: what was cut short before is done again.
    tell(
        RECORD,
        fs::create_dir_all(STATE_FOLDER).and_then(|()| write_changed(RECORD, &format!("{sandbox_id}\n"))),
    );
    Ok(())
}

/// Makes home and work directory where they are missing, owned by the workload.
pub(super) fn make_directories(user: &Workload, workdir: &str) {
    for path in [user.home.as_str(), workdir] {
        tell(path, make_directory(Path::new(path), user));
    }
}

/// Parents that are missing stay root's.
fn make_directory(path: &Path, user: &Workload) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::create_dir(path)?;
    chown(path, Some(user.uid), Some(user.gid))
}

/// A name that resolves to nothing makes sudo and others wait or complain.
fn name_in_hosts(hostname: &str) -> io::Result<()> {
    let old = match fs::metadata(HOSTS) {
        Ok(metadata) if metadata.len() > HOSTS_BYTES_MAX => return Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => fs::read_to_string(HOSTS)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error),
    };
    write_changed(HOSTS, &hosts(&old, hostname))
}

/// The file with one line of ours for this name.
fn hosts(old: &str, hostname: &str) -> String {
    let mut new = String::with_capacity(old.len() + 80);
    for line in old.lines().filter(|line| !line.ends_with(MARK)) {
        new.push_str(line);
        new.push('\n');
    }
    if !new.lines().any(|line| line.split_whitespace().any(|word| word == "localhost")) {
        new.push_str(&format!("127.0.0.1 localhost {MARK}\n"));
    }
    new.push_str(&format!("127.0.1.1 {hostname} {MARK}\n"));
    new
}

/// Writes a file unless it says so already.
fn write_changed(path: &str, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let path = Path::new(path);
    let aside = path.with_extension("sandhaus-new");
    let renamed = create(&aside, text).and_then(|()| fs::rename(&aside, path));
    match renamed {
        Ok(()) => Ok(()),
        Err(_) => {
            let _ = fs::remove_file(&aside);
            // A file that is a mount of its own can only be written in place.
            overwrite(path, text)
        }
    }
}

fn create(path: &Path, text: &str) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path)?;
    file.write_all(text.as_bytes())
}

/// Replaces what is in the file, which other programs may have open or mounted; never what a symbolic link leads to.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    create(path, text)
}

/// On the console or in the service's log: nobody waits for an answer about it.
pub(super) fn tell(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        sys::say(format_args!("{what} stays as it is: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_hosts_is_ours() {
        let first = hosts("127.0.0.1\tlocalhost\n10.0.0.1 other", "one");
        assert_eq!(first, "127.0.0.1\tlocalhost\n10.0.0.1 other\n127.0.1.1 one # sandhaus\n");
        assert_eq!(hosts(&first, "two"), first.replace("one", "two"));
        assert_eq!(hosts("", "one"), "127.0.0.1 localhost # sandhaus\n127.0.1.1 one # sandhaus\n");
        assert_eq!(hosts(&hosts("", "one"), "one"), hosts("", "one"));
    }
}
