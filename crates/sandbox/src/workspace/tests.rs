use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

fn store(folder: &Path, quota_bytes: u64) -> Workspaces {
    let config = WorkspaceConfig {
        enabled: true,
        directory: folder.join("workspaces"),
        persist_by_default: false,
        quota_bytes,
    };
    Workspaces::open(&config, Span::Lasting)
}

fn id(text: &str) -> WorkspaceId {
    WorkspaceId::parse(text).expect("a name")
}

fn path(text: &str) -> WorkspacePath {
    WorkspacePath::parse(text).expect("a path")
}

fn write(volume: &Volume, name: &str, content: &[u8]) -> Result<()> {
    let mut draft = Draft::start(volume.root(), &path(name))?;
    draft.write(content)?;
    draft.commit()
}

fn read(volume: &Volume, name: &str) -> Result<Vec<u8>> {
    let (file, _) = files::open(volume.root(), &path(name))?;
    let mut content = Vec::new();
    io::Read::read_to_end(&mut std::fs::File::from(file), &mut content).expect("read");
    Ok(content)
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.expect_err("refused").kind()
}

#[test]
fn paths_are_clean_and_stay_within() {
    for (given, clean) in
        [("a.txt", "a.txt"), ("/a//b/./c/", "a/b/c"), ("a/../b", "b"), (".", ""), ("", ""), ("/", "")]
    {
        assert_eq!(path(given).as_str(), clean, "{given:?}");
    }
    for outside in ["..", "../x", "a/../../x", "/..", "../../victim"] {
        let error = WorkspacePath::parse(outside).expect_err("refused");
        assert_eq!(error.message(), "path must stay within the workspace", "{outside}");
    }
    assert!(WorkspacePath::parse("a\0b").is_err());
    assert!(WorkspacePath::parse(&"a".repeat(crate::types::PATH_BYTES_MAX + 1)).is_err());
}

#[test]
fn a_workspace_is_made_once_and_belongs_to_no_user_of_the_host() {
    let scratch = tempfile::tempdir().expect("a folder");
    let store = store(scratch.path(), 0);
    assert_eq!(store.list().expect("listed"), []);
    assert_eq!(kind(store.volume(&id("one"), Missing::Refuse).map(drop)), Kind::NotFound);
    let place = store.take(&id("one")).expect("made");
    let kept = store.volume(&id("one"), Missing::Refuse).expect("opened");
    write(&kept.volume, "sub/dir/file", b"content").expect("written");
    store.take(&id("one")).expect("there already");
    assert_eq!(read(&kept.volume, "sub/dir/file").expect("read"), b"content");
    for name in ["", "sub", "sub/dir", "sub/dir/file"] {
        let status = fs_err::symlink_metadata(place.join("files").join(name)).expect("there");
        assert_eq!((status.uid(), status.gid()), (OWNER, OWNER), "{name:?}");
    }
    let views = store.list().expect("listed");
    assert_eq!(views.len(), 1);
    assert!(views[0].used_bytes.is_some_and(|bytes| bytes > 0) && views[0].created_at_ms > 0, "{views:?}");
    assert_eq!(fs_err::metadata(scratch.path().join("workspaces")).expect("there").mode() & 0o777, 0o700);
}

#[test]
fn what_is_in_use_stays_unless_forced() {
    let scratch = tempfile::tempdir().expect("a folder");
    let store = store(scratch.path(), 0);
    store.remove(&id("absent"), Removal::Unused, || 1).expect("absent is success");
    let place = store.take(&id("one")).expect("made");
    assert_eq!(kind(store.remove(&id("one"), Removal::Unused, || 1)), Kind::Conflict);
    // Another process has a sandbox that shows it.
    let other = Workspaces::open(&store.config, Span::Process);
    other.take(&id("one")).expect("taken");
    assert_eq!(kind(store.remove(&id("one"), Removal::Unused, || 0)), Kind::Conflict);
    assert!(place.exists());
    let open = open_directory(CWD, place.join("files")).expect("opened");
    fs_err::create_dir_all(place.join("files/a/b")).expect("made");
    store.remove(&id("one"), Removal::Forced, || 1).expect("removed");
    assert!(!place.exists());
    assert_eq!(fs_err::read_dir(scratch.path().join("workspaces")).expect("there").count(), 0);
    assert_eq!(rustix::fs::mkdirat(&open, "new", Mode::from_raw_mode(0o755)), Err(Errno::NOENT));
    drop(other);
    store.take(&id("one")).expect("made anew");
    store.remove(&id("one"), Removal::Unused, || 0).expect("nobody uses it");
}

#[test]
fn what_a_crash_left_goes_and_what_others_make_stays() {
    let scratch = tempfile::tempdir().expect("a folder");
    let first = store(scratch.path(), 0);
    first.take(&id("kept")).expect("made");
    let folder = scratch.path().join("workspaces");
    for left in [".new-0000000000000001", ".gone-0000000000000002"] {
        fs_err::create_dir_all(folder.join(left).join("files/deep")).expect("made");
    }
    let busy = folder.join(".new-0000000000000003");
    fs_err::create_dir(&busy).expect("made");
    let lock = open_directory(CWD, &busy).expect("opened");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("locked");
    let second = store(scratch.path(), 0);
    let mut names: Vec<_> =
        fs_err::read_dir(&folder).expect("there").map(|entry| entry.expect("there").file_name()).collect();
    names.sort();
    assert_eq!(names, [".new-0000000000000003", "kept"]);
    assert_eq!(second.list().expect("listed").len(), 1, "what is being made is none yet");
}

#[test]
fn disabled_workspaces_name_the_setting() {
    let store = Workspaces::open(&WorkspaceConfig::default(), Span::Lasting);
    for error in [
        store.list().map(drop),
        store.take(&id("one")).map(drop),
        store.volume(&id("one"), Missing::Make).map(drop),
        store.remove(&id("one"), Removal::Forced, || 0),
    ] {
        let error = error.expect_err("refused");
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.message().contains("workspace.enabled"), "{error}");
    }
}

#[test]
fn links_lead_nowhere_outside_and_are_replaced_themselves() {
    let scratch = tempfile::tempdir().expect("a folder");
    let outside = scratch.path().join("outside");
    fs_err::create_dir(&outside).expect("made");
    fs_err::write(outside.join("secret"), "secret").expect("written");
    let store = store(scratch.path(), 0);
    let files = store.take(&id("one")).expect("made").join("files");
    symlink(&outside, files.join("absolute")).expect("linked");
    symlink("../../../outside", files.join("upwards")).expect("linked");
    symlink("/proc/self/root", files.join("magic")).expect("linked");
    fs_err::create_dir(files.join("real")).expect("made");
    symlink("real", files.join("inner")).expect("linked");
    let kept = store.volume(&id("one"), Missing::Refuse).expect("opened");
    for link in ["absolute", "upwards", "magic"] {
        let inside = format!("{link}/secret");
        assert_eq!(kind(read(&kept.volume, &inside)), Kind::Forbidden, "{link}");
        assert_eq!(kind(files::list(kept.volume.root(), &path(link))), Kind::Forbidden, "{link}");
        assert_eq!(kind(write(&kept.volume, &inside, b"x")), Kind::Forbidden, "{link}");
        assert_eq!(kind(write(&kept.volume, &format!("{link}/new/x"), b"x")), Kind::Forbidden, "{link}");
        let removal = files::remove(kept.volume.root(), &path(&inside), Extent::Tree);
        assert_eq!(kind(removal), Kind::Forbidden, "{link}");
    }
    write(&kept.volume, "inner/file", b"x").expect("a link that stays within may be followed");
    assert_eq!(read(&kept.volume, "real/file").expect("read"), b"x");
    write(&kept.volume, "absolute", b"mine").expect("replaced");
    assert_eq!(read(&kept.volume, "absolute").expect("read"), b"mine");
    assert_eq!(fs_err::read_to_string(outside.join("secret")).expect("untouched"), "secret");
    files::remove(kept.volume.root(), &path("upwards"), Extent::Tree).expect("the link goes");
    assert!(outside.join("secret").exists());
}

#[test]
fn only_regular_files_are_read_and_written() {
    let scratch = tempfile::tempdir().expect("a folder");
    let store = store(scratch.path(), 0);
    let files = store.take(&id("one")).expect("made").join("files");
    rustix::fs::mknodat(CWD, files.join("fifo"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o666), 0)
        .expect("made");
    let _socket = std::os::unix::net::UnixListener::bind(files.join("socket")).expect("bound");
    fs_err::create_dir(files.join("directory")).expect("made");
    let kept = store.volume(&id("one"), Missing::Refuse).expect("opened");
    for name in ["fifo", "socket", "directory"] {
        assert_eq!(kind(read(&kept.volume, name)), Kind::Invalid, "{name}");
        assert_eq!(kind(write(&kept.volume, name, b"x")), Kind::Invalid, "{name}");
    }
    assert_eq!(kind(files::list(kept.volume.root(), &path("fifo"))), Kind::Invalid);
    assert_eq!(kind(read(&kept.volume, "absent")), Kind::NotFound);
    assert_eq!(kind(write(&kept.volume, "", b"x")), Kind::Invalid);
    let names: Vec<String> = files::list(kept.volume.root(), &path("."))
        .expect("listed")
        .into_iter()
        .map(|entry| format!("{} {}", entry.mode_text(), entry.name))
        .collect();
    assert_eq!(names, ["drwxr-xr-x directory", "prw-r--r-- fifo", "srwxr-xr-x socket"]);
}

#[test]
fn a_replaced_file_keeps_its_mode_and_a_dropped_one_leaves_nothing() {
    let scratch = tempfile::tempdir().expect("a folder");
    let store = store(scratch.path(), 0);
    let files = store.take(&id("one")).expect("made").join("files");
    let kept = store.volume(&id("one"), Missing::Refuse).expect("opened");
    write(&kept.volume, "run.sh", b"old").expect("written");
    fs_err::set_permissions(files.join("run.sh"), std::fs::Permissions::from_mode(0o755)).expect("set");
    let mut draft = Draft::start(kept.volume.root(), &path("run.sh")).expect("started");
    draft.write(b"half").expect("written");
    drop(draft);
    assert_eq!(read(&kept.volume, "run.sh").expect("read"), b"old");
    write(&kept.volume, "run.sh", b"new").expect("written");
    assert_eq!(fs_err::metadata(files.join("run.sh")).expect("there").mode() & 0o7777, 0o755);
    assert_eq!(fs_err::read_dir(&files).expect("there").count(), 1);
    write(&kept.volume, "d/x", b"").expect("written");
    assert_eq!(kind(files::remove(kept.volume.root(), &path("d"), Extent::One)), Kind::Conflict);
    files::remove(kept.volume.root(), &path("d"), Extent::Tree).expect("removed");
    files::remove(kept.volume.root(), &path("run.sh"), Extent::One).expect("removed");
    assert_eq!(kind(files::remove(kept.volume.root(), &path("run.sh"), Extent::One)), Kind::NotFound);
}

fn loop_devices(below: &Path) -> usize {
    let devices = fs_err::read_dir("/sys/block").expect("there");
    let backing = |entry: io::Result<fs_err::DirEntry>| {
        std::fs::read_to_string(entry.expect("there").path().join("loop/backing_file")).ok()
    };
    devices.filter_map(backing).filter(|file| Path::new(file.trim()).starts_with(below)).count()
}

/// The device clears itself some time after its last user has gone.
fn settle(below: &Path, devices: usize) {
    for _ in 0..10_000 {
        if loop_devices(below) == devices {
            return;
        }
        std::thread::yield_now();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(loop_devices(below), devices);
}

#[test]
fn a_quota_is_kept_on_one_device_that_all_share() {
    const QUOTA: u64 = 16 << 20;
    if !rustix::process::geteuid().is_root() || !volume::can_limit() {
        return;
    }
    let scratch = tempfile::tempdir().expect("a folder");
    let first = store(scratch.path(), QUOTA);
    let place = first.take(&id("one")).expect("made");
    settle(scratch.path(), 0);
    let kept = first.volume(&id("one"), Missing::Refuse).expect("opened");
    assert_eq!(files::list(kept.volume.root(), &path("")).expect("listed"), [], "nothing is in a new one");
    let shown = mount(&place).expect("mounted once more");
    assert_eq!(loop_devices(scratch.path()), 1, "two devices would be two file systems in one file");
    write(&kept.volume, "seen", b"x").expect("written");
    assert!(rustix::fs::statat(&shown, "seen", rustix::fs::AtFlags::empty()).is_ok());
    let full = write(&kept.volume, "large", &vec![1; usize::try_from(QUOTA).expect("it fits")]);
    assert_eq!(kind(full), Kind::Exhausted);
    assert_eq!(read(&kept.volume, "seen").expect("read"), b"x");

    // Another quota is for those that are made from then on.
    let second = store(scratch.path(), 2 * QUOTA);
    second.take(&id("one")).expect("as it was");
    second.take(&id("two")).expect("made");
    let quotas: Vec<_> = second.list().expect("listed").into_iter().map(|view| view.quota_bytes).collect();
    assert_eq!(quotas, [Some(QUOTA), Some(2 * QUOTA)]);
    // Removed while it is in use: nothing is left in what its users still see, and nothing more goes in.
    second.remove(&id("one"), Removal::Forced, || 1).expect("removed");
    assert!(rustix::fs::statat(&shown, "seen", rustix::fs::AtFlags::empty()).is_err());
    drop((shown, kept));
    settle(scratch.path(), 0);
}
