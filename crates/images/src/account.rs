//! Whom an image wants its programs to run as, by its own accounts.

use serde::{Deserialize, Serialize};

/// Ids of an image lie below this.
const IDS_END: u32 = 65536;

/// A user inside, found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Login name; the number where the image has none for it.
    pub name: String,
    /// Home directory.
    pub home: String,
}

impl Account {
    /// Finds what an image's configuration names, `USER[:GROUP]`, each a name or a number, in its account files. `None`
    /// if one of them is a name that nothing has.
    pub(crate) fn find(user: &str, passwd: &[u8], group: &[u8]) -> Option<Self> {
        let (user, wanted_group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (user, None),
        };
        let number = id(user);
        let line = lines(passwd).find(|fields| match number {
            Some(number) => fields.get(2).copied().and_then(id) == Some(number),
            None => fields.first() == Some(&user),
        });
        let field = |index: usize| line.as_ref().and_then(|fields| fields.get(index).copied());
        // Root needs no line of its own.
        let root = (user == "root").then_some(0);
        let uid = number.or_else(|| field(2).and_then(id)).or(root)?;
        let gid = match wanted_group {
            Some(wanted) => match id(wanted) {
                Some(number) => number,
                None => lines(group)
                    .find(|fields| fields.first() == Some(&wanted))
                    .and_then(|fields| fields.get(2).copied().and_then(id))?,
            },
            None => field(3).and_then(id).unwrap_or(0),
        };
        let home = field(5).filter(|home| home.starts_with('/')).unwrap_or("/");
        let name = field(0).map_or_else(|| uid.to_string(), str::to_owned);
        Some(Self { uid, gid, name, home: home.to_owned() })
    }
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id < IDS_END)
}

/// The fields of each line that is text.
fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    file.split(|byte| *byte == b'\n').filter_map(|line| Some(str::from_utf8(line).ok()?.split(':').collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\n\xff:x\nnode:x:1001:1002::/home/node:/bin/sh\nodd:x:7:7::rel:\n";
        let group = b"root:x:0:\nstaff:x:50:\n";
        let found = |user: &str| Account::find(user, passwd, group).map(|a| (a.uid, a.gid, a.name, a.home));
        let some = |uid, gid, name: &str, home: &str| Some((uid, gid, name.to_owned(), home.to_owned()));
        assert_eq!(found("node"), some(1001, 1002, "node", "/home/node"));
        assert_eq!(found("1001"), some(1001, 1002, "node", "/home/node"));
        assert_eq!(found("node:staff"), some(1001, 50, "node", "/home/node"));
        assert_eq!(found("node:12"), some(1001, 12, "node", "/home/node"));
        assert_eq!(found("4000"), some(4000, 0, "4000", "/"));
        assert_eq!(found("4000:staff"), some(4000, 50, "4000", "/"));
        assert_eq!(found("odd"), some(7, 7, "odd", "/"));
        assert_eq!(Account::find("root", b"", b"").map(|root| (root.uid, root.gid)), Some((0, 0)));
        for bad in ["nobody", "node:nobody", "70000", "-1", "", "1:70000"] {
            assert_eq!(found(bad), None, "{bad}");
        }
    }
}
