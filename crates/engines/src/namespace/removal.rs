//! Removing what a sandbox has filled is the same work for disks and workspaces; the domain has it.

pub(super) use sandhaus_sandbox::removal::remove_tree;
