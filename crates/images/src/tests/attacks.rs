//! Archives and directories that want out of their image, or want more than there is.

use std::{
    fs,
    io::Write as _,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _, fs::symlink},
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use tar::EntryType;

use super::{listing, pack::Pack, quick_directory};
use crate::{Error, Result, import, root::Limits};

/// An image being filled, beside things that must not change.
struct Field {
    directory: tempfile::TempDir,
}

impl Field {
    fn new() -> Self {
        Self::of(quick_directory())
    }

    /// Where there is room.
    fn on_disk() -> Self {
        Self::of(tempfile::tempdir().unwrap())
    }

    fn of(directory: tempfile::TempDir) -> Self {
        for path in ["tree", "canary/inner", "catalogue"] {
            fs::create_dir_all(directory.path().join(path)).unwrap();
        }
        fs::write(directory.path().join("canary/secret"), "canary").unwrap();
        Self { directory }
    }

    fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    fn canary(&self) -> PathBuf {
        self.directory.path().join("canary")
    }

    /// Imports; whatever came of it, nothing but the tree has changed.
    fn fill(&self, archive: &[u8]) -> Result<()> {
        self.fill_within(archive, Limits::default())
    }

    fn fill_within(&self, archive: &[u8], limits: Limits) -> Result<()> {
        let source = self.directory.path().join("source.tar");
        fs::write(&source, archive).unwrap();
        let root = self.directory.path();
        let before = self.outside();
        let result = import::fill(&source, &self.tree(), &root.join("catalogue"), limits, &mut |_, _| {});
        assert_eq!(self.outside(), before, "something outside the image changed");
        result.map(drop)
    }

    /// All there is beside the tree, with link counts, so that a hard link out shows.
    fn outside(&self) -> (Vec<String>, Vec<(PathBuf, u64)>) {
        let links = |path: PathBuf| (path.clone(), fs::metadata(path).unwrap().nlink());
        let root = self.directory.path();
        let mut names: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let mut shown = listing(&self.canary());
        shown.extend(names.into_iter().map(|path| path.display().to_string()));
        (shown, vec![links(self.canary().join("secret"))])
    }

    fn refused(&self, archive: Pack) -> String {
        match self.fill(&archive.finish()) {
            Err(Error::Source(why)) => why,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn paths_do_not_climb() {
    for path in ["../canary/secret", "a/../../canary/secret", "..", "/..", "./../x", "a/..", "//../x"] {
        let why = Field::new().refused(Pack::default().file(path, "x"));
        assert!(why.contains(".."), "{path}: {why}");
        Field::new().refused(Pack::default().directory(path));
        Field::new().refused(Pack::default().symlink(path, "x"));
        Field::new().refused(Pack::default().file("a", "x").hard_link("b", path));
        Field::new().refused(Pack::default().pax(&[("path", path.as_bytes())]).file("a", "x"));
    }
}

#[test]
fn absolute_paths_lie_inside() {
    let field = Field::new();
    let secret = field.canary().join("secret");
    let archive = Pack::default().file(secret.as_os_str().as_bytes(), "replaced").file("//etc/./x", "y");
    field.fill(&archive.finish()).unwrap();
    let inside = field.tree().join(secret.strip_prefix("/").unwrap());
    assert_eq!(fs::read_to_string(inside).unwrap(), "replaced");
    assert_eq!(fs::read_to_string(field.tree().join("etc/x")).unwrap(), "y");
}

#[test]
fn links_are_kept_and_never_followed() {
    let field = Field::new();
    let canary = field.canary();
    let out = canary.as_os_str().as_bytes();
    for target in [out, b"../canary", b"/", b".", b"loop"] {
        let field = Field::new();
        let why = field.refused(Pack::default().symlink("loop", target).file("loop/secret", "x"));
        assert!(why.contains("no directory"), "{why}");
        let field = Field::new();
        field.refused(Pack::default().directory("a").symlink("a/l", target).directory("a/l/inner/x"));
    }
    // The last component: the link itself is replaced.
    let secret = [out, b"/secret"].concat();
    field.fill(&Pack::default().symlink("l", &secret).file("l", "mine").finish()).unwrap();
    assert_eq!(fs::read_to_string(field.tree().join("l")).unwrap(), "mine");
    assert!(!fs::symlink_metadata(field.tree().join("l")).unwrap().is_symlink());

    let field = Field::new();
    field.fill(&Pack::default().symlink("l", out).directory("l").file("l/secret", "mine").finish()).unwrap();
    assert_eq!(fs::read_to_string(field.tree().join("l/secret")).unwrap(), "mine");
}

#[test]
fn hard_links_stay_inside_and_are_to_files() {
    let field = Field::new();
    let canary = field.canary().into_os_string().into_encoded_bytes();
    let secret = [canary.as_slice(), b"/secret"].concat();
    for (links, target) in [
        (Pack::default(), secret.as_slice()),
        (Pack::default(), b"missing"),
        (Pack::default().symlink("d", &canary), b"d/secret"),
        (Pack::default().directory("d"), b"d"),
        (Pack::default().directory("d"), b"."),
        (Pack::default().file("f", ""), b"f/x"),
    ] {
        Field::new().refused(links.hard_link("h", target));
    }
    let archive =
        Pack::default().file("f", "same").hard_link("h", "/f").hard_link("f", "f").hard_link("h", "f");
    field.fill(&archive.finish()).unwrap();
    let (file, link) =
        (fs::metadata(field.tree().join("f")).unwrap(), fs::metadata(field.tree().join("h")).unwrap());
    assert_eq!((file.ino(), file.nlink()), (link.ino(), 2));
    assert_eq!(fs::read_to_string(field.tree().join("h")).unwrap(), "same");
    // A link may have several names too; what it leads to has no part in that.
    let links =
        Pack::default().symlink("s", &secret).hard_link("t", "s").hard_link("t", "s").file("t/../x", "");
    Field::new().refused(links);
    let field = Field::new();
    let links = Pack::default().symlink("s", &secret).hard_link("t", "s").file("s", "replaced");
    field.fill(&links.finish()).unwrap();
    assert_eq!(fs::read_link(field.tree().join("t")).unwrap().as_os_str().as_encoded_bytes(), secret);
    assert_eq!(fs::read_to_string(field.tree().join("s")).unwrap(), "replaced");
}

#[test]
fn writing_over_one_name_does_not_write_the_other() {
    let field = Field::new();
    let archive = Pack::default().file("f", "first").hard_link("h", "f").file("h", "second");
    field.fill(&archive.finish()).unwrap();
    assert_eq!(fs::read_to_string(field.tree().join("f")).unwrap(), "first");
    assert_eq!(fs::read_to_string(field.tree().join("h")).unwrap(), "second");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let field = Field::new();
    let archive = Pack::default()
        .directory("d")
        .file("d", "file now")
        .file("f", "x")
        .directory("f")
        .file("f/below", "y")
        .symlink("l", "a")
        .symlink("l", "b")
        .entry_with(EntryType::Directory, "f", "", "", |header| header.set_mode(0o700));
    field.fill(&archive.finish()).unwrap();
    assert_eq!(fs::read_to_string(field.tree().join("d")).unwrap(), "file now");
    assert_eq!(fs::read_to_string(field.tree().join("f/below")).unwrap(), "y");
    assert_eq!(fs::read_link(field.tree().join("l")).unwrap(), Path::new("b"));
    assert_eq!(fs::metadata(field.tree().join("f")).unwrap().mode() & 0o7777, 0o700);

    Field::new().refused(Pack::default().file("d/below", "x").file("d", "over a full directory"));
    Field::new().refused(Pack::default().file("f", "x").file("f/below", "y"));
    Field::new().refused(Pack::default().file(".", "the whole tree"));
}

#[test]
fn device_files_are_left_out_below_dev_and_refused_elsewhere() {
    let field = Field::new();
    field.fill(&Pack::default().device("./dev/null").device("dev/pts/0").file("f", "").finish()).unwrap();
    assert_eq!(listing(&field.tree()).len(), 1, "only the file");
    for path in ["null", "devices/null", "etc/dev/null", "dev"] {
        let why = Field::new().refused(Pack::default().device(path));
        assert!(why.contains("device"), "{why}");
    }
    let field = Field::new();
    field.fill(&Pack::default().file("f", "").entry(EntryType::Fifo, "run/pipe", "", "").finish()).unwrap();
    assert_eq!(listing(&field.tree()).len(), 1, "the pipe is left out");
}

#[test]
fn bombs_are_defused() {
    let limits = Limits { expansion_allowance_bytes: 1 << 20, ..Limits::default() };
    let zeros = Pack::default().file("zeros", vec![0; 8 << 20]).finish();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&zeros).unwrap();
    for bomb in [gzip.finish().unwrap(), zstd::encode_all(zeros.as_slice(), 19).unwrap()] {
        let result = Field::new().fill_within(&bomb, limits.clone());
        assert!(
            matches!(result, Err(Error::TooLarge { what: "expansion of the compressed archive", .. })),
            "{result:?}"
        );
    }

    // With the limits as they are: 512 MiB out of some kilobytes.
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let archive =
        Pack::default().entry_with(EntryType::Regular, "zeros", "", "", |header| header.set_size(512 << 20));
    bomb.write_all(&archive.unfinished()).unwrap();
    for _ in 0..512 {
        bomb.write_all(&[0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let result = Field::on_disk().fill(&bomb);
    assert!(matches!(result, Err(Error::TooLarge { limit: 250, .. })), "{result:?}");
}

#[test]
fn content_and_files_are_counted() {
    let limits = Limits { content_bytes: 10, ..Limits::default() };
    let archive = Pack::default().file("a", "12345").file("b", "123456");
    let result = Field::new().fill_within(&archive.finish(), limits);
    assert!(matches!(result, Err(Error::TooLarge { what: "total size of files", limit: 10 })), "{result:?}");

    let limits = Limits { entries: 3, ..Limits::default() };
    let archive = Pack::default().file("a/b/c", "").symlink("l", "x");
    let result = Field::new().fill_within(&archive.finish(), limits);
    assert!(matches!(result, Err(Error::TooLarge { what: "number of files", limit: 3 })), "{result:?}");

    // A file of holes counts with its length: it is read as if it were full.
    let endless = u64::MAX.to_string();
    let archive = Pack::default()
        .pax(&[("GNU.sparse.size", endless.as_bytes()), ("GNU.sparse.map", b"0,1")])
        .file("hole", "x");
    let result = Field::new().fill(&archive.finish());
    assert!(matches!(result, Err(Error::TooLarge { what: "total size of files", .. })), "{result:?}");
}

#[test]
fn paths_are_bounded() {
    let deep = |depth: usize| vec!["d"; depth].join("/");
    Field::new().fill(&Pack::default().file(deep(128), "").finish()).unwrap();
    for path in [deep(129), deep(100_000), "x".repeat(256), vec!["x".repeat(200); 30].join("/")] {
        let result = Field::new().fill(&Pack::default().file(&path, "").finish());
        assert!(matches!(result, Err(Error::TooLarge { .. })), "{} bytes: {result:?}", path.len());
    }
    let target = "t".repeat(5000);
    let result = Field::new().fill(&Pack::default().symlink("l", target).finish());
    assert!(matches!(result, Err(Error::TooLarge { what: "length of a link target", .. })), "{result:?}");
}

#[test]
fn many_files_are_fine() {
    let field = Field::on_disk();
    let mut archive = Pack::default();
    for count in 0..100_000 {
        archive = archive.file(format!("d{}/f{count}", count % 50), "");
    }
    field.fill(&archive.finish()).unwrap();
    assert_eq!(fs::read_dir(field.tree().join("d49")).unwrap().count(), 2000);
}

#[test]
fn extended_headers_are_bounded() {
    // It claims more than memory has; nothing of it is there.
    for kind in [EntryType::XHeader, EntryType::XGlobalHeader, EntryType::GNULongName, EntryType::GNULongLink]
    {
        let archive = Pack::default().entry_with(kind, "x", "", "", |header| header.set_size(1 << 40));
        let result = Field::new().fill(&archive.finish());
        assert!(
            matches!(result, Err(Error::TooLarge { what: "size of an extended header", .. })),
            "{kind:?}: {result:?}"
        );
    }
    let mut archive = Pack::default();
    for _ in 0..20 {
        archive = archive.pax(&[("comment", b"x")]);
    }
    let result = Field::new().fill(&archive.file("f", "").finish());
    assert!(matches!(result, Err(Error::TooLarge { what: "number of extended headers", .. })), "{result:?}");
}

#[test]
fn strange_names_are_names() {
    let field = Field::new();
    let names: [&[u8]; 5] = [b"new\nline", b"\xff\xfe", b"\x1b[31mred", b"-rf", b" "];
    let mut archive = Pack::default();
    for name in names {
        archive = archive.file(name, "x");
    }
    field.fill(&archive.finish()).unwrap();
    for name in names {
        assert!(field.tree().join(std::ffi::OsStr::from_bytes(name)).is_file(), "{name:?}");
    }
    let why = Field::new().refused(Pack::default().file(b"\x1b[31m\n/../x", ""));
    assert!(!why.contains(['\x1b', '\n']), "a message shows no control characters: {why}");
    Field::new().refused(Pack::default().pax(&[("path", b"a\0b")]).file("x", ""));
}

#[test]
fn ids_that_no_sandbox_can_show_are_refused() {
    for (uid, gid) in [(65_536, 0), (0, 65_536), (u64::from(u32::MAX), 0), (1 << 40, 0)] {
        let archive = Pack::default().entry_with(EntryType::Regular, "f", "", "", |header| {
            header.set_uid(uid);
            header.set_gid(gid);
        });
        let why = Field::new().refused(archive);
        assert!(why.contains("\"f\"") && why.contains("65536"), "{why}");
    }
}

#[test]
fn damaged_archives_are_errors() {
    let whole = Pack::default().file("f", "content").finish();
    let not_archives: [&[u8]; 8] = [
        b"",
        b"hello",
        &[0; 1024],
        &[0x1f, 0x8b, 8, 0, 0, 0],
        &[0x28, 0xb5, 0x2f, 0xfd, 0],
        b"\xfd7zXZ\0",
        b"BZh91AY",
        b"PK\x03\x04xx",
    ];
    for bad in not_archives {
        assert!(matches!(Field::new().fill(bad), Err(Error::Source(_))), "{bad:?}");
    }
    // Cut anywhere, or without the end mark.
    for length in [1, 511, 512, 515, 1023, 1024] {
        let result = Field::new().fill(&whole[..length]);
        assert!(matches!(result, Err(Error::Source(_))), "{length}: {result:?}");
    }
    // Every bit of the header counts, and so does the checksum of a gzip member.
    for position in (0..500).step_by(7) {
        let mut bad = whole.clone();
        bad[position] ^= 1;
        assert!(Field::new().fill(&bad).is_err(), "{position}");
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).unwrap();
    let mut gzip = gzip.finish().unwrap();
    let checksum = gzip.len() - 8;
    gzip[checksum] ^= 1;
    assert!(matches!(Field::new().fill(&gzip), Err(Error::Source(_))));

    for kind in [b'M', b'N', b'Z', 0xff] {
        Field::new().refused(Pack::default().entry(EntryType::new(kind), "f", "", ""));
    }
}

#[test]
fn maps_of_sparse_files_are_checked() {
    for map in
        ["0,2", "5,1,0,0", "0,1,0,0", "1,1", "0", "18446744073709551615,1", "0,18446744073709551615", "x,1"]
    {
        let archive = Pack::default()
            .pax(&[("GNU.sparse.size", b"1"), ("GNU.sparse.map", map.as_bytes())])
            .file("hole", "x");
        let result = Field::new().fill(&archive.finish());
        assert!(matches!(result, Err(Error::Source(_))), "{map}: {result:?}");
    }
    for content in ["", "x", "1\n", "999999999\n", "1\n0\n99999999999999999999999\n"] {
        let archive = Pack::default()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"1"), ("GNU.sparse.name", b"hole")])
            .file("GNUSparseFile.0/hole", content);
        assert!(Field::new().fill(&archive.finish()).is_err(), "{content:?}");
    }
    let why = Field::new().refused(
        Pack::default().pax(&[("GNU.sparse.size", b"1"), ("GNU.sparse.name", b"../hole")]).file("hole", "x"),
    );
    assert!(why.contains(".."), "{why}");
}

#[test]
fn images_in_layers_are_told_from_root_file_systems() {
    let contents = |pack: Pack| {
        let field = Field::new();
        let source = field.directory.path().join("source.tar");
        fs::write(&source, pack.finish()).unwrap();
        let catalogue = field.directory.path().join("catalogue");
        import::fill(&source, &field.tree(), &catalogue, Limits::default(), &mut |_, _| {}).unwrap()
    };
    for pack in [
        Pack::default().file("oci-layout", "{}").file("index.json", "{}").file("blobs/sha256/00", ""),
        Pack::default().file("manifest.json", "[]").file("0/layer.tar", ""),
    ] {
        assert_eq!(contents(pack), import::Contents::Layered);
    }
    let programs = Pack::default().file("manifest.json", "").file("usr/bin/sh", "");
    assert_eq!(contents(programs), import::Contents::Root);
}

#[test]
fn directories_are_copied_without_following_links() {
    let field = Field::new();
    let source = field.directory.path().join("source");
    fs::create_dir_all(source.join("inner")).unwrap();
    fs::write(source.join("inner/file"), "content").unwrap();
    fs::hard_link(source.join("inner/file"), source.join("same")).unwrap();
    symlink(field.canary(), source.join("out")).unwrap();
    symlink("../canary/secret", source.join("secret")).unwrap();
    symlink("missing", source.join("dangling")).unwrap();
    let before = listing(&source);
    import::fill(
        &source,
        &field.tree(),
        &field.directory.path().join("catalogue"),
        Limits::default(),
        &mut |_, _| {},
    )
    .unwrap();
    assert_eq!(listing(&field.tree()), before);
    assert_eq!(fs::metadata(field.tree().join("same")).unwrap().nlink(), 2);
}

#[test]
fn a_directory_that_holds_the_catalogue_does_not_copy_it() {
    let field = Field::new();
    let root = field.directory.path();
    let tree = root.join("catalogue/tree");
    fs::create_dir(&tree).unwrap();
    fs::write(root.join("catalogue/inside"), "").unwrap();
    import::fill(root, &tree, &root.join("catalogue"), Limits::default(), &mut |_, _| {}).unwrap();
    assert_eq!(fs::read_to_string(tree.join("canary/secret")).unwrap(), "canary");
    assert_eq!(listing(&tree.join("catalogue")), Vec::<String>::new());
}

/// An entry as an attacker without a plan writes it.
#[derive(Debug, Clone)]
enum Random {
    File(String),
    Directory(String),
    Symlink(String, String),
    HardLink(String, String),
    Device(String),
}

fn random_path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c", "canary", "secret", "inner", ".", "", "..", "tree"]);
    prop::collection::vec(name, 1..5).prop_map(|names| names.join("/"))
}

fn random_target() -> impl Strategy<Value = String> {
    prop_oneof![random_path(), random_path().prop_map(|path| format!("../{path}")), Just("CANARY".to_owned())]
}

fn random_entry() -> impl Strategy<Value = Random> {
    prop_oneof![
        3 => random_path().prop_map(Random::File),
        2 => random_path().prop_map(Random::Directory),
        3 => (random_path(), random_target()).prop_map(|(path, target)| Random::Symlink(path, target)),
        2 => (random_path(), random_target()).prop_map(|(path, target)| Random::HardLink(path, target)),
        1 => random_path().prop_map(Random::Device),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_outside_ever_changes(entries in prop::collection::vec(random_entry(), 1..12)) {
        let field = Field::new();
        let canary = field.canary().display().to_string();
        // Each beginning of the sequence by itself: what one entry makes fail, others before it have done.
        let mut pack = Pack::default();
        for entry in entries {
            let target = |target: String| target.replace("CANARY", &canary);
            let next = match entry {
                Random::File(path) => pack.clone().file(path, "changed"),
                Random::Directory(path) => pack.clone().directory(path),
                Random::Symlink(path, to) => pack.clone().symlink(path, target(to)),
                Random::HardLink(path, to) => pack.clone().hard_link(path, target(to)),
                Random::Device(path) => pack.clone().device(path),
            };
            // An entry that is refused is left out, so that sequences get long enough to matter.
            fs::remove_dir_all(field.tree()).unwrap();
            fs::create_dir(field.tree()).unwrap();
            if field.fill(&next.clone().finish()).is_ok() {
                pack = next;
            }
        }
    }
}
