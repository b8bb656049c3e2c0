//! What is put into a guest's root file system so that the host can speak to it: the agent, its service, the network as
//! every virtual machine has it, and a user.
//!
//! Decided from a few facts about the tree, as a list; how it gets there is for whoever writes the tree.

use crate::{Account, Result, WORKLOAD_HOME, WORKLOAD_ID, scaffold};

/// Where the agent lies in a guest.
pub(crate) const AGENT_PATH: &str = "usr/local/bin/sandhaus-agent";

/// Login name of the user that people and programs work as, if the tree has none with that id.
pub(crate) const USER_NAME: &str = "daytona";

/// The agent's service.
const UNIT: &str = "\
[Unit]
Description=Agent of the sandbox
# It is what the host steers the machine by: it is started again however often it ends.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/usr/local/bin/sandhaus-agent --guest --network
Restart=always
RestartSec=1
User=root
OOMScoreAdjust=-900
LimitNOFILE=1048576
TasksMax=infinity
StandardOutput=journal+console

[Install]
WantedBy=multi-user.target
";

/// The network, where systemd looks after it. Nobody waits for it: it is there at once.
const NETWORK: &str = "\
[Match]
MACAddress=02:53:48:00:00:02

[Link]
RequiredForOnline=no

[Network]
Address=192.168.0.2/24
Gateway=192.168.0.1
DNS=192.168.0.1
IPv6AcceptRA=no
LinkLocalAddressing=no
";

const RESOLV: &str = "nameserver 192.168.0.1\n";

/// Units of an installed Debian that wake up on their own and work on the whole system: a sandbox has no nights.
const UNWANTED_UNITS: &[&str] = &[
    "etc/systemd/system/apt-daily.timer",
    "etc/systemd/system/apt-daily-upgrade.timer",
    "etc/systemd/system/e2scrub_all.timer",
    "etc/systemd/system/e2scrub_reap.service",
];

/// What keeps a Debian that was installed for sandboxes from working on its own.
pub(crate) fn quiet_pieces() -> impl Iterator<Item = Piece> {
    UNWANTED_UNITS.iter().map(|path| Piece { path, content: Content::Link("/dev/null") })
}

/// Where the facts of a tree are read.
pub(crate) trait Look {
    /// A small file; `None` if it is not there or is no regular file.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>>;
    /// Whether there is a regular file.
    fn has(&self, path: &str) -> Result<bool>;
}

/// What goes on in a guest once its root is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InitSystem {
    /// systemd, with the agent as a service.
    Systemd,
    /// The agent itself.
    Agent,
}

impl InitSystem {
    /// What a tree has.
    pub(crate) fn of(tree: &dyn Look) -> Result<Self> {
        let systemd = tree.has("lib/systemd/systemd")? || tree.has("usr/lib/systemd/systemd")?;
        Ok(if systemd && tree.has("sbin/init")? { Self::Systemd } else { Self::Agent })
    }
}

/// Something to be written; what has its name already gives way, but for directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Path within the tree, without a slash at its start. Always a constant of ours.
    pub(crate) path: &'static str,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// A directory with these permissions and this owner. One that is there stays as it is.
    Directory(u32, u32),
    /// A file of root's with these permissions.
    File(u32, Vec<u8>),
    /// A symbolic link.
    Link(&'static str),
}

/// What a tree must be given, in an order in which it can be written.
pub(crate) fn pieces(tree: &dyn Look, init: InitSystem, agent: &[u8]) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut add = |path, content| pieces.push(Piece { path, content });
    let text = |permissions, text: &str| Content::File(permissions, text.as_bytes().to_vec());
    for path in
        ["dev", "etc", "proc", "sys", "run", "tmp", "home", "root", "usr", "usr/local", "usr/local/bin"]
    {
        let permissions = match path {
            "tmp" => 0o1777,
            "root" => 0o700,
            _ => 0o755,
        };
        add(path, Content::Directory(permissions, 0));
    }
    add("etc/resolv.conf", text(0o644, RESOLV));
    if !tree.has("etc/hosts")? {
        add("etc/hosts", text(0o644, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"));
    }
    if init == InitSystem::Systemd {
        add(AGENT_PATH, Content::File(0o755, agent.to_vec()));
        for path in [
            "etc/systemd",
            "etc/systemd/system",
            "etc/systemd/system/multi-user.target.wants",
            "etc/systemd/network",
        ] {
            add(path, Content::Directory(0o755, 0));
        }
        add("etc/systemd/system/sandhaus-agent.service", text(0o644, UNIT));
        add(
            "etc/systemd/system/multi-user.target.wants/sandhaus-agent.service",
            Content::Link("/etc/systemd/system/sandhaus-agent.service"),
        );
        add("etc/systemd/network/10-sandhaus.network", text(0o644, NETWORK));
        // Empty, each machine makes its own; with one of the image all would share it.
        add("etc/machine-id", text(0o444, ""));
    }
    let (passwd, group) = (tree.read("etc/passwd")?, tree.read("etc/group")?);
    let shell = if tree.has("bin/bash")? { "/bin/bash" } else { "/bin/sh" };
    let accounts =
        scaffold::with_user(passwd.as_deref(), group.as_deref(), (USER_NAME, "/home/daytona"), shell);
    let known = passwd.as_deref().and_then(|passwd| Account::find(&WORKLOAD_ID.to_string(), passwd, b""));
    if known.is_none_or(|known| known.home == "/home/daytona" || known.home == "/") {
        add("home/daytona", Content::Directory(0o755, WORKLOAD_ID));
    }
    add("etc/passwd", Content::File(0o644, accounts.passwd));
    add("etc/group", Content::File(0o644, accounts.group));
    debug_assert_eq!(WORKLOAD_HOME, "/home/sandbox");
    add("home/sandbox", Content::Directory(0o755, WORKLOAD_ID));
    add("workspace", Content::Directory(0o755, WORKLOAD_ID));
    if tree.has("usr/bin/sudo")? {
        add("etc/sudoers.d", Content::Directory(0o750, 0));
        add("etc/sudoers.d/90-sandhaus", text(0o440, "#1000 ALL=(ALL:ALL) NOPASSWD:ALL\n"));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Files(BTreeMap<&'static str, &'static str>);

    impl Look for Files {
        fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
            Ok(self.0.get(path).map(|content| content.as_bytes().to_vec()))
        }

        fn has(&self, path: &str) -> Result<bool> {
            Ok(self.0.contains_key(path))
        }
    }

    fn text(pieces: &[Piece], path: &str) -> Option<String> {
        pieces.iter().find(|piece| piece.path == path).map(|piece| match &piece.content {
            Content::File(_, content) => String::from_utf8(content.clone()).expect("text"),
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn a_tree_with_systemd_gets_a_service() {
        let tree = Files(BTreeMap::from([
            ("usr/lib/systemd/systemd", ""),
            ("sbin/init", ""),
            ("bin/bash", ""),
            ("usr/bin/sudo", ""),
            ("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
            ("etc/group", "root:x:0:\n"),
        ]));
        assert_eq!(InitSystem::of(&tree).unwrap(), InitSystem::Systemd);
        let pieces = pieces(&tree, InitSystem::Systemd, b"agent").unwrap();
        assert_eq!(text(&pieces, AGENT_PATH).unwrap(), "agent");
        assert!(
            text(&pieces, "etc/systemd/system/sandhaus-agent.service").unwrap().contains("Restart=always")
        );
        let passwd = text(&pieces, "etc/passwd").unwrap();
        assert_eq!(passwd, "root:x:0:0:root:/root:/bin/bash\ndaytona:*:1000:1000::/home/daytona:/bin/bash\n");
        assert!(text(&pieces, "etc/group").unwrap().ends_with("daytona:x:1000:\n"));
        assert!(text(&pieces, "etc/sudoers.d/90-sandhaus").is_some());
        assert_eq!(text(&pieces, "etc/machine-id").unwrap(), "");
        // Everything lies in a directory that comes before it, or that every tree has.
        for (index, piece) in pieces.iter().enumerate() {
            let Some((parent, _)) = piece.path.rsplit_once('/') else { continue };
            assert!(
                pieces[..index].iter().any(|before| before.path == parent),
                "{} has no parent",
                piece.path
            );
        }
    }

    #[test]
    fn a_tree_without_an_init_system_runs_the_agent() {
        let tree = Files(BTreeMap::from([(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh\n",
        )]));
        assert_eq!(InitSystem::of(&tree).unwrap(), InitSystem::Agent);
        let pieces = pieces(&tree, InitSystem::Agent, b"agent").unwrap();
        assert!(text(&pieces, "etc/systemd/system/sandhaus-agent.service").is_none());
        assert!(text(&pieces, "etc/sudoers.d/90-sandhaus").is_none());
        let passwd = text(&pieces, "etc/passwd").unwrap();
        assert!(!passwd.contains(USER_NAME), "the tree's own user 1000 stays: {passwd}");
        assert!(text(&pieces, "home/daytona").is_none());
    }
}
