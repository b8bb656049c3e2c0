//! Where servers die: a data directory with a machine in it that has nothing to do with it.

use std::{
    collections::BTreeSet,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use sandhaus_client::wire::{SessionInfo, SnapshotList};
use sandhaus_tests::{
    PATIENCE, binary,
    http::Http,
    kernel::KernelObjects,
    network::Space,
    process,
    server::{DataDir, Options, Server},
    session::Session,
    settles, vm,
};
use serde_json::json;

use crate::deed::{Deed, TAKEN};

/// The image of machines that boot: they live in their memory, and have a disk beside.
pub(crate) const IMAGE: &str = "swept";

/// The snapshot that machines are made of.
pub(crate) const WARM: &str = "warm";

/// The same with as many layers of its disk as one can have.
pub(crate) const LAYERED: &str = "layered";

/// Captures after which a disk has one layer less than those become one at.
const CAPTURES_MANY: usize = 22;

/// Counts in the guest, slowly enough that several can do so beside what is tested.
const COUNT: &str = "mkdir -p /tmp; (n=0; while :; do n=$((n+1)); echo $n > /tmp/m; mv /tmp/m /tmp/n; sleep 0.5; done) \
                     >/dev/null 2>&1 & until test -s /tmp/n; do sleep 0.05; done";

/// How long to wait before another look at what is left, which announces nothing when it goes.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The signal that a server dies of at a point.
const SIGKILL: i32 = 9;

/// Folders of a data directory for machines, snapshots and whatever is on the way.
const FOLDERS: &[&str] = &["vm", "memory", "snapshots", "transfers", "machines", "disks", "workspaces"];

/// How the server is started.
fn options(dir: &DataDir) -> Options {
    let more = format!("snapshots:\n  store: {}\n", store(dir).display());
    let mut options = vm::options(&more);
    options.config = options.config.map(|config| config.replace("mem_limit_mb: 256", "mem_limit_mb: 128"));
    options.env.push(("SANDHAUS_FAULT".to_owned(), format!("@{}", fault_file(dir).display())));
    options
}

/// Where snapshots are pushed to.
fn store(dir: &DataDir) -> PathBuf {
    dir.path().with_file_name("store")
}

/// What is armed.
fn fault_file(dir: &DataDir) -> PathBuf {
    dir.path().with_file_name("fault")
}

/// The program that runs a machine.
pub(crate) fn program(id: &str) -> u32 {
    let runs = |pid: &u32| {
        let arguments = process::arguments(*pid);
        arguments.first().is_some_and(|program| program.contains("qemu-system"))
            && arguments.iter().any(|argument| argument.contains(id))
    };
    process::all().into_iter().find(runs).unwrap_or_else(|| panic!("no machine of {id} runs"))
}

fn counted(session: &Session) -> u64 {
    session.output("cat /tmp/n").parse().expect("a number")
}

/// A data directory with the image and the snapshots that all others get.
pub(crate) struct Template(DataDir);

impl Template {
    /// Boots the only machine that all others go on from.
    pub(crate) fn make() -> Self {
        let dir = DataDir::new();
        vm::initramfs_image(dir.path());
        import(&dir);
        let made = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                Space::new().enter();
                let server = Server::start_with(&dir, &options(&dir));
                let http = server.http();
                let session = Session::create(&http, &json!({"image": IMAGE, "network": "bridge"}));
                session.output(COUNT);
                let take = |name: &str, kind: &str| {
                    let request =
                        json!({"session": session.id, "name": name, "kind": kind, "live": kind == "disk"});
                    http.post("/v1/snapshots", &request).expect(201);
                };
                take(WARM, "machine");
                for _ in 0..CAPTURES_MANY - 1 {
                    take(TAKEN, "disk");
                    http.delete(&format!("/v1/snapshots/{TAKEN}")).expect(200);
                }
                take(LAYERED, "machine");
                session.delete();
                assert!(server.stop().0.success());
            });
            thread.join()
        });
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Self(dir)
    }

    /// Another directory with the same. Its files are shared: nobody ever changes them.
    fn copy(&self) -> DataDir {
        let dir = DataDir::new();
        // A data directory is made by the binary, with the access that it chooses.
        assert_eq!(binary::run(binary::command(dir.path()).args(["--quiet", "image", "list"])).code, 0);
        for name in ["images", "snapshots", "vm/probe"] {
            let (from, to) = (self.0.path().join(name), dir.path().join(name));
            let parent = to.parent().expect("it lies in the data directory");
            fs_err::create_dir_all(parent).expect("make a folder");
            let mut copy = Command::new("cp");
            copy.args(["--archive", "--link", "--no-target-directory", "--force"]).arg(&from).arg(&to);
            let output = copy.output().expect("cp is installed");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        dir
    }
}

/// Takes the kernel and the initial file system of the image without a disk, and an empty disk.
fn import(dir: &DataDir) {
    let [kernel, initramfs] = ["kernel", "initramfs"].map(|name| {
        let found = sandhaus_tests::files_named(&dir.path().join("images/content"), name);
        found.into_iter().next().expect("the image has one")
    });
    let disk = dir.path().with_file_name("disk.qcow2");
    let made = Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&disk).arg("64M").status();
    assert!(made.expect("qemu-img is installed").success());
    let mut import = binary::command(dir.path());
    import.args(["image", "import-vm", "--name", IMAGE, "--append", "quiet"]).arg(&disk);
    import.arg("--kernel").arg(kernel).arg("--initramfs").arg(initramfs);
    let imported = binary::run(&mut import);
    assert_eq!(imported.code, 0, "{}", imported.stderr);
}

/// All that exists of the instance, each thing in a line.
type Inventory = BTreeSet<String>;

fn inventory(dir: &DataDir) -> Inventory {
    let KernelObjects {
        processes,
        mount_namespaces,
        network_namespaces,
        cgroups,
        host_mounts,
        loop_devices,
        interfaces,
        namespace_names,
        files: _,
    } = dir.objects();
    let mut files = BTreeSet::new();
    for folder in FOLDERS {
        add_files(&dir.path().join(folder), &mut files);
    }
    let paths = cgroups.into_iter().chain(files).map(|path| path.display().to_string());
    let namespaces =
        mount_namespaces.into_iter().chain(network_namespaces).map(|id| format!("namespace {id}"));
    [processes, host_mounts, loop_devices, interfaces, namespace_names]
        .into_iter()
        .flatten()
        .chain(paths)
        .chain(namespaces)
        .chain(elements(&dir.instance().expect("it is in use")))
        .collect()
}

fn add_files(folder: &Path, into: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_files(&path, into);
        }
        into.insert(path);
    }
}

/// Elements of the sets and maps in the instance's table.
fn elements(instance: &str) -> BTreeSet<String> {
    let table = format!("sandhaus_v{}", &instance[1..]);
    let listed =
        Command::new("nft").args(["list", "table", "inet", &table]).output().expect("nft is installed");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut found = BTreeSet::new();
    for part in text.split("elements = {").skip(1) {
        let listed = part.split('}').next().unwrap_or_default();
        found.extend(listed.split(',').map(|element| element.trim().to_owned()));
    }
    found
}

/// What a deed works on.
pub(crate) struct Field<'a> {
    server: &'a Server,
}

impl Field<'_> {
    pub(crate) fn http(&self) -> Http {
        self.server.http()
    }

    pub(crate) fn data(&self) -> &Path {
        self.server.data_dir()
    }

    /// Runs the command line against the server; gives its code and what it complained about.
    pub(crate) fn cli(&self, arguments: &[&str]) -> (i32, String) {
        let ran = binary::run(self.server.cli().args(arguments));
        (ran.code, ran.stderr)
    }
}

/// What a deed is when nobody dies.
pub(crate) struct Passage {
    /// The points on its way.
    pub(crate) points: BTreeSet<String>,
    /// How long it takes.
    pub(crate) time: Duration,
}

/// A data directory with a machine that nothing may happen to.
pub(crate) struct Ground {
    dir: DataDir,
    /// Gone while it is dead.
    server: Option<Server>,
    bystander: String,
    program: u32,
    counted: u64,
    inventory: Inventory,
}

impl Ground {
    pub(crate) fn new(template: &Template) -> Self {
        let dir = template.copy();
        fs_err::create_dir(store(&dir)).expect("make the store");
        let server = Server::start_with(&dir, &options(&dir));
        let bystander = Session::create(&server.http(), &json!({"snapshot": WARM}));
        let counted = counted(&bystander);
        let (program, bystander) = (program(&bystander.id), bystander.id);
        let inventory = inventory(&dir);
        Self { dir, server: Some(server), bystander, program, counted, inventory }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("a server runs between two deeds")
    }

    /// What the server that is there says.
    pub(crate) fn log(&self) -> String {
        self.server.as_ref().map(Server::log).unwrap_or_default()
    }

    /// Arms a point; the same server or the next one dies there.
    fn arm(&self, point: &str) {
        let file = fault_file(&self.dir);
        let aside = file.with_extension("new");
        fs_err::write(&aside, point).expect("write the point");
        fs_err::rename(aside, file).expect("arm it");
    }

    fn disarm(&self) {
        fs_err::remove_file(fault_file(&self.dir)).expect("something is armed");
    }

    /// The points that were passed since all were to be noted.
    fn noted(&self) -> Vec<String> {
        let file = fault_file(&self.dir).with_extension("passed");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let _ = std::fs::remove_file(file);
        text.lines().map(str::to_owned).collect()
    }

    /// Does a deed; whatever is armed is armed for it alone. Gives how the server ended, and how long the deed took.
    fn do_armed(&mut self, deed: Deed, point: &str) -> (ExitStatus, Duration) {
        let subject = deed.prepare(&Field { server: self.server() });
        let begun = Instant::now();
        if deed == Deed::Adopt {
            self.server.take().expect("it runs").kill();
            self.arm(point);
            match Server::try_start(&self.dir, &options(&self.dir)) {
                Ok(server) => self.server = Some(server),
                // It does not come as far as to listen.
                Err(log) => {
                    assert!(
                        log.ends_with(&ExitStatus::from_raw(SIGKILL).to_string()),
                        "it ends by itself:\n{log}"
                    );
                    return (ExitStatus::from_raw(SIGKILL), begun.elapsed());
                }
            }
            let server = self.server();
            settles("all is adopted, or the server has ended", || {
                server.handle().has_ended()
                    || statuses(&server.http())
                        .is_none_or(|all| all.iter().all(|(_, status)| !is_passing(status)))
            });
        } else {
            self.arm(point);
            deed.perform(&Field { server: self.server() }, subject.as_ref());
        }
        let (time, server) = (begun.elapsed(), self.server.take().expect("it was not reaped yet"));
        // What it does after its last answer counts as well: let it end in order.
        let (status, _) = if server.handle().has_ended() { server.reap() } else { server.stop() };
        (status, time)
    }

    /// Does a deed without a death.
    pub(crate) fn goes_through(&mut self, deed: Deed) -> Passage {
        let (status, time) = self.do_armed(deed, "*");
        assert!(status.success(), "{deed:?} goes through: {status}");
        let points = self.noted().into_iter().collect();
        self.settle(deed);
        Passage { points, time }
    }

    /// Does a deed in which the server dies at a point.
    pub(crate) fn dies_at(&mut self, deed: Deed, point: &str) {
        let (status, _) = self.do_armed(deed, &format!("{point}=self"));
        assert_eq!(status.signal(), Some(SIGKILL), "the server does not come to the point: {status}");
        self.settle(deed);
    }

    /// Does a deed in which the server dies after some time.
    pub(crate) fn dies_after(&mut self, deed: Deed, moment: Duration) {
        let subject = deed.prepare(&Field { server: self.server() });
        let server = self.server();
        std::thread::scope(|scope| {
            let field = Field { server };
            scope.spawn(|| {
                // Not until something is so: the moment is to be any.
                std::thread::sleep(moment);
                server.handle().signal(rustix::process::Signal::KILL);
            });
            deed.perform(&field, subject.as_ref());
        });
        let status = self.server.take().expect("it was not reaped yet").reap().0;
        assert_eq!(status.signal(), Some(SIGKILL), "{deed:?} after {moment:?}");
        self.arm("none");
        self.settle(deed);
    }

    /// The next server finds everything in a legal state and can delete it, and nothing is left but what was there before.
    fn settle(&mut self, deed: Deed) {
        self.disarm();
        self.server = Some(Server::start_with(&self.dir, &options(&self.dir)));
        self.bystander_goes_on();
        let found = self.all_is_legal(deed);
        deed.repeat(&Field { server: self.server() });
        let http = self.server().http();
        let snapshots: SnapshotList = http.get("/v1/snapshots").expect(200).json();
        let names: BTreeSet<&str> = snapshots.snapshots.iter().map(|snapshot| &*snapshot.name).collect();
        assert!(names.is_subset(&BTreeSet::from([WARM, LAYERED, TAKEN])), "{names:?}");
        if names.contains(TAKEN) {
            if deed == Deed::CaptureMachine {
                // One that has a name is whole.
                let copy = Session::create(&http, &json!({"snapshot": TAKEN}));
                assert!(counted(&copy) > 0);
                copy.delete();
            }
            http.delete(&format!("/v1/snapshots/{TAKEN}")).expect(200);
        }
        self.arm("*");
        for id in found {
            Session::at(&http, &id).delete();
        }
        self.disarm();
        let resumed: Vec<_> = self.noted().into_iter().filter(|point| resumes(point)).collect();
        assert!(resumed.is_empty(), "what is to be deleted is not resumed first: {resumed:?}");
        let mut left = inventory(&self.dir);
        let deadline = Instant::now() + PATIENCE;
        while left != self.inventory && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
            left = inventory(&self.dir);
        }
        let more: Vec<_> = left.difference(&self.inventory).collect();
        let less: Vec<_> = self.inventory.difference(&left).collect();
        assert!(more.is_empty() && less.is_empty(), "left behind: {more:#?}\ntaken away: {less:#?}");
    }

    fn bystander_goes_on(&mut self) {
        let bystander = Session::at(&self.server().http(), &self.bystander);
        settles("the other machine is found again", || bystander.info().status == "running");
        assert_eq!(program(&self.bystander), self.program, "it is the same process");
        let mut now = counted(&bystander);
        settles("the other machine goes on", || {
            now = counted(&bystander);
            now > self.counted
        });
        self.counted = now;
    }

    /// Waits until nothing changes any more; gives what there is.
    fn all_is_legal(&self, deed: Deed) -> Vec<String> {
        let http = self.server().http();
        let mut all = Vec::new();
        settles("an end of all steps", || {
            all = statuses(&http).expect("it answers");
            all.iter().all(|(_, status)| !is_passing(status))
        });
        all.retain(|(id, status)| *id != self.bystander && !matches!(&**status, "destroyed" | "expired"));
        assert!(deed.may_be_gone() || !all.is_empty(), "its machine is gone");
        let most = if deed == Deed::Fork { 2 } else { 1 };
        assert!(all.len() <= most, "{all:?}");
        for (id, status) in &all {
            assert!(deed.legal().contains(&&**status), "it is {status}");
            let session = Session::at(&http, id);
            match &**status {
                // One that was booted counts nothing.
                "running" if deed == Deed::Boot => assert_eq!(session.output("echo usable"), "usable"),
                "running" => assert!(counted(&session) > 0),
                _ => {}
            }
        }
        all.into_iter().map(|(id, _)| id).collect()
    }

    /// Nothing at all is left once the other machine is gone too.
    pub(crate) fn end(mut self) {
        self.bystander_goes_on();
        let server = self.server.take().expect("it runs");
        server.delete_all();
        for name in [WARM, LAYERED] {
            server.http().delete(&format!("/v1/snapshots/{name}")).expect(200);
        }
        let (status, log) = server.stop();
        assert!(status.success(), "{status}\n{log}");
        let left = self.dir.objects();
        assert!(left.is_empty(), "something is left: {left:#?}\n{log}");
        assert_eq!(self.dir.network(), BTreeSet::new());
        let snapshots = fs_err::read_dir(self.dir.path().join("snapshots")).map_or(0, Iterator::count);
        assert_eq!(snapshots, 0, "snapshots that nobody can name");
    }
}

/// Ids and statuses of all sessions; `None` if the server does not answer.
fn statuses(http: &Http) -> Option<Vec<(String, String)>> {
    let answer = http.try_send("GET", "/v1/sessions", "", b"").ok()?;
    let all: Vec<SessionInfo> = answer.expect(200).json();
    Some(all.into_iter().map(|session| (session.id, session.status)).collect())
}

/// A status that another follows by itself.
fn is_passing(status: &str) -> bool {
    matches!(status, "starting" | "stopping" | "destroying")
}

/// A point on the way of a machine that is to run.
fn resumes(point: &str) -> bool {
    ["plan.raise.", "plan.start.", "plan.restore.", "plan.thaw.", "vm_start."]
        .iter()
        .any(|step| point.starts_with(step))
}
