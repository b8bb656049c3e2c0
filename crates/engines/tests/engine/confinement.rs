//! What is tried from inside and must not work, under both profiles.

use std::{
    collections::BTreeMap,
    os::unix::fs::{chown, symlink},
};

use crate::support::{Host, probe, sh};
use sandhaus_sandbox::{
    engine::{Engine, StopMode},
    types::{Generation, SecurityProfile, TreeBind},
};

/// Attempts that may work under `container`: root there may make raw sockets, no more.
const ALLOWED: &[(&str, SecurityProfile)] = &[];

#[tokio::test]
async fn nothing_that_is_refused_works() {
    let host = Host::new().await;
    fs_err::copy(probe(), host.tree.layers[1].join("bin/probe")).expect("copied");
    for security in [SecurityProfile::Strict, SecurityProfile::Container] {
        let spec = host.spec(security);
        let toolbox = host.up(&spec).await;
        let done = crate::support::run(&toolbox, &["/bin/probe"]).await;
        assert_eq!(done.code, 0, "{done:?}");
        let results: BTreeMap<&str, i32> = done
            .stdout
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, errno)| (name, errno.parse().expect("a number")))
            .collect();
        assert!(results.len() >= 45, "the probe went through: {results:#?}");
        for (name, errno) in &results {
            let allowed = ALLOWED.contains(&(*name, security));
            assert!(*errno != 0 || allowed, "{security:?}: {name} worked");
        }
        let expected = |names: &[&str], errno: i32| {
            for name in names {
                assert_eq!(results.get(name), Some(&errno), "{security:?}: {name}");
            }
        };
        expected(
            &["mount", "unshare_user", "setns", "clone_user", "ptrace", "fsopen", "keyctl"],
            libc::EPERM,
        );
        expected(&["clone3", "io_uring_setup", "unknown", "x32_getpid"], libc::ENOSYS);
        expected(&["vsock", "packet", "alg"], libc::EAFNOSUPPORT);
        expected(
            &["read:/proc/1/mem", "read:/proc/1/environ", "enter:/proc/1/root", "enter:/proc/1/fd"],
            libc::EACCES,
        );
    }
    host.end().await;
}

#[tokio::test]
async fn a_process_has_only_its_own_descriptors_and_rights() {
    let host = Host::new().await;
    for security in [SecurityProfile::Strict, SecurityProfile::Container] {
        let spec = host.spec(security);
        let toolbox = host.up(&spec).await;
        let status =
            sh(&toolbox, "grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp|Groups)' /proc/self/status")
                .await;
        let status: BTreeMap<&str, &str> = status
            .stdout
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key, value.trim()))
            .collect();
        let (rights, sealed) = match security {
            SecurityProfile::Strict => (0, "1"),
            // chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
            // sys_chroot, audit_write, setfcap
            SecurityProfile::Container => (0xa004_25fb_u64, "0"),
        };
        for key in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(u64::from_str_radix(status[key], 16), Ok(rights), "{security:?} {key}");
        }
        assert_eq!(u64::from_str_radix(status["CapInh"], 16), Ok(0));
        assert_eq!(u64::from_str_radix(status["CapAmb"], 16), Ok(0));
        assert_eq!((status["NoNewPrivs"], status["Seccomp"]), (sealed, "2"), "{security:?}");
        let open = sh(
            &toolbox,
            "for fd in /proc/self/fd/*; do readlink $fd; done | grep -v -E 'pipe:|socket:|/dev/null|/proc/'",
        )
        .await;
        assert_eq!(open.stdout, "", "{security:?}");
        // Nothing of the host's mounts, cgroups or processes shows.
        assert_eq!(sh(&toolbox, "cut -d: -f3 /proc/self/cgroup | sort -u").await.stdout, "/\n");
        let mounts = sh(&toolbox, "cat /proc/self/mounts").await.stdout;
        assert!(!mounts.contains(&*host.directory.path().to_string_lossy()), "{mounts}");
        let devices = sh(&toolbox, "ls /dev").await.stdout;
        let expected =
            "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
        assert_eq!(devices, expected);
        assert_eq!(
            sh(&toolbox, "ls /sys/firmware /proc/acpi 2>/dev/null | grep -v :").await.stdout.trim(),
            ""
        );
    }
    host.end().await;
}

#[tokio::test]
async fn a_read_only_root_has_its_writable_places() {
    let host = Host::new().await;
    let spec = host.spec(SecurityProfile::Strict);
    let toolbox = host.up(&spec).await;
    for place in ["/workspace", "/tmp", "/home/sandbox", "/dev/shm"] {
        assert_eq!(
            sh(&toolbox, &format!("echo x > {place}/file && rm {place}/file")).await.code,
            0,
            "{place}"
        );
    }
    for place in ["/", "/etc", "/bin", "/dev", "/run", "/root", "/proc/sys/kernel", "/sys"] {
        assert_ne!(sh(&toolbox, &format!("echo x > {place}/file")).await.code, 0, "{place}");
    }
    let loopback = sh(&toolbox, "ip -o addr | grep -c 'inet 127.0.0.1'; ip -o link | wc -l").await;
    assert_eq!(loopback.stdout, "1\n1\n");
    host.end().await;
}

/// The home of the image's own user is one of those places, with what the image has in it; nothing else becomes one by
/// being called a home.
#[tokio::test]
async fn the_home_of_an_image_is_writable() {
    const USER: u32 = sandhaus_images::WORKLOAD_ID;
    let host = Host::new().await;
    let base = &host.tree.layers[1];
    let folder = |path: &str, owner: u32| {
        let path = base.join(path);
        fs_err::create_dir_all(&path).expect("made");
        fs_err::write(path.join("of-the-image"), "kept\n").expect("written");
        for path in [path.join("of-the-image"), path] {
            chown(&path, Some(owner), Some(owner)).expect("given");
        }
    };
    folder("home/node", USER);
    folder("home/other", USER + 1);
    symlink("node", base.join("home/link")).expect("linked");
    let spec_of = |home: &str, security| {
        let mut spec = host.spec(security);
        spec.readonly_root = true;
        let account =
            sandhaus_images::Account { uid: USER, gid: USER, name: "node".to_owned(), home: home.to_owned() };
        spec.tree.config.account = Some(account);
        spec
    };
    let write = |home: &str| format!("cat {home}/of-the-image && echo changed > {home}/of-the-image");
    for security in [SecurityProfile::Strict, SecurityProfile::Container] {
        let mut spec = spec_of("/home/node", security);
        let toolbox = host.up(&spec).await;
        let done = sh(&toolbox, &write("/home/node")).await;
        assert_eq!((done.code, &*done.stdout), (0, "kept\n"), "{security:?}: {done:?}");
        for place in ["/", "/home", "/etc"] {
            assert_ne!(sh(&toolbox, &format!("echo x > {place}/file")).await.code, 0, "{security:?} {place}");
        }
        let place = sh(&toolbox, "echo x > /home/sandbox/file && grep -c ' /home' /proc/self/mounts").await;
        assert_eq!(place.stdout, "2\n", "{security:?}");
        // It is a part of the disk: it is the same after another start, and the image's own stays what it is.
        host.engine.stop(&spec.id, StopMode::Graceful).await.expect("stopped");
        spec.generation = Generation(2);
        let toolbox = host.start(&spec).await;
        assert_eq!(sh(&toolbox, "cat /home/node/of-the-image").await.stdout, "changed\n", "{security:?}");
        let of_the_image = fs_err::read_to_string(base.join("home/node/of-the-image")).expect("read");
        assert_eq!(of_the_image, "kept\n");
    }
    let mut plain = host.spec(SecurityProfile::Container);
    plain.readonly_root = true;
    let count = "wc -l < /proc/self/mounts";
    let mounts = sh(&host.up(&plain).await, count).await.stdout;
    for home in ["/home/link", "/home/other", "/home/node/..", "/home/none", "/", "/etc", "/proc", ""] {
        let toolbox = host.up(&spec_of(home, SecurityProfile::Container)).await;
        assert_eq!(sh(&toolbox, count).await.stdout, mounts, "home {home:?} is a mount");
        let done = sh(&toolbox, &write("/home/node")).await;
        assert_eq!((done.code != 0, &*done.stdout), (true, "kept\n"), "home {home:?}: {done:?}");
    }
    host.end().await;
}

#[tokio::test]
async fn views_of_the_host_are_powerless() {
    let mut host = Host::new().await;
    let source = host.directory.path().join("host");
    fs_err::create_dir(&source).expect("made");
    fs_err::write(source.join("secret"), "secret").expect("written");
    fs_err::set_permissions(source.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("set");
    fs_err::write(source.join("open"), "open").expect("written");
    fs_err::create_dir(host.tree.layers[0].join("view")).expect("made");
    host.tree.binds = vec![TreeBind { source, target: "/view".into() }];
    for security in [SecurityProfile::Strict, SecurityProfile::Container] {
        let spec = host.spec(security);
        let toolbox = host.up(&spec).await;
        assert_eq!(sh(&toolbox, "cat /view/open").await.stdout, "open");
        assert_ne!(sh(&toolbox, "cat /view/secret").await.code, 0, "what only the host's root may read");
        assert_ne!(sh(&toolbox, "echo x > /view/new").await.code, 0);
        let options = sh(&toolbox, "grep ' /view ' /proc/mounts | cut -d' ' -f4").await.stdout;
        assert!(options.starts_with("ro,nosuid,nodev"), "{options}");
        host.engine.destroy(&spec.id).await.expect("destroyed");
    }
    host.end().await;
}
