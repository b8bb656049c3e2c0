//! The program where it has no business.
#![cfg(unix)]

use std::process::Command;

#[test]
fn on_linux_it_refuses_and_names_what_to_use() {
    let output = Command::new(env!("CARGO_BIN_EXE_sandhaus-wsl")).arg("start").output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("runs on Windows") && said.contains("sandhaus daemon -d"), "{said}");
}
