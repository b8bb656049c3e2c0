//! What the command line says about itself: a change of it is a change that users see.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by failing")]

use std::process::Command;

fn help(command: &[String]) -> String {
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

/// The subcommands that a help text lists.
fn subcommands(text: &str) -> Vec<String> {
    let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1);
    listed
        .take_while(|line| !line.is_empty())
        // Longer descriptions go on further to the right.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_explains_itself() {
    let mut left: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(command) = left.pop() {
        let text = help(&command);
        let name = [&["sandhaus".to_owned()], command.as_slice()].concat().join("_");
        insta::assert_snapshot!(name, text);
        seen += 1;
        left.extend(subcommands(&text).into_iter().map(|name| [command.clone(), vec![name]].concat()));
    }
    assert!(seen > 30, "only {seen} commands were found");
}
