//! Disks: chains of qcow2 files.
