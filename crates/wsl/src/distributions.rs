//! What `wsl --list --verbose` says.

/// Distributions that other programs made for themselves, by how their names begin.
const OF_OTHERS: &[&str] = &["docker-desktop", "rancher-desktop", "podman-"];

/// A distribution of this Windows user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Distribution {
    pub(crate) name: String,
    /// Version of WSL, 1 or 2.
    pub(crate) version: u32,
    /// Commands without a name go to it.
    pub(crate) is_default: bool,
}

impl Distribution {
    /// Whether it was made by another program for its own purposes.
    pub(crate) fn is_of_others(&self) -> bool {
        OF_OTHERS.iter().any(|start| self.name.starts_with(start))
    }
}

/// Reads the table. Its head and the states are in the user's language; names and versions are not.
pub(crate) fn parse(table: &str) -> Vec<Distribution> {
    table.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Distribution> {
    let line = line.trim();
    let (is_default, rest) = match line.strip_prefix('*') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, line),
    };
    let mut words = rest.split_whitespace();
    let name = words.next()?.to_owned();
    // At least one word of state stands between.
    let version = words.skip(1).last()?.parse().ok().filter(|version| matches!(version, 1 | 2))?;
    Some(Distribution { name, version, is_default })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distribution(name: &str, version: u32, is_default: bool) -> Distribution {
        Distribution { name: name.to_owned(), version, is_default }
    }

    #[test]
    fn the_table_is_read_in_every_language() {
        let english = "  NAME                   STATE           VERSION\r\n* Debian                 Running         2\r\n  \
                       docker-desktop-data    Stopped         2\r\n  Ubuntu-22.04           Stopped         1\r\n";
        assert_eq!(
            parse(english),
            [
                distribution("Debian", 2, true),
                distribution("docker-desktop-data", 2, false),
                distribution("Ubuntu-22.04", 1, false),
            ]
        );
        let german = "  NAME      STATUS             VERSION\n* Debian    Wird ausgeführt    2\n";
        assert_eq!(parse(german), [distribution("Debian", 2, true)]);
    }

    #[test]
    fn messages_are_no_distributions() {
        for text in [
            "",
            "Windows Subsystem for Linux has no installed distributions.\r\nUse 'wsl.exe --list --online' to list \
             available distributions\r\nand 'wsl.exe --install <Distro>' to install.\r\n",
            "Copyright (c) Microsoft Corporation. All rights reserved.\r\nUsage: wsl.exe [Argument] [Options...]",
            "  NAME  STATE  VERSION",
            "Debian 2",
            "* ",
        ] {
            assert_eq!(parse(text), [], "{text}");
        }
    }

    #[test]
    fn those_of_other_programs_are_known() {
        assert!(distribution("docker-desktop", 2, true).is_of_others());
        assert!(distribution("podman-machine-default", 2, true).is_of_others());
        assert!(!distribution("Debian", 2, true).is_of_others());
    }
}
