//! What the command line says about itself: a change of it is a change that users see.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by failing")]

use std::process::Command;

/// Every command, with the subcommands of those that have some.
const COMMANDS: &[&[&str]] = &[
    &[],
    &["init"],
    &["run"],
    &["serve"],
    &["stop"],
    &["ps"],
    &["exec"],
    &["cp"],
    &["logs"],
    &["rm"],
    &["inspect"],
    &["image"],
    &["image", "import"],
    &["image", "list"],
    &["image", "rm"],
    &["image", "tag"],
    &["doctor"],
    &["security"],
    &["config"],
    &["config", "show"],
    &["config", "check"],
    &["config", "schema"],
    &["config", "keys"],
    &["completions"],
    &["man"],
    &["version"],
];

fn help(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sandhaus"))
        .args(command)
        .arg("--help")
        .env_clear()
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}");
    assert!(output.stderr.is_empty(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_explains_itself() {
    for command in COMMANDS {
        let name = ["sandhaus"].iter().chain(*command).copied().collect::<Vec<_>>().join("_");
        insta::assert_snapshot!(name, help(command));
    }
}

/// Nobody adds a command without its help under test.
#[test]
fn every_command_is_listed_here() {
    for parent in [&[][..], &["image"], &["config"]] {
        let text = help(parent);
        let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1);
        for line in listed.take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap();
            if name == "help" {
                continue;
            }
            let command: Vec<&str> = parent.iter().copied().chain([name]).collect();
            assert!(COMMANDS.contains(&command.as_slice()), "{command:?} is not under test");
        }
    }
}
