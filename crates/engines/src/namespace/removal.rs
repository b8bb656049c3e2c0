//! Removing what a sandbox has filled is the same work for disks and workspaces; the domain has it.

pub(crate) use sandhaus_sandbox::removal::remove_tree;
