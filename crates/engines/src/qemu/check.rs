//! What `doctor` is told of virtual machines, found out anew.

use std::path::Path;

use super::{
    Accelerator, AcceleratorChoice, image_tool,
    probe::{MEMORY_SNAPSHOT_VERSION, Probe},
};
use crate::namespace::{CheckLevel, HostCheck};

/// Tries the QEMU `binary`, and says what machines it would run.
pub async fn check_machines(binary: &Path, accelerator: AcceleratorChoice) -> HostCheck {
    let check = |level, found, remedy: Option<&str>| HostCheck {
        name: "virtual machines",
        level,
        found,
        remedy: remedy.map(str::to_owned),
    };
    let shown = binary.display();
    let known = match Probe::new(binary, None, accelerator).find_out().await {
        Ok(known) => known,
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            let found = format!("{shown} cannot be used: {error}{}", source.unwrap_or_default());
            return check(
                CheckLevel::Warn,
                found,
                Some("install qemu-system-x86, or say where it is: qemu.binary"),
            );
        }
    };
    let found = format!("QEMU {}, {} with {}", known.version, known.machine, known.cpu);
    let found = match (known.accelerator, &known.emulated_because) {
        (Accelerator::Kvm, _) => format!("{found}, run by the processor"),
        (Accelerator::Tcg, None) => format!("{found}, emulated"),
        (Accelerator::Tcg, Some(why)) => format!("{found}, emulated, which is slow: {why}"),
    };
    if known.version < MEMORY_SNAPSHOT_VERSION {
        let found = format!("{found}; no memory snapshots");
        let remedy =
            format!("install QEMU {MEMORY_SNAPSHOT_VERSION} or later (Debian has it among its backports)");
        return check(CheckLevel::Warn, found, Some(&remedy));
    }
    if !image_tool::is_installed() {
        let found = format!("{found}; qemu-img is missing");
        return check(
            CheckLevel::Warn,
            found,
            Some("install qemu-utils: snapshots cannot be packed without it"),
        );
    }
    check(CheckLevel::Ok, found, None)
}
