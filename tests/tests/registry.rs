//! Images from registries: a real one on loopback, and one that is far away, slow, forgetful and not to be trusted.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal};
use sandhaus_tests::{
    archive::{archive, entry},
    binary::{self, Ran},
    registry::{Access, Layer, OciImage, Packing, Proxy, Registry, Rules, USER, native, pull_events},
    runnable,
    server::{DataDir, Server},
    session::{Session, base64},
    settles, skip,
    tree::busybox_tree,
};
use serde_json::{Value, json};

/// Bytes of a layer that takes a while to fetch.
const LARGE: usize = 4 << 20;

/// Length of a file that is one hole but for its end.
const SPARSE: u64 = 8 << 20;

fn sandhaus(dir: &DataDir, arguments: &[&str]) -> Ran {
    binary::run(command(dir).args(arguments))
}

/// A command line that knows no registry's password.
fn command(dir: &DataDir) -> Command {
    let mut command = binary::command(dir.path());
    command.env("DOCKER_CONFIG", "/nonexistent");
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy);
    }
    command
}

#[track_caller]
fn pulled(dir: &DataDir, name: &str, reference: &str) -> Ran {
    let ran = sandhaus(dir, &["image", "pull", "--name", name, reference]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran
}

/// Runs a shell line in an image, as root of it.
#[track_caller]
fn inside(dir: &DataDir, image: &str, line: &str) -> String {
    let ran = sandhaus(dir, &["run", "--image", image, "--", "/bin/sh", "-c", line]);
    assert_eq!(ran.code, 0, "{line}: {}", ran.stderr);
    ran.stdout
}

/// Bytes that do not shrink.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A layer with one file of noise.
fn noise_layer(name: &str, seed: u64) -> Layer {
    Layer::new(&archive(&[entry(name, b'0', "", &noise(LARGE, seed))]), Packing::Gzip)
}

fn busybox_layer() -> Layer {
    Layer::of_folder(busybox_tree().path(), Packing::Gzip)
}

/// What lies beneath a folder of the catalogue.
fn names_in(dir: &DataDir, folder: &str) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(dir.path().join("images").join(folder)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// A layer with everything that a file system can have.
fn rich_layer() -> Layer {
    let tree = busybox_tree();
    let at = |path: &str| tree.path().join(path);
    for folder in ["data/kept", "data/hidden/deep", "data/emptied", "replaced", "dir-to-file", "private"] {
        fs_err::create_dir_all(at(folder)).unwrap();
    }
    for file in
        ["data/kept/a", "data/gone", "data/hidden/deep/b", "data/emptied/old", "replaced/old", "file-to-dir"]
    {
        fs_err::write(at(file), format!("lower {file}\n")).unwrap();
    }
    fs_err::hard_link(at("data/kept/a"), at("data/kept/same")).unwrap();
    symlink("kept/a", at("data/link")).unwrap();
    fs_err::hard_link(at("data/link"), at("data/link2")).unwrap();
    let sparse = fs_err::File::create(at("data/sparse")).unwrap();
    sparse.set_len(SPARSE).unwrap();
    sparse.file().write_all_at(b"end", SPARSE - 3).unwrap();
    fs_err::copy(at("bin/busybox"), at("data/busybox-setuid")).unwrap();
    std::os::unix::fs::chown(at("data/kept/a"), Some(1234), Some(2345)).unwrap();
    std::os::unix::fs::chown(at("private"), Some(77), Some(78)).unwrap();
    let mode = |path: &str, mode| {
        fs_err::set_permissions(at(path), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("data/busybox-setuid", 0o4755);
    mode("private", 0o2710);
    set_attribute(&at("data/kept/a"), "user.mark", b"one\0two");
    // What would steer an overlay if it were taken over.
    set_attribute(&at("data/kept"), "trusted.overlay.opaque", b"y");
    set_attribute(&at("data"), "trusted.overlay.redirect", b"/etc");
    Layer::of_folder(tree.path(), Packing::Gzip)
}

/// A layer over it that hides, empties and replaces.
fn changing_layer() -> Layer {
    let file = |name, content| entry(name, b'0', "", content);
    let archive = archive(&[
        file("data/.wh.gone", b""),
        file("data/.wh.hidden", b""),
        file("data/emptied/new", b"upper\n"),
        file("data/emptied/.wh..wh..opq", b""),
        // Hidden and made anew: nothing of the old one shows. In both orders.
        file(".wh.replaced", b""),
        file("replaced/new", b"upper\n"),
        file("dir-to-file", b"upper\n"),
        entry("file-to-dir/", b'5', "", b""),
        file("file-to-dir/in", b"upper\n"),
        // The folder is not listed: it stays what it was below.
        file("private/added", b"upper\n"),
    ]);
    Layer::new(&archive, Packing::Zstd)
}

#[test]
fn an_image_of_several_layers_is_what_its_layers_say() {
    if !runnable("an_image_of_several_layers_is_what_its_layers_say") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let proxy = Proxy::start(&registry, Rules::default());
    let plain = Layer::new(&archive(&[entry("etc/plain", b'0', "", b"plain\n")]), Packing::Plain);
    let run = json!({"Env": ["FROM_IMAGE=yes", "PATH=/opt/bin:/bin"], "WorkingDir": "/data",
        "Entrypoint": ["/bin/echo", "entry"], "Cmd": ["and command"]});
    let image = OciImage::native(vec![rich_layer(), changing_layer(), plain], &run);
    let other = if native() == "amd64" { "arm64" } else { "amd64" };
    let foreign = OciImage::new(other, vec![busybox_layer()], &json!({}));
    registry.push_index("team/app", "1", &[(other, &foreign), (native(), &image)]);

    let dir = DataDir::new();
    let ran = sandhaus(&dir, &["image", "pull", &proxy.reference("team/app:1")]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("pulled app:") && ran.stderr.matches(" done: ").count() == 3,
        "{}",
        ran.stderr
    );
    assert_eq!(
        proxy.passed().blob_answers.len(),
        4,
        "three layers and the configuration of this machine's image"
    );

    let seen = |line: &str| inside(&dir, "app", line);
    assert_eq!(
        seen("cat /etc/plain /etc/marker; pwd; echo $FROM_IMAGE $PATH"),
        "plain\nimported\n/data\nyes /opt/bin:/bin\n"
    );
    assert_eq!(
        seen("ls /data; ls /data/emptied /replaced"),
        "busybox-setuid\nemptied\nkept\nlink\nlink2\nsparse\n/data/emptied:\nnew\n\n/replaced:\nnew\n"
    );
    assert_eq!(seen("cat /dir-to-file /file-to-dir/in; ls -A /data/kept"), "upper\nupper\na\nsame\n");
    assert_eq!(
        seen("stat -c '%u:%g %h' /data/kept/a; stat -c %h /data/link; readlink /data/link2"),
        "1234:2345 2\n2\nkept/a\n"
    );
    assert_eq!(seen("stat -c '%s' /data/sparse; tail -c 3 /data/sparse"), format!("{SPARSE}\nend"));
    let blocks: u64 = seen("stat -c %b /data/sparse").trim().parse().unwrap();
    assert!(blocks < 1000, "{blocks} blocks of a file that is a hole");
    assert_eq!(
        seen("stat -c '%a' /data/busybox-setuid; stat -c '%a %u:%g' /private; ls /private"),
        "4755\n2710 77:78\nadded\n"
    );

    // Setuid is kept and powerless towards the host: root inside is nobody outside.
    let ran = sandhaus(
        &dir,
        &["run", "--security", "strict", "--image", "app", "--", "/data/busybox-setuid", "id", "-u"],
    );
    assert_eq!(ran.stdout, "1000\n", "{}", ran.stderr);
    // Without a command the image's own runs; with one, that alone.
    assert_eq!(sandhaus(&dir, &["run", "--image", "app"]).stdout, "entry and command\n");
    let ran = sandhaus(&dir, &["run", "--image", "host"]);
    assert!(ran.code != 0 && ran.stderr.contains("nothing about what to run"), "{}", ran.stderr);

    // Another image with a layer of the first fetches what it does not have, and no more.
    let added = noise_layer("added", 1);
    let second = OciImage::native(vec![image.layers[0].clone(), added.clone()], &json!({"Cmd": ["true"]}));
    registry.push("team/second", "1", &second);
    let before = proxy.passed().blob_answers;
    pulled(&dir, "second", &proxy.reference("team/second:1"));
    let after = proxy.passed().blob_answers;
    assert_eq!(after.get(&image.layers[0].digest()), before.get(&image.layers[0].digest()));
    assert_eq!(after.get(&added.digest()), Some(&1));
    assert_eq!(names_in(&dir, "layers").len(), 4);
    assert_eq!(names_in(&dir, "partial"), Vec::<PathBuf>::new());

    validate_inspect_and_remove(&dir, &proxy, other);
}

fn validate_inspect_and_remove(dir: &DataDir, proxy: &Proxy, other: &str) {
    let details = sandhaus(dir, &["image", "inspect", "app"]);
    let details: Value = serde_json::from_str(&details.stdout).unwrap();
    assert_eq!(details["kind"], "pulled");
    assert_eq!(details["reference"], proxy.reference("team/app:1"));
    assert_eq!(details["platform"], format!("linux/{}", native()));
    assert_eq!(details["config"]["cmd"], json!(["and command"]));
    assert_eq!(details["layers"].as_array().unwrap().len(), 3);
    let by_digest = format!("{}@{}", proxy.reference("team/app"), details["manifest"].as_str().unwrap());
    pulled(dir, "same", &by_digest);

    let ran = sandhaus(dir, &["image", "pull", "--platform", "linux/s390x", &proxy.reference("team/app:1")]);
    assert!(ran.code != 0 && ran.stderr.contains(&format!("linux/{other}")), "{}", ran.stderr);
    let ran = sandhaus(dir, &["image", "pull", &proxy.reference("team/app:absent")]);
    assert!(ran.code != 0 && ran.stderr.contains("is not in its registry"), "{}", ran.stderr);

    assert_eq!(
        sandhaus(dir, &["image", "validate", "app", "second"]).stdout,
        "Image app is valid\nImage second is valid\n"
    );
    let layer =
        names_in(dir, "layers").into_iter().find(|layer| layer.join("tree/etc/plain").exists()).unwrap();
    fs_err::write(layer.join("tree/etc/plain"), "other\n").unwrap();
    let ran = sandhaus(dir, &["image", "validate", "app", "second"]);
    assert!(ran.code != 0 && ran.stderr.contains("image app is damaged"), "{}", ran.stderr);
    assert_eq!(ran.stdout, "Image second is valid\n");

    for name in ["app", "same"] {
        assert_eq!(sandhaus(dir, &["image", "delete", name]).code, 0);
    }
    assert_eq!(names_in(dir, "layers").len(), 2, "what the other image has stays");
    let pruned = sandhaus(dir, &["image", "prune", "--all", "-o", "json"]);
    let pruned: Value = serde_json::from_str(&pruned.stdout).unwrap();
    assert_eq!(pruned["names"], json!(["second"]));
    assert!(pruned["freed_bytes"].as_u64().unwrap() > LARGE as u64, "{pruned}");
    assert_eq!(names_in(dir, "layers"), Vec::<PathBuf>::new());
    assert_eq!(names_in(dir, "content"), Vec::<PathBuf>::new());
}

#[test]
fn an_images_user_runs_its_commands_where_it_may() {
    if !runnable("an_images_user_runs_its_commands_where_it_may") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let tree = busybox_tree();
    fs_err::write(
        tree.path().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1001:1002::/srv:/bin/sh\n",
    )
    .unwrap();
    fs_err::create_dir(tree.path().join("srv")).unwrap();
    let layer = Layer::of_folder(tree.path(), Packing::Gzip);
    let dir = DataDir::new();
    let line = "echo $(id -u):$(id -g) $HOME; touch /workspace/x && stat -c %u /workspace /workspace/x";
    for (tag, user, container) in [
        ("name", "app", "1001:1002 /srv\n1001\n1001\n"),
        ("number", "4321:77", "4321:77 /\n4321\n4321\n"),
        ("root", "root", "0:0 /root\n0\n0\n"),
    ] {
        registry.push("user", tag, &OciImage::native(vec![layer.clone()], &json!({"User": user})));
        pulled(&dir, tag, &registry.reference(&format!("user:{tag}")));
        assert_eq!(inside(&dir, tag, line), container, "{user}");
        let strict =
            sandhaus(&dir, &["run", "--security", "strict", "--image", tag, "--", "/bin/sh", "-c", line]);
        assert_eq!(strict.stdout, "1000:1000 /home/sandbox\n1000\n1000\n", "{user}: {}", strict.stderr);
    }
    registry.push("user", "nobody", &OciImage::native(vec![layer], &json!({"User": "stranger"})));
    pulled(&dir, "nobody", &registry.reference("user:nobody"));
    let ran = sandhaus(&dir, &["run", "--image", "nobody", "--", "true"]);
    assert!(ran.code != 0 && ran.stderr.contains("stranger"), "{}", ran.stderr);
}

#[test]
fn a_registry_that_wants_to_know_who_asks_is_told() {
    if !runnable("a_registry_that_wants_to_know_who_asks_is_told") {
        return;
    }
    let closed = Registry::start(Access::Password);
    let open = Registry::start(Access::Open);
    let tokens = Proxy::start(&open, Rules { tokens: true, ..Rules::default() });
    let image = OciImage::native(vec![busybox_layer()], &json!({}));
    closed.push("closed", "1", &image);
    open.push("tokens", "1", &image);
    let (user, password) = USER;
    let auth = base64(format!("{user}:{password}").as_bytes());
    let wrong = base64(format!("{user}:wrong").as_bytes());

    for reference in [closed.reference("closed:1"), tokens.reference("tokens:1")] {
        let dir = DataDir::new();
        let registry = reference.split_once('/').unwrap().0.to_owned();
        let docker = tempfile::tempdir().unwrap();
        let pull = |config: &Value| {
            fs_err::write(docker.path().join("config.json"), config.to_string()).unwrap();
            binary::run(command(&dir).env("DOCKER_CONFIG", docker.path()).args(["image", "pull", &reference]))
        };
        let ran = sandhaus(&dir, &["image", "pull", &reference]);
        assert!(ran.code != 0 && ran.stderr.contains("docker login"), "{}", ran.stderr);
        let ran = pull(&json!({"auths": {registry.as_str(): {"auth": wrong}}}));
        assert!(ran.code != 0 && ran.stderr.contains("does not accept the credentials"), "{}", ran.stderr);
        assert!(!ran.stderr.contains("wrong") && !ran.stderr.contains(&wrong), "{}", ran.stderr);
        let ran = pull(&json!({"auths": {}, "credHelpers": {registry.as_str(): "elsewhere"}}));
        assert!(ran.code != 0 && ran.stderr.contains("docker-credential-elsewhere"), "{}", ran.stderr);
        let ran = pull(&json!({"auths": {registry.as_str(): {"auth": auth}}}));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(sandhaus(&dir, &["image", "list"]).stdout.matches("pulled").count(), 1);
    }
}

#[test]
fn a_dropped_connection_goes_on_where_it_stopped() {
    if !runnable("a_dropped_connection_goes_on_where_it_stopped") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let layer = noise_layer("noise", 7);
    let image = OciImage::native(vec![layer.clone()], &json!({}));
    registry.push("noise", "1", &image);
    let size = layer.blob.len() as u64;
    let blob = layer.digest();

    let cut = Proxy::start(&registry, Rules { cut: Some((3, 1 << 20)), too_many: 1, ..Rules::default() });
    let dir = DataDir::new();
    pulled(&dir, "noise", &cut.reference("noise:1"));
    let passed = cut.passed();
    assert_eq!(passed.blob_answers[&blob], 4);
    assert_eq!(passed.blob_bytes[&blob], size, "no byte was sent twice");
    let offsets: Vec<String> = (1..4).map(|part| format!("bytes={}-", part << 20)).collect();
    assert_eq!(passed.ranges, offsets);
    assert_eq!(sandhaus(&dir, &["image", "validate", "noise"]).code, 0);

    // A registry that cannot begin in the middle sends it all again; what is here is skipped.
    let plain =
        Proxy::start(&registry, Rules { cut: Some((1, 1 << 20)), no_ranges: true, ..Rules::default() });
    let dir = DataDir::new();
    pulled(&dir, "noise", &plain.reference("noise:1"));
    assert_eq!(plain.passed().blob_bytes[&blob], size + (1 << 20));
    assert_eq!(sandhaus(&dir, &["image", "validate", "noise"]).code, 0);
}

/// A pull that stands still in the middle of a layer.
fn held_pull(dir: &DataDir, proxy: &Proxy, reference: &str, layer: &Layer) -> Child {
    let child = command(dir)
        .args(["image", "pull", "--name", "held", &proxy.reference(reference)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What has arrived is written down as it comes.
    let blob = layer.digest();
    let partial = dir.path().join("images/partial").join(blob.trim_start_matches("sha256:"));
    settles("the part that came is kept", || {
        partial.metadata().is_ok_and(|metadata| metadata.len() == 1 << 20)
    });
    child
}

#[test]
fn w34_a_half_extracted_layer_is_never_complete() {
    if !runnable("w34_a_half_extracted_layer_is_never_complete") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let layer = noise_layer("noise", 11);
    let base = busybox_layer();
    let image = OciImage::native(vec![base.clone(), layer.clone()], &json!({}));
    registry.push("noise", "1", &image);
    let size = layer.blob.len() as u64;
    let dir = DataDir::new();

    let slow = Proxy::start(&registry, Rules { hold_after: Some(1 << 20), ..Rules::default() });
    let mut child = held_pull(&dir, &slow, "noise:1", &layer);
    let killed = |child: &mut Child| {
        child.kill().unwrap();
        child.wait().unwrap();
    };
    killed(&mut child);
    let listed = sandhaus(&dir, &["image", "list"]);
    assert!(listed.code == 0 && !listed.stdout.contains("held"), "{}", listed.stdout);
    assert!(sandhaus(&dir, &["run", "--image", "held", "--", "true"]).code != 0);
    assert_eq!(names_in(&dir, "tmp"), Vec::<PathBuf>::new(), "what was half unpacked is gone");
    assert!(names_in(&dir, "layers").iter().all(|layer| !layer.join("tree/noise").exists()));

    // The next pull takes what came, and asks for the rest only.
    let fast = Proxy::start(&registry, Rules::default());
    pulled(&dir, "held", &fast.reference("noise:1"));
    let asked = fast.passed().ranges;
    assert!(asked.contains(&format!("bytes={}-", 1 << 20)), "{asked:?}");
    assert_eq!(fast.passed().blob_bytes[&layer.digest()], size - (1 << 20));
    assert_eq!(sandhaus(&dir, &["image", "validate", "held"]).code, 0);
    assert_eq!(inside(&dir, "held", "stat -c %s /noise"), format!("{LARGE}\n"));

    // What was kept of a part may have been damaged: then all of it is fetched.
    let dir = DataDir::new();
    let slow = Proxy::start(&registry, Rules { hold_after: Some(1 << 20), ..Rules::default() });
    killed(&mut held_pull(&dir, &slow, "noise:1", &layer));
    for partial in names_in(&dir, "partial").into_iter().filter(|path| path.metadata().unwrap().len() > 0) {
        fs_err::OpenOptions::new()
            .write(true)
            .open(partial)
            .unwrap()
            .file()
            .write_all_at(b"spoiled", 1000)
            .unwrap();
    }
    pulled(&dir, "held", &registry.reference("noise:1"));
    assert_eq!(sandhaus(&dir, &["image", "validate", "held"]).code, 0);
}

#[test]
fn an_interrupted_pull_says_that_it_can_go_on() {
    if !runnable("an_interrupted_pull_says_that_it_can_go_on") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let layer = noise_layer("noise", 13);
    registry.push("noise", "1", &OciImage::native(vec![layer.clone()], &json!({})));
    let slow = Proxy::start(&registry, Rules { hold_after: Some(1 << 20), ..Rules::default() });
    let dir = DataDir::new();
    let child = held_pull(&dir, &slow, "noise:1", &layer);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let ran = binary::ran(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.stderr);
    assert!(ran.stderr.contains("goes on from there"), "{}", ran.stderr);
    assert_eq!(names_in(&dir, "tmp"), Vec::<PathBuf>::new(), "it has cleaned up behind itself");
    slow.release();
    pulled(&dir, "held", &slow.reference("noise:1"));
    assert_eq!(slow.passed().ranges, [format!("bytes={}-", 1 << 20)]);
}

#[test]
fn what_is_not_what_its_digest_names_is_refused() {
    if !runnable("what_is_not_what_its_digest_names_is_refused") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let plain = Layer::new(&archive(&[entry("noise", b'0', "", &noise(LARGE, 3))]), Packing::Plain);
    let packed = noise_layer("noise", 5);
    let dir = DataDir::new();
    for (tag, layer) in [("plain", plain), ("packed", packed)] {
        let image = OciImage::native(vec![layer.clone()], &json!({}));
        registry.push("noise", tag, &image);
        let spoiling = Proxy::start(&registry, Rules { spoil: Some(layer.digest()), ..Rules::default() });
        let ran = sandhaus(&dir, &["image", "pull", &spoiling.reference(&format!("noise:{tag}"))]);
        assert!(ran.code != 0 && ran.stderr.contains(&layer.digest()), "{}", ran.stderr);
        // A manifest asked for by another digest is another manifest.
        let other = format!("noise@sha256:{}", "0".repeat(64));
        assert_ne!(sandhaus(&dir, &["image", "pull", &registry.reference(&other)]).code, 0);
    }
    // The archive is as announced, but not what the configuration says it is.
    let honest = noise_layer("honest", 17);
    let lying = OciImage::native(vec![honest], &json!({}));
    let mut swapped = lying.clone();
    swapped.layers = vec![noise_layer("other", 19)];
    registry.push("lying", "1", &swapped);
    let ran = sandhaus(&dir, &["image", "pull", &registry.reference("lying:1")]);
    assert!(ran.code != 0 && ran.stderr.contains("the content of a layer"), "{}", ran.stderr);

    assert_eq!(names_in(&dir, "content"), Vec::<PathBuf>::new());
    assert_eq!(names_in(&dir, "layers"), Vec::<PathBuf>::new());
    assert_eq!(names_in(&dir, "tmp"), Vec::<PathBuf>::new());
    assert_eq!(sandhaus(&dir, &["image", "list"]).stdout.matches("pulled").count(), 0);
}

#[test]
fn concurrent_pulls_fetch_each_blob_once() {
    if !runnable("concurrent_pulls_fetch_each_blob_once") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let shared = noise_layer("shared", 23);
    let first = OciImage::native(vec![busybox_layer(), shared.clone(), noise_layer("first", 29)], &json!({}));
    let second = OciImage::native(vec![shared, noise_layer("second", 31)], &json!({}));
    registry.push("first", "1", &first);
    registry.push("second", "1", &second);
    let proxy = Proxy::start(&registry, Rules { hold_after: Some(64 << 10), ..Rules::default() });
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let http = server.http();
    let pulls: Vec<_> = (0..2)
        .map(|_| {
            let (http, reference) = (http.clone(), proxy.reference("first:1"));
            std::thread::spawn(move || pull_events(&http, &json!({"reference": reference, "name": "server"})))
        })
        .collect();
    let children: Vec<Child> = ["first:1", "first:1", "second:1"]
        .iter()
        .enumerate()
        .map(|(index, reference)| {
            let name = format!("cli{index}");
            let mut pull = command(&dir);
            pull.args(["image", "pull", "--name", &name, &proxy.reference(reference)]);
            pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    // All layers stand still once each has begun, so that the pulls meet.
    settles("each layer has begun", || proxy.passed().blob_answers.len() >= 5);
    proxy.release();
    for child in children {
        let ran = binary::ran(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
    }
    for pull in pulls {
        let events = pull.join().unwrap();
        assert_eq!(events.last().unwrap().0, "done", "{events:?}");
    }
    let answers = proxy.passed().blob_answers;
    assert_eq!(answers.len(), 6, "four layers and two configurations");
    assert!(answers.values().all(|count| *count == 1), "{answers:?}");
    let images = http.get("/v1/images").expect(200).json::<Value>();
    assert_eq!(images["images"].as_array().unwrap().len(), 5);
    assert_eq!(names_in(&dir, "partial"), Vec::<PathBuf>::new());
    server.stop();
}

#[test]
fn the_server_pulls_inspects_and_removes() {
    if !runnable("the_server_pulls_inspects_and_removes") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let run = json!({"Env": ["A=b"], "User": "app", "Cmd": ["true"]});
    registry.push("app", "1", &OciImage::native(vec![busybox_layer()], &run));
    let closed = Registry::start(Access::Password);
    closed.push("closed", "1", &OciImage::native(vec![busybox_layer()], &json!({})));
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let http = server.http();

    let refused = http.post("/v1/sessions", &json!({"image": "app"}));
    assert_eq!((refused.status, refused.error_code().as_str()), (400, "INVALID_IMAGE"));
    assert!(refused.text().contains("sandhaus image pull"), "{}", refused.text());

    let events = pull_events(&http, &json!({"reference": registry.reference("app:1")}));
    assert!(events.iter().any(|(event, _)| event == "progress"), "{events:?}");
    let (event, done) = events.last().unwrap();
    assert_eq!((event.as_str(), &done["name"], &done["kind"]), ("done", &json!("app"), &json!("pulled")));
    let details = http.get("/v1/images/app").expect(200).json::<Value>();
    assert_eq!(
        (&details["env"]["A"], &details["user"], &details["cmd"]),
        (&json!("b"), &json!("app"), &json!(["true"]))
    );
    let session = Session::create(&http, &json!({"image": "app"}));
    assert_eq!(session.output("echo $A; id -u; cat /etc/marker"), "b\n1000\nimported");

    let events = pull_events(&http, &json!({"reference": closed.reference("closed:1")}));
    assert_eq!(
        (events.last().unwrap().0.as_str(), &events.last().unwrap().1["error_code"]),
        ("error", &json!("FORBIDDEN"))
    );
    let (user, password) = USER;
    let known = json!({"reference": closed.reference("closed:1"), "username": user, "password": password});
    assert_eq!(pull_events(&http, &known).last().unwrap().0, "done");
    let events = pull_events(&http, &json!({"reference": registry.reference("absent:1")}));
    assert_eq!(events.last().unwrap().1["error_code"], "IMAGE_NOT_FOUND");
    for bad in ["", "Not A Reference", "a@sha256:00"] {
        assert_eq!(http.post("/v1/images/pull", &json!({"reference": bad})).status, 400, "{bad}");
    }

    let pruned = http.post("/v1/images/prune", &json!({"all": true})).expect(200).json::<Value>();
    assert_eq!(pruned["names"], json!(["closed"]), "what a session stands on stays");
    session.delete();
    http.delete("/v1/images/app").expect(200);
    assert_eq!(http.get("/v1/images/app").status, 404);
    server.stop();
}

#[test]
fn w12_layers_write_nothing_outside_their_own_tree() {
    if !runnable("w12_layers_write_nothing_outside_their_own_tree") {
        return;
    }
    let outside = tempfile::Builder::new().prefix("canary-").tempdir_in("/var/tmp").unwrap();
    let canary = outside.path().join("canary");
    fs_err::write(&canary, "untouched").unwrap();
    let place = outside.path().to_str().unwrap();
    let canary_path = canary.to_str().unwrap();
    let climbing = format!("../../../../../../../../../..{place}/planted");
    let hidden = format!("../../../../../../../../../..{place}/.wh.canary");
    let absolute = format!("{place}/planted");
    let file = |name, content| entry(name, b'0', "", content);
    let attacks: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("a file through a link", vec![archive(&[entry("l", b'2', place, b""), file("l/planted", b"x")])]),
        (
            "a file through a link of the layer below",
            vec![archive(&[entry("l", b'2', place, b"")]), archive(&[file("l/planted", b"x")])],
        ),
        ("a name that climbs", vec![archive(&[file(&climbing, b"x")])]),
        ("an absolute name", vec![archive(&[file(&absolute, b"x")])]),
        ("a hard link out", vec![archive(&[entry("h", b'1', canary_path, b""), file("h", b"spoiled")])]),
        (
            "a hard link through a link",
            vec![archive(&[entry("l", b'2', place, b""), entry("h", b'1', "l/canary", b"")])],
        ),
        ("a whiteout that climbs", vec![archive(&[file(&hidden, b"")])]),
        (
            "a whiteout through a link",
            vec![archive(&[entry("l", b'2', place, b""), file("l/.wh.canary", b"")])],
        ),
        ("a whiteout of the way up", vec![archive(&[file("a/.wh...", b""), file("a/.wh..", b"")])]),
        (
            "an opaque folder through a link",
            vec![archive(&[entry("l", b'2', place, b""), file("l/.wh..wh..opq", b"")])],
        ),
    ];
    let registry = Registry::start(Access::Open);
    let dir = DataDir::new();
    let before = (outside.path().metadata().unwrap().mode(), canary.metadata().unwrap().ino());
    for (number, (what, layers)) in attacks.into_iter().enumerate() {
        let mut stack = vec![busybox_layer()];
        stack.extend(layers.iter().map(|layer| Layer::new(layer, Packing::Gzip)));
        let tag = number.to_string();
        registry.push("evil", &tag, &OciImage::native(stack, &json!({})));
        let ran =
            sandhaus(&dir, &["image", "pull", "--name", "evil", &registry.reference(&format!("evil:{tag}"))]);
        assert_eq!(fs_err::read_to_string(&canary).unwrap(), "untouched", "{what}");
        assert_eq!(fs_err::read_dir(outside.path()).unwrap().count(), 1, "{what}");
        let after = (outside.path().metadata().unwrap().mode(), canary.metadata().unwrap().ino());
        assert_eq!((after, canary.metadata().unwrap().nlink()), (before, 1), "{what}");
        let mut names = [0; 256];
        assert_eq!(rustix::fs::listxattr(outside.path(), &mut names[..]).unwrap(), 0, "{what}");
        // Taken or refused: a sandbox of it sees nothing of the host either.
        if ran.code == 0 {
            let shown = inside(&dir, "evil", "cat /l/canary /h /c 2>/dev/null; true");
            assert!(!shown.contains("untouched"), "{what}");
            assert_eq!(sandhaus(&dir, &["image", "rm", "evil"]).code, 0);
        }
    }
    assert_eq!(names_in(&dir, "tmp"), Vec::<PathBuf>::new());
    // A name from outside is no path: nothing but a catalogue's own things can be removed by it.
    for name in ["../..", "..", "/", "../../etc", "evil/../../x"] {
        assert_ne!(sandhaus(&dir, &["image", "rm", name]).code, 0, "{name}");
        assert_ne!(
            sandhaus(&dir, &["image", "pull", "--name", name, &registry.reference("evil:0")]).code,
            0,
            "{name}"
        );
    }
}

#[test]
fn an_exported_image_comes_back_the_same() {
    if !runnable("an_exported_image_comes_back_the_same") {
        return;
    }
    let registry = Registry::start(Access::Open);
    let run = json!({"Env": ["A=b"], "Cmd": ["/bin/echo", "hello"], "WorkingDir": "/data"});
    let image = OciImage::native(vec![rich_layer(), changing_layer()], &run);
    registry.push("app", "1", &image);
    let dir = DataDir::new();
    pulled(&dir, "app", &registry.reference("app:1"));
    let files = "cd /; find data replaced private file-to-dir dir-to-file etc/marker | sort | \
        while read f; do stat -c '%n %F %a %u:%g' $f; [ -d $f ] || stat -c %h $f; done; find data -type f ! -name sparse | sort | xargs md5sum";
    let whole = inside(&dir, "app", files);
    assert!(
        whole.contains("data/kept/same regular file")
            && whole.contains("private directory 2710 77:78")
            && !whole.contains("data/gone"),
        "{whole}"
    );

    let folder = tempfile::tempdir().unwrap();
    for name in ["app.tar", "app.tar.gz", "app.tar.zst", "app.oci.tar"] {
        let path = folder.path().join(name);
        let path = path.to_str().unwrap();
        let ran = sandhaus(&dir, &["image", "export", "app", path]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let ran = sandhaus(&dir, &["image", "import", "--replace", "back", path]);
        assert_eq!(ran.code, 0, "{name}: {}", ran.stderr);
        assert_eq!(inside(&dir, "back", files), whole, "{name}");
    }
    assert_eq!(sandhaus(&dir, &["run", "--image", "back"]).stdout, "hello\n", "an OCI image says how to run");
    let unpacked = folder.path().join("layout");
    fs_err::create_dir(&unpacked).unwrap();
    let archive = folder.path().join("app.oci.tar");
    assert!(
        Command::new("tar").arg("-C").arg(&unpacked).arg("-xf").arg(&archive).status().unwrap().success()
    );
    let saved = folder.path().join("saved");
    fs_err::create_dir(&saved).unwrap();
    image.save(&saved);
    for source in [&unpacked, &saved] {
        let ran = sandhaus(
            &dir,
            &["image", "import", "--replace", "--name", "back", "--tar", source.to_str().unwrap()],
        );
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(inside(&dir, "back", files), whole, "{}", source.display());
        assert_eq!(sandhaus(&dir, &["run", "--image", "back"]).stdout, "hello\n");
    }
    let piped = command(&dir).args(["image", "export", "--format", "tar", "app", "-"]).output().unwrap();
    assert_eq!(piped.stdout, fs_err::read(folder.path().join("app.tar")).unwrap());
    assert_ne!(sandhaus(&dir, &["image", "export", "host", "/nonexistent/host.tar"]).code, 0);
    assert_ne!(sandhaus(&dir, &["image", "export", "app", "noending"]).code, 0);
}

#[test]
fn no_program_is_started_for_an_image() {
    let name = "no_program_is_started_for_an_image";
    if !runnable(name) {
        return;
    }
    if Command::new("strace").args(["--", "true"]).output().is_ok_and(|ran| !ran.status.success()) {
        return skip(name, "this host lets nobody trace");
    }
    let registry = Registry::start(Access::Password);
    let image = OciImage::native(vec![rich_layer(), changing_layer()], &json!({}));
    registry.push("app", "1", &image);
    let dir = DataDir::new();
    let folder = tempfile::tempdir().unwrap();
    let docker = folder.path().join("docker");
    fs_err::create_dir(&docker).unwrap();
    let (user, password) = USER;
    let address = registry.address().to_string();
    let auths =
        json!({"auths": {address: {"username": user, "password": password}}, "credsStore": "elsewhere"});
    fs_err::write(docker.join("config.json"), auths.to_string()).unwrap();
    let packed = folder.path().join("app.tar.gz");
    let packed = packed.to_str().unwrap();
    let reference = registry.reference("app:1");
    for arguments in [
        &["image", "pull", reference.as_str()][..],
        &["image", "export", "app", packed],
        &["image", "import", "back", packed],
        &["image", "validate", "app", "back"],
        &["image", "rm", "app", "back"],
    ] {
        let trace = folder.path().join("trace");
        let plain = command(&dir);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-e", "trace=execve,execveat", "-o"]).arg(&trace).arg("--");
        traced.arg(plain.get_program()).args(plain.get_args()).args(arguments).env("DOCKER_CONFIG", &docker);
        let ran = binary::run(traced.current_dir("/"));
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.stderr);
        let started = fs_err::read_to_string(&trace).unwrap();
        let started: Vec<&str> = started.lines().filter(|line| line.contains("exec")).collect();
        assert_eq!(started.len(), 1, "{arguments:?}: {started:#?}");
    }
}
