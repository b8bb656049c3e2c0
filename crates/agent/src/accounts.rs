//! Users and groups by name, read from the files themselves: a static program has no name service.

use std::fs;

/// A register of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    /// `/etc/passwd`.
    Users,
    /// `/etc/group`.
    Groups,
}

impl Register {
    fn path(self) -> &'static str {
        match self {
            Self::Users => "/etc/passwd",
            Self::Groups => "/etc/group",
        }
    }
}

/// The number of a user or group given by number or by name.
pub(crate) fn find(register: Register, name: &str) -> Result<u32, ()> {
    // The last number means "as it is" to the kernel.
    if let Ok(number) = name.parse() {
        return if number == u32::MAX { Err(()) } else { Ok(number) };
    }
    find_in(&fs::read_to_string(register.path()).unwrap_or_default(), name).ok_or(())
}

/// The names of users or groups with these numbers; empty where there is none.
pub(crate) fn names_of(register: Register, numbers: &[u32]) -> Vec<String> {
    names_in(&fs::read_to_string(register.path()).unwrap_or_default(), numbers)
}

fn names_in(text: &str, numbers: &[u32]) -> Vec<String> {
    let name = |number: &u32| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse() == Ok(*number)).then(|| name.to_owned())
        })
    };
    numbers.iter().map(|number| name(number).unwrap_or_default()).collect()
}

/// The third field of the line that starts with `name`.
fn find_in(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whole() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\nuser:x:1000:100::/home/user:\n";
        assert_eq!(find_in(text, "user"), Some(1000));
        assert_eq!(find_in(text, "use"), None);
        assert_eq!(find_in(text, "broken"), None);
        assert_eq!(names_in(text, &[1000, 5, 0]), ["user", "", "root"]);
        assert_eq!(find(Register::Groups, "12"), Ok(12));
    }
}
