//! What the agent does as the first program of a virtual machine's initramfs, where it is `/init`: which modules it
//! loads, and which root it hands over to. Whoever packs the initramfs writes it as JSON beside the agent.
//!
//! The kernel's command line goes over it: `root=` (a device, `UUID=`, `LABEL=` or `PARTUUID=`), `rootfstype=`,
//! `rootflags=`, `ro`, `rw` and `init=` mean what they usually mean.

use serde::{Deserialize, Serialize};

/// Where the agent looks for [`Initramfs`] in its initramfs.
pub const PATH: &str = "/sandhaus-initramfs";

/// Largest document in bytes.
pub const BYTES_MAX: usize = 1 << 16;

/// The initramfs's document.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Initramfs {
    /// Absolute paths of module files within the initramfs, in the order in which they are loaded. Files whose names end in
    /// `.xz`, `.zst` or `.gz` are left to the kernel to decompress, which not every kernel can. A module that does not load
    /// is told on the console and passed over.
    #[serde(default)]
    pub modules: Vec<String>,
    /// The root to hand over to; `None` is a guest that lives in its initramfs, with the agent as its first process.
    #[serde(default)]
    pub root: Option<Root>,
}

/// A root file system on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// `/dev/vda`, `UUID=…`, `LABEL=…` or `PARTUUID=…`. Labels and ids are found on ext2 to ext4, xfs and btrfs.
    pub device: String,
    /// Type of the file system; `None` is what its superblock says.
    #[serde(default)]
    pub filesystem: Option<String>,
    /// Options of the file system, as after `mount -o`, without `ro` and `rw`.
    #[serde(default)]
    pub options: String,
    /// What goes on there as the first process.
    pub init: Init,
}

/// The first process of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// The agent itself stays, for a root without an init system. The root needs no agent of its own.
    Agent,
    /// This program, by its absolute path within the root, with these arguments (the first is the path).
    Program(Vec<String>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents() {
        let text = r#"{"modules":["/modules/virtio_blk.ko"],"root":{"device":"/dev/vda","init":{"program":["/sbin/init"]}}}"#;
        let root = Root {
            device: "/dev/vda".to_owned(),
            filesystem: None,
            options: String::new(),
            init: Init::Program(vec!["/sbin/init".to_owned()]),
        };
        let whole = Initramfs { modules: vec!["/modules/virtio_blk.ko".to_owned()], root: Some(root) };
        assert_eq!(serde_json::from_str::<Initramfs>(text).expect("a document"), whole);
        let again = serde_json::to_string(&whole).expect("JSON");
        assert_eq!(serde_json::from_str::<Initramfs>(&again).expect("a document"), whole);
        let own = r#"{"root":{"device":"LABEL=root","init":"agent"}}"#;
        let own: Initramfs = serde_json::from_str(own).expect("a document");
        assert_eq!(own.root.map(|root| root.init), Some(Init::Agent));
        assert_eq!(serde_json::from_str::<Initramfs>("{}").expect("a document"), Initramfs::default());
    }
}
