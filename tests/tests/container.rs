//! The profile `container` on a whole distribution: what people do as root in a container works.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use sandhaus_tests::{
    binary, cache_dir, runnable,
    server::{DataDir, Server},
    session::Session,
    skip,
};
use serde_json::json;

/// Packages beyond the minimal system.
const PACKAGES: &str = "sudo,python3-minimal";

/// A minimal Debian as an archive, made once per target folder; `None` where the tool or the mirror is missing.
fn debian(name: &str) -> Option<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _guard = MAKING.lock().expect("nobody panics while making it");
    let made = cache_dir().join("debian.tar");
    if made.exists() {
        return Some(made);
    }
    let unfinished = cache_dir().join(format!("debian-{}.tar", std::process::id()));
    let output = Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--include", PACKAGES])
        .args(["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
        .arg("bookworm")
        .arg(&unfinished)
        .output();
    match output {
        Ok(output) if output.status.success() => {
            fs_err::rename(&unfinished, &made).expect("put the archive in place");
            Some(made)
        }
        Ok(output) => {
            skip(name, &format!("no Debian tree: {}", String::from_utf8_lossy(&output.stderr).trim()));
            None
        }
        Err(error) => {
            skip(name, &format!("mmdebstrap does not start: {error}"));
            None
        }
    }
}

/// A package of one script, built with the host's own tools.
fn package(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    fs_err::create_dir_all(root.join("DEBIAN")).unwrap();
    fs_err::create_dir_all(root.join("usr/bin")).unwrap();
    let control = "Package: sandhaus-proof\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@localhost>\n\
                   Depends: sudo\nDescription: proves that packages install\n";
    fs_err::write(root.join("DEBIAN/control"), control).unwrap();
    let configure = "#!/bin/sh\nset -e\nadduser --system --group --no-create-home proof >/dev/null 2>&1 || useradd -r proof\n\
                     touch /var/lib/proof; chown proof /var/lib/proof\n";
    fs_err::write(root.join("DEBIAN/postinst"), configure).unwrap();
    fs_err::write(root.join("usr/bin/proof"), "#!/bin/sh\necho installed as $(id -un)\n").unwrap();
    for script in ["DEBIAN/postinst", "usr/bin/proof"] {
        fs_err::set_permissions(root.join(script), Permissions::from_mode(0o755)).unwrap();
    }
    let built = folder.join("proof.deb");
    let output = Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(&root)
        .arg(&built)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    built
}

#[test]
fn root_of_a_debian_installs_packages_and_gives_files_away() {
    let name = "root_of_a_debian_installs_packages_and_gives_files_away";
    if !runnable(name) {
        return;
    }
    let Some(archive) = debian(name) else { return };
    let dir = DataDir::new();
    let ran = binary::run(binary::command(dir.path()).args(["image", "import", "debian"]).arg(&archive));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let server = Server::start(&dir);
    let request = json!({"image": "debian", "security": "container", "readonly_root": false});
    let session = Session::create(&server.http(), &request);

    assert_eq!(session.output("id -u; grep ^PRETTY /etc/os-release | grep -c Debian"), "0\n1");
    assert_eq!(
        session.output("touch /root/f; chown 1000:1000 /root/f; stat -c '%u %g' /root/f"),
        "1000 1000"
    );
    assert_eq!(
        session.output("stat -c '%u %a' /usr/bin/sudo /etc/shadow /usr/bin/passwd"),
        "0 4755\n0 640\n0 4755"
    );
    session.output("echo 'sandbox ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/sandbox");
    assert_eq!(session.output("sudo -u sandbox id -un; su sandbox -s /bin/sh -c 'sudo id -u'"), "sandbox\n0");
    assert_eq!(session.output("useradd -m dora; su dora -c 'cd; echo mine > f; stat -c %U f'"), "dora");

    let folder = tempfile::tempdir().unwrap();
    session.write("proof.deb", &fs_err::read(package(folder.path())).unwrap());
    let installed =
        session.exec("DEBIAN_FRONTEND=noninteractive apt-get install -y /workspace/proof.deb 2>&1");
    assert_eq!(installed.exit_code, 0, "{}", installed.output);
    assert_eq!(session.output("proof; stat -c %U /var/lib/proof"), "installed as root\nproof");
    assert_eq!(session.output("dpkg -s sandhaus-proof | grep ^Status"), "Status: install ok installed");
    assert_eq!(
        session.output(
            "apt-get purge -y sandhaus-proof > /dev/null 2>&1; ls /usr/bin/proof 2>/dev/null; echo gone"
        ),
        "gone"
    );

    // A second sandbox of the image starts from the image, and the first one's changes are its own.
    let other = Session::create(&server.http(), &request);
    assert_eq!(other.output("ls /home; test -e /root/f || echo fresh"), "sandbox\nfresh");

    // Under the strict profile the same tree runs, but setuid programs give nothing.
    let strict = Session::create(&server.http(), &json!({"image": "debian", "security": "strict"}));
    assert_ne!(strict.exec("sudo -n true").exit_code, 0);
    assert_eq!(strict.output("id -u; python3 -c 'print(6*7)'"), "1000\n42");
    assert_ne!(strict.exec("cat /etc/shadow").exit_code, 0);
    for session in [&session, &other, &strict] {
        session.delete();
    }
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_stopped_sandbox_keeps_its_disk() {
    if !runnable("a_stopped_sandbox_keeps_its_disk") {
        return;
    }
    let dir = DataDir::new();
    let server = Server::start(&dir);
    let http = server.http();
    let session = Session::create(&http, &json!({"security": "container", "readonly_root": false}));
    session.output(
        "echo kept > /workspace/kept; echo kept > /var/kept; echo lost > /dev/shm/lost; sleep 1000 & true",
    );
    http.post(&session.route("/stop"), &json!({})).expect(200);
    assert_eq!(session.info().status, "stopped");
    session.try_exec(&json!({"cmd": "true"})).expect(409);
    assert!(dir.objects().processes.is_empty() && dir.objects().cgroups.is_empty(), "{:#?}", dir.objects());
    let generation = session.info().generation;
    http.post(&session.route("/start"), &json!({})).expect(200);
    assert!(session.info().generation > generation);
    assert_eq!(
        session.output("cat /workspace/kept /var/kept; ls /dev/shm; pgrep -cx sleep; true"),
        "kept\nkept\n0"
    );
    session.delete();

    // A frozen one answers after it is thawed, and can be deleted as it is.
    let session = Session::create(&http, &json!({}));
    session.output("kept=1");
    http.post(&session.route("/pause"), &json!({})).expect(200);
    assert_eq!(session.info().status, "paused");
    http.post(&session.route("/resume"), &json!({})).expect(200);
    assert_eq!(session.output("echo $kept"), "1");
    http.post(&session.route("/pause"), &json!({})).expect(200);
    session.delete();
    server.stop();
    let left = dir.objects();
    assert!(left.is_empty(), "{left:#?}");
}
