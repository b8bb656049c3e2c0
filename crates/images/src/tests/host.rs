//! The built-in image.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use super::{assert_no_leftovers, listing, name, quick_directory};
use crate::{Catalogue, Error, Kind, SCAFFOLD_DIRS, TreeBind, host::HostView, store::Store};

#[test]
fn host_is_there_without_an_import() {
    let directory = quick_directory();
    let catalogue = Catalogue::open(directory.path()).unwrap();
    let images = catalogue.list().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].name.as_str(), images[0].kind, images[0].size_bytes), ("host", Kind::Host, 0));
    let tree = catalogue.tree(&name("host")).unwrap();
    assert_eq!(tree, catalogue.tree_by_digest(&images[0].digest).unwrap());

    let [scaffold] = tree.layers.as_slice() else { panic!("{tree:?}") };
    for (path, mode) in SCAFFOLD_DIRS {
        let metadata = fs::symlink_metadata(scaffold.join(path)).unwrap();
        assert!(metadata.is_dir(), "{path}");
        assert_eq!(metadata.mode() & 0o7777, *mode, "{path}");
    }
    for path in ["home/sandbox", "workspace"] {
        let metadata = fs::metadata(scaffold.join(path)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 1000), "{path}");
    }
    assert!(tree.binds.iter().any(|bind| bind.target == Path::new("/usr")));
    for TreeBind { source, target } in &tree.binds {
        assert!(source.is_absolute() && fs::canonicalize(source).unwrap() == *source, "{source:?}");
        let inside = fs::symlink_metadata(scaffold.join(target.strip_prefix("/").unwrap())).unwrap();
        assert_eq!(inside.is_dir(), fs::metadata(source).unwrap().is_dir(), "{target:?}");
    }
    let passwd = fs::read_to_string(scaffold.join("etc/passwd")).unwrap();
    assert!(
        passwd.starts_with("root:x:0:0:") && passwd.contains("\nsandbox:*:1000:1000::/home/sandbox:"),
        "{passwd}"
    );
    assert_no_leftovers(directory.path());
}

#[test]
fn host_view_holds_no_secret() {
    let directory = quick_directory();
    let catalogue = Catalogue::open(directory.path()).unwrap();
    let tree = catalogue.tree(&name("host")).unwrap();
    for secret in [
        "etc/shadow",
        "etc/gshadow",
        "etc/ssh",
        "etc/ssl/private",
        "etc/sudoers",
        "etc/machine-id",
        "etc/pip.conf",
        "etc/npmrc",
        "etc/krb5.keytab",
        "etc/environment",
        "root/.ssh",
        "var/lib/dpkg",
    ] {
        assert!(fs::symlink_metadata(tree.layers[0].join(secret)).is_err(), "{secret}");
    }
    assert!(
        tree.binds.iter().all(|bind| !bind.source.starts_with("/etc") && !bind.source.starts_with("/root"))
    );
    let mode = fs::metadata(directory.path()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o700, "the catalogue is closed to others");
}

/// A host of a few files below a directory.
fn little_host(host: &Path) {
    for path in [
        "usr/bin",
        "usr/lib",
        "usr/share/ca",
        "etc/ssl/certs",
        "etc/ssl/private",
        "etc/python3.11",
        "etc/alternatives",
    ] {
        fs::create_dir_all(host.join(path)).unwrap();
    }
    symlink("usr/bin", host.join("bin")).unwrap();
    // A real directory, as on hosts whose /usr is not merged.
    fs::create_dir(host.join("lib")).unwrap();
    fs::write(host.join("etc/ld.so.cache"), "cache").unwrap();
    fs::write(host.join("etc/services"), "secret services").unwrap();
    fs::set_permissions(host.join("etc/services"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(host.join("etc/shadow"), "root:hash").unwrap();
    fs::write(host.join("etc/ssl/certs/one.pem"), "one").unwrap();
    fs::write(host.join("etc/ssl/certs/hidden.pem"), "hidden").unwrap();
    fs::set_permissions(host.join("etc/ssl/certs/hidden.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("one.pem", host.join("etc/ssl/certs/0a.0")).unwrap();
    fs::write(host.join("etc/python3.11/site.py"), "pass").unwrap();
    fs::write(host.join("usr/lib/os-release"), "NAME=Little").unwrap();
    symlink("../usr/lib/os-release", host.join("etc/os-release")).unwrap();
    symlink("/usr/bin/vim.tiny", host.join("etc/alternatives/vi")).unwrap();
    // A link to what is not public is not followed into a copy.
    fs::create_dir(host.join("closed")).unwrap();
    fs::write(host.join("closed/key"), "key").unwrap();
    fs::set_permissions(host.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("../closed/key", host.join("etc/protocols")).unwrap();
}

#[test]
fn view_of_a_host_that_is_not_merged() {
    let directory = quick_directory();
    let host = fs::canonicalize(directory.path()).unwrap().join("host");
    fs::create_dir(&host).unwrap();
    little_host(&host);
    let catalogue = Catalogue::open_on(&directory.path().join("images"), &host).unwrap();
    let tree = catalogue.tree(&name("host")).unwrap();
    assert_eq!(
        tree.binds,
        [
            TreeBind { source: host.join("usr"), target: "/usr".into() },
            TreeBind { source: host.join("lib"), target: "/lib".into() },
        ]
    );
    let scaffold = &tree.layers[0];
    assert_eq!(fs::read_link(scaffold.join("bin")).unwrap(), Path::new("usr/bin"));
    assert!(fs::symlink_metadata(scaffold.join("lib")).unwrap().is_dir());
    assert!(fs::symlink_metadata(scaffold.join("sbin")).is_err());
    assert_eq!(fs::read_to_string(scaffold.join("etc/ld.so.cache")).unwrap(), "cache");
    assert_eq!(fs::read_to_string(scaffold.join("etc/ssl/certs/one.pem")).unwrap(), "one");
    assert_eq!(fs::read_link(scaffold.join("etc/ssl/certs/0a.0")).unwrap(), Path::new("one.pem"));
    assert_eq!(fs::read_to_string(scaffold.join("etc/python3.11/site.py")).unwrap(), "pass");
    assert_eq!(fs::read_link(scaffold.join("etc/os-release")).unwrap(), Path::new("/usr/lib/os-release"));
    assert_eq!(fs::read_link(scaffold.join("etc/alternatives/vi")).unwrap(), Path::new("/usr/bin/vim.tiny"));
    for left_out in
        ["etc/services", "etc/shadow", "etc/ssl/certs/hidden.pem", "etc/ssl/private", "etc/protocols"]
    {
        assert!(fs::symlink_metadata(scaffold.join(left_out)).is_err(), "{left_out}");
    }
}

#[test]
fn view_follows_the_host_and_leaves_the_old_one() {
    let directory = quick_directory();
    let host = directory.path().join("host");
    fs::create_dir(&host).unwrap();
    little_host(&host);
    let images = directory.path().join("images");
    let first = Catalogue::open_on(&images, &host).unwrap();
    let before = first.tree(&name("host")).unwrap();
    let before_listing = listing(&before.layers[0]);
    let same = Catalogue::open_on(&images, &host).unwrap();
    assert_eq!(same.tree(&name("host")).unwrap(), before, "an unchanged host keeps its view");
    let created = first.get(&name("host")).unwrap();

    fs::write(host.join("etc/ld.so.cache.new"), "changed").unwrap();
    fs::rename(host.join("etc/ld.so.cache.new"), host.join("etc/ld.so.cache")).unwrap();
    let again = Catalogue::open_on(&images, &host).unwrap();
    let after = again.tree(&name("host")).unwrap();
    assert_ne!(after.layers, before.layers);
    assert_eq!(fs::read_to_string(after.layers[0].join("etc/ld.so.cache")).unwrap(), "changed");
    assert_eq!(listing(&before.layers[0]), before_listing, "a sandbox that stands on the old view keeps it");
    assert_eq!(again.get(&name("host")).unwrap(), created, "it is the same image");
}

#[test]
fn running_catalogue_notices_a_changed_host() {
    let directory = quick_directory();
    let host = directory.path().join("host");
    fs::create_dir(&host).unwrap();
    little_host(&host);
    let store = Store::open(&directory.path().join("images")).unwrap();
    let mut view = HostView::open(&store, &host).unwrap();
    let before = view.tree(&store);
    fs::remove_file(host.join("etc/ssl/certs/one.pem")).unwrap();
    assert_eq!(view.tree(&store), before, "within the interval nothing is looked at");
    view.forget_check();
    assert_ne!(view.tree(&store), before);

    // A host that cannot be read any more does not take the view away.
    let kept = view.tree(&store);
    fs::remove_dir_all(&host).unwrap();
    view.forget_check();
    assert_eq!(view.tree(&store), kept);
}

#[test]
fn former_views_do_not_pile_up() {
    let directory = quick_directory();
    let host = directory.path().join("host");
    fs::create_dir(&host).unwrap();
    little_host(&host);
    let store = Store::open(&directory.path().join("images")).unwrap();
    let mut view = HostView::open(&store, &host).unwrap();
    for count in 0..70 {
        fs::write(host.join(format!("etc/python3.11/{count}")), "").unwrap();
        fs::write(host.join(format!("etc/{count}")), "").unwrap();
        view.forget_check();
        view.tree(&store);
    }
    let views =
        fs::read_dir(store.host()).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(views, 65, "the present one and 64 former ones");
    assert!(view.tree(&store).layers[0].join("etc/python3.11/69").exists());
}

#[test]
fn host_is_not_to_be_replaced_or_removed() {
    let directory = quick_directory();
    let catalogue = super::small_catalogue(directory.path());
    let host = name("host");
    assert!(matches!(catalogue.remove(&host, &|_| false), Err(Error::BuiltIn(_))));
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    let options = crate::ImportOptions { replace: true, platform: None };
    assert!(matches!(catalogue.import(&host, &source, &options, &mut |_, _| {}), Err(Error::BuiltIn(_))));
    assert!(matches!(catalogue.tag(&host, &host), Err(Error::BuiltIn(_))));

    let python = name("python");
    let tagged = catalogue.tag(&host, &python).unwrap();
    assert_eq!((tagged.kind, tagged.name.as_str()), (Kind::Host, "python"));
    assert_eq!(catalogue.tree(&python).unwrap(), catalogue.tree(&host).unwrap());
    catalogue.remove(&python, &|_| false).unwrap();
    assert!(matches!(catalogue.tree(&python), Err(Error::NotFound(missing)) if missing == "python"));
    catalogue.tree(&host).unwrap();
}
