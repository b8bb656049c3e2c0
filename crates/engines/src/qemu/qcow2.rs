//! The header of qcow2 files, and what qemu-img does with them.
