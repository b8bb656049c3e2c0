//! Everything of an instance that the kernel and the disk hold, found without asking the instance.
//!
//! Objects are told apart by owner, not by counting the whole host: tests run beside each other and beside whatever
//! else the machine does. A process belongs to an instance if its cgroup carries the instance's id, if it executes a
//! file of the data directory, or if its mounts show the data directory; a namespace belongs to it if such a process
//! holds it, and so do names that the instance leaves behind in file systems.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use rustix::process::Signal;

use crate::process::{self, Handle};

/// What the instance keeps for itself beside its sandboxes' files: a mount point, disks to copy, and its log.
const INSTANCE_FILES: &[&str] =
    &["machines/.stage", "machines/.forwarding", "disks/.templates", "run/sandhaus.log"];

/// What exists of an instance. Two of these compare as sets.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct KernelObjects {
    /// Processes of sandboxes, with their names.
    pub processes: BTreeSet<String>,
    /// Mount namespaces that show the data directory and are held by something else than a server or launcher.
    pub mount_namespaces: BTreeSet<u64>,
    /// Network namespaces of those processes.
    pub network_namespaces: BTreeSet<u64>,
    /// cgroups of sandboxes, in every hierarchy.
    pub cgroups: BTreeSet<PathBuf>,
    /// Mounts of the host's own mount namespace that show the data directory.
    pub host_mounts: BTreeSet<String>,
    /// Loop devices on files of the data directory.
    pub loop_devices: BTreeSet<String>,
    /// Network interfaces of the calling thread's host that belong to a sandbox of the instance.
    pub interfaces: BTreeSet<String>,
    /// Names of network namespaces that the instance gave.
    pub namespace_names: BTreeSet<String>,
    /// What lies in the data directory's folders for sandboxes.
    pub files: BTreeSet<PathBuf>,
}

impl KernelObjects {
    /// Looks at everything of the instance on `data_dir`.
    pub fn of(data_dir: &Path, instance: Option<&str>) -> Self {
        let mut found = Self::default();
        let host = Spaces::of(std::process::id());
        for pid in owned_processes(data_dir, instance) {
            let spaces = Spaces::of(pid);
            let name = process::status(pid, "Name").unwrap_or_default();
            found.processes.insert(format!("{pid} {name} {}", process::arguments(pid).join(" ")));
            found.mount_namespaces.extend(spaces.mount.filter(|_| spaces.mount != host.mount));
            found.network_namespaces.extend(spaces.network.filter(|_| spaces.network != host.network));
        }
        for instance in names(instance) {
            found.cgroups.extend(sandbox_cgroups(&instance));
            found.interfaces.extend(interfaces(&instance));
        }
        found.namespace_names = instance.map(namespace_names).unwrap_or_default();
        found.host_mounts = mounts("/proc/self/mountinfo", data_dir).into_iter().collect();
        found.loop_devices = loop_devices(data_dir);
        for folder in ["machines", "disks", "run", "vm/machines", "vm/disks", "memory"] {
            let entries = entries(&data_dir.join(folder)).into_iter();
            found.files.extend(entries.filter(|path| !INSTANCE_FILES.iter().any(|own| path.ends_with(own))));
        }
        // Workspaces and snapshots stay; what is only being made or removed has a hidden name.
        let lasting =
            ["workspaces", "snapshots"].into_iter().flat_map(|folder| entries(&data_dir.join(folder)));
        found.files.extend(lasting.filter(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with('.'))
        }));
        found
    }

    /// True if there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Panics, naming what is there, unless nothing of the instance is left.
#[track_caller]
pub fn assert_nothing_left(data_dir: &Path, instance: Option<&str>) {
    let left = KernelObjects::of(data_dir, instance);
    assert!(left.is_empty(), "something is left: {left:#?}");
}

/// Removes whatever a failed test left of an instance, so that it cannot disturb another.
pub fn sweep(data_dir: &Path, instance: Option<&str>) {
    for pid in owned_processes(data_dir, instance) {
        if let Some(handle) = Handle::open(pid) {
            handle.signal(Signal::KILL);
            handle.ends_within(crate::PATIENCE);
        }
    }
    // Runs without a server are instances of their own, named like their directories.
    let is_id = |name: &&str| name.len() > 1 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let runs = entries(&data_dir.join("run"));
    let runs = runs.iter().filter_map(|run| run.file_name()?.to_str());
    runs.chain(instance).filter(is_id).for_each(sweep_network);
    for instance in names(instance) {
        for cgroup in sandbox_cgroups(&instance).into_iter().chain(instance_cgroups(&instance)) {
            let _ = std::fs::remove_dir(cgroup);
        }
    }
}

/// What an instance is called in the kernel: by its id, and the engine of virtual machines by the same with another first
/// letter.
fn names(instance: Option<&str>) -> Vec<String> {
    let of_machines = |instance: &str| format!("v{}", &instance[1..]);
    instance.map(|instance| vec![instance.to_owned(), of_machines(instance)]).unwrap_or_default()
}

/// Removes what a server that was killed leaves of a network for the next one, who will not come.
fn sweep_network(instance: &str) {
    for name in namespace_names(instance) {
        let _ = rustix::mount::unmount(&*name, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&name);
    }
    for link in links(instance) {
        if let Some(name) = link["ifname"].as_str() {
            let _ = output("ip", &["link", "delete", name]);
        }
    }
    for table in names(Some(instance)).iter().map(|name| format!("sandhaus_{name}")) {
        let Some(rules) = output("nft", &["list", "table", "inet", &table]) else { continue };
        let _ = output("nft", &["delete", "table", "inet", &table]);
        if !output("nft", &["list", "tables"]).is_some_and(|tables| tables.contains("sandhaus_")) {
            stop_forwarding(&rules);
        }
    }
}

/// Turns off what the last table there was said that it had turned on.
fn stop_forwarding(rules: &str) {
    let indexes = rules.lines().filter_map(|line| {
        line.trim().strip_prefix("chain forwarding_")?.split(' ').next()?.parse::<u64>().ok()
    });
    let indexes: BTreeSet<u64> = indexes.collect();
    for link in all_links()
        .iter()
        .filter(|link| link["ifindex"].as_u64().is_some_and(|index| indexes.contains(&index)))
    {
        if let Some(name) = link["ifname"].as_str() {
            let setting = format!("/proc/thread-self/root/proc/sys/net/ipv4/conf/{name}/forwarding");
            let _ = std::fs::write(setting, "0");
        }
    }
}

/// What a program says; `None` where it fails or is missing.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = std::process::Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Names of network namespaces whose files say that the instance made them. The words lie below what is mounted, so a
/// mount namespace of the look's own is cleared of it first.
fn namespace_names(instance: &str) -> BTreeSet<String> {
    const LOOK: &str = "for name in /run/netns/*; do umount -l \"$name\" 2>/dev/null; \
                        printf '%s %s\\n' \"$name\" \"$(head -c 256 \"$name\" | head -n 1)\"; done";
    if entries(Path::new("/run/netns")).is_empty() {
        return BTreeSet::new();
    }
    let listed = output("unshare", &["--mount", "--propagation", "private", "sh", "-c", LOOK]);
    let listed = listed.unwrap_or_default();
    let ours = |line: &str| {
        let (name, words) = line.split_once(' ')?;
        names(Some(instance)).iter().any(|name| words.contains(name)).then(|| name.to_owned())
    };
    listed.lines().filter_map(ours).collect()
}

/// Namespaces of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spaces {
    mount: Option<u64>,
    network: Option<u64>,
}

impl Spaces {
    fn of(pid: u32) -> Self {
        Self { mount: process::namespace(pid, "mnt"), network: process::namespace(pid, "net") }
    }
}

/// Processes of the instance's sandboxes. Its servers, command lines and launchers are not: they carry the data
/// directory as an argument, but none of its marks.
fn owned_processes(data_dir: &Path, instance: Option<&str>) -> Vec<u32> {
    let marks: Vec<String> = names(instance).iter().map(|instance| format!("/sandhaus/{instance}")).collect();
    let server = |pid| {
        let arguments = process::arguments(pid);
        arguments.iter().any(|argument| argument == "__launcher")
            || arguments.iter().any(|argument| Path::new(argument) == data_dir)
    };
    let owned = |pid: u32| {
        let in_cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .is_ok_and(|text| marks.iter().any(|mark| text.contains(mark.as_str())));
        in_cgroup
            || process::executable(pid).is_some_and(|path| path.starts_with(data_dir))
            || (!mounts(&format!("/proc/{pid}/mountinfo"), data_dir).is_empty() && !server(pid))
    };
    let alive = |pid: u32| process::status(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']));
    process::all()
        .into_iter()
        .filter(|pid| *pid != std::process::id() && owned(*pid) && alive(*pid))
        .collect()
}

/// Lines of a mount table that name the data directory as source, target or layer. A data directory that is itself a
/// mount of somebody else's is none: the path must go on.
fn mounts(table: &str, data_dir: &Path) -> Vec<String> {
    let inside = format!("{}/", data_dir.display());
    let text = std::fs::read_to_string(table).unwrap_or_default();
    text.lines().filter(|line| line.contains(&inside)).map(str::to_owned).collect()
}

/// The instance's own folder in every cgroup hierarchy.
fn instance_cgroups(instance: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder).into_iter().filter(|entry| entry.is_dir() && !entry.is_symlink()) {
            let ours = entry.file_name().is_some_and(|name| name == "sandhaus");
            if ours {
                found.extend(Some(entry.join(instance)).filter(|path| path.exists()));
            } else {
                folders.push(entry);
            }
        }
    }
    found
}

fn sandbox_cgroups(instance: &str) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = instance_cgroups(instance);
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder).into_iter().filter(|entry| entry.is_dir()) {
            found.insert(entry.clone());
            folders.push(entry);
        }
    }
    found
}

fn loop_devices(data_dir: &Path) -> BTreeSet<String> {
    entries(Path::new("/sys/block"))
        .into_iter()
        .filter_map(|device| {
            let backing = std::fs::read_to_string(device.join("loop/backing_file")).ok()?;
            Path::new(backing.trim()).starts_with(data_dir).then(|| format!("{} {backing}", device.display()))
        })
        .collect()
}

/// Those that have been given to a sandbox bear its name; the others wait for one, as long as the server runs.
fn interfaces(instance: &str) -> BTreeSet<String> {
    let of_a_sandbox =
        |link: &&serde_json::Value| link["ifalias"].as_str().is_some_and(|alias| !alias.is_empty());
    links(instance).iter().filter(of_a_sandbox).map(|link| link["ifname"].to_string()).collect()
}

fn links(instance: &str) -> Vec<serde_json::Value> {
    let names = names(Some(instance));
    let ours = |link: &serde_json::Value| {
        link["ifname"].as_str().is_some_and(|link| names.iter().any(|name| link.contains(name)))
    };
    all_links().into_iter().filter(ours).collect()
}

fn all_links() -> Vec<serde_json::Value> {
    let listed = std::process::Command::new("ip").args(["-j", "-d", "link", "show"]).output();
    let listed = listed.expect("ip is installed").stdout;
    serde_json::from_slice(&listed).unwrap_or_default()
}

/// What an instance has of the network of the calling thread's host, for sandboxes or for itself: interfaces, tables of
/// filters, and names of namespaces.
pub fn network_of(instance: &str) -> BTreeSet<String> {
    let listed =
        std::process::Command::new("nft").args(["list", "tables"]).output().expect("nft is installed");
    let tables = String::from_utf8_lossy(&listed.stdout).into_owned();
    let names = names(Some(instance));
    let ours = |line: &&str| names.iter().any(|name| line.contains(name));
    let tables = tables.lines().filter(ours).map(str::to_owned);
    let links = links(instance).into_iter().map(|link| link["ifname"].to_string());
    tables.chain(links).chain(namespace_names(instance)).collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::DataDir;

    #[test]
    fn files_of_sandboxes_are_seen_and_named() {
        let dir = DataDir::new();
        assert!(dir.objects().is_empty());
        fs_err::create_dir_all(dir.path().join("disks/one")).unwrap();
        fs_err::create_dir_all(dir.path().join("images/host")).unwrap();
        let objects = dir.objects();
        assert_eq!(objects.files, BTreeSet::from([dir.path().join("disks/one")]));
        let panic = std::panic::catch_unwind(|| assert_nothing_left(dir.path(), None)).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("disks/one"));
    }

    #[test]
    fn what_a_killed_server_leaves_of_a_network_goes_with_its_directory() {
        if !crate::runnable("what_a_killed_server_leaves_of_a_network_goes_with_its_directory") {
            return;
        }
        crate::network::on_a_host(|_| {
            let forwards = || {
                let path = "/proc/thread-self/root/proc/sys/net/ipv4/conf/up0/forwarding";
                fs_err::read_to_string(path).expect("up0 is there").trim() == "1"
            };
            let dir = DataDir::new();
            let server = crate::server::Server::start(&dir);
            let request = serde_json::json!({"network": "bridge"});
            drop(crate::session::Session::create(&server.http(), &request));
            server.kill();
            let instance = dir.instance().expect("it has an id");
            assert!(network_of(&instance).len() > 1 && forwards());
            drop(dir);
            assert_eq!(network_of(&instance), BTreeSet::new());
            assert!(!forwards());
        });
    }

    #[test]
    fn a_process_that_executes_from_the_data_directory_is_seen_and_swept() {
        let dir = DataDir::new();
        let program = dir.path().join("sleep");
        fs_err::create_dir(dir.path()).unwrap();
        fs_err::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program).arg("1000").spawn().unwrap();
        // `spawn` returns after exec, so that the executable is the copy already.
        assert_eq!(dir.objects().processes.len(), 1, "{:?}", dir.objects());
        sweep(dir.path(), None);
        assert!(!child.wait().unwrap().success());
        assert!(dir.objects().processes.is_empty());
    }
}
