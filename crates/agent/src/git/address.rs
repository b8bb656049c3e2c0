//! Where a remote is, and who one is for it: passwords are taken out of addresses before anybody sees those.

use crate::error::{Error, Result};

/// Longest address.
const ADDRESS_BYTES_MAX: usize = 8 * 1024;

/// Longest name or password.
const CREDENTIAL_BYTES_MAX: usize = 8 * 1024;

/// Who one is where only a password is given: most hosts ask for some name beside a token, and for none in particular.
const ANY_NAME: &str = "git";

/// Stands for what may not be shown.
const REDACTED: &str = "***";

/// Where a remote is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Without a password.
    pub(super) url: String,
    /// Who one is there. Only for a remote that is reached over HTTP.
    pub(super) credentials: Option<Credentials>,
}

/// A name and a password for one site. They are not to be printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    /// Protocol, host and port, as git names them in its settings.
    pub(super) site: String,
    username: String,
    password: String,
}

/// A name and a password as a request gives them: a part that is missing or empty is not given.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    /// The name.
    pub(super) username: Option<&'a str>,
    /// The password.
    pub(super) password: Option<&'a str>,
}

impl Given<'_> {
    /// Nobody.
    pub(super) const NONE: Self = Self { username: None, password: None };

    fn for_site(self, site: &str) -> Result<Option<Credentials>> {
        let username = self.username.unwrap_or_default();
        let password = self.password.unwrap_or_default();
        for part in [username, password] {
            check_credential(part)?;
        }
        let username = match (username, password) {
            ("", "") => return Ok(None),
            ("", _) => ANY_NAME,
            (username, _) => username,
        };
        Ok(Some(Credentials {
            site: site.to_owned(),
            username: username.to_owned(),
            password: password.to_owned(),
        }))
    }
}

/// Checks a name or password: git reads them line by line.
pub(super) fn check_credential(text: &str) -> Result<()> {
    if text.len() > CREDENTIAL_BYTES_MAX || text.contains(['\n', '\r', '\0']) {
        return Err(Error::invalid(format_args!(
            "a name or password has at most {CREDENTIAL_BYTES_MAX} bytes on one line"
        )));
    }
    Ok(())
}

impl Credentials {
    /// As a credential helper answers.
    pub(super) fn answer(&self) -> String {
        format!("username={}\npassword={}\n", self.username, self.password)
    }

    /// `text` without the password, in whatever form it comes.
    fn redact(&self, text: &str) -> String {
        if self.password.is_empty() {
            return text.to_owned();
        }
        text.replace(&self.password, REDACTED).replace(&percent_encoded(&self.password), REDACTED)
    }
}

impl Address {
    /// Where to clone from: an address without a protocol is one of HTTPS, unless it is a path or one of SSH.
    pub(super) fn of_clone(text: &str, given: Given<'_>) -> Result<Self> {
        let ssh = text.split_once(':').is_some_and(|(place, _)| place.contains('@') && !place.contains('/'));
        let local =
            ["/", "./", "../"].iter().any(|start| text.starts_with(start)) || text == "." || text == "..";
        if text.contains("://") || ssh || local {
            return Self::of_remote(text, given);
        }
        Self::of_remote(&format!("https://{text}"), given)
    }

    /// Where a remote is, word for word but for a password.
    pub(super) fn of_remote(text: &str, given: Given<'_>) -> Result<Self> {
        if text.is_empty() || text.len() > ADDRESS_BYTES_MAX {
            return Err(Error::invalid(format_args!("an address has 1 to {ADDRESS_BYTES_MAX} bytes")));
        }
        if text.starts_with('-') || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Error::invalid("the address is none: it starts with a dash or holds white space"));
        }
        // The name of a helper program in front: git would run it.
        if text.split_once("::").is_some_and(|(helper, _)| helper.bytes().all(|b| b.is_ascii_alphanumeric()))
        {
            return Err(Error::invalid("the address names a helper program instead of a protocol"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self { url: text.to_owned(), credentials: None });
        };
        let scheme = scheme.to_ascii_lowercase();
        match scheme.as_str() {
            "http" | "https" => Self::of_web(&scheme, rest, given),
            "ssh" | "git" | "file" => Ok(Self { url: text.to_owned(), credentials: None }),
            _ => Err(Error::invalid(format_args!(
                "{scheme} is no protocol for repositories: say https, http, ssh, git or file"
            ))),
        }
    }

    fn of_web(scheme: &str, rest: &str, given: Given<'_>) -> Result<Self> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if !is_host(host) {
            return Err(Error::invalid("the address has no usable name of a host"));
        }
        let (username, password) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            Some((username, password)) => (percent_decoded(username)?, percent_decoded(password)?),
            None => (String::new(), String::new()),
        };
        let site = format!("{scheme}://{host}");
        let credentials = match given.for_site(&site)? {
            Some(credentials) => Some(credentials),
            None if password.is_empty() => None,
            None => Given { username: Some(&username), password: Some(&password) }.for_site(&site)?,
        };
        let kept = match username.is_empty() {
            true => String::new(),
            false => format!("{}@", percent_encoded(&username)),
        };
        Ok(Self { url: format!("{scheme}://{kept}{host}{path}"), credentials })
    }
}

/// Whether this is the name or address of a host, perhaps with a port.
pub(super) fn is_host(text: &str) -> bool {
    let name = |text: &str| {
        let of_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        !text.is_empty() && !text.starts_with('-') && text.bytes().all(of_name)
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((inside, port)) if !inside.is_empty() && number(inside) => match port.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if port.is_empty() => (None, None),
            None => return false,
        },
        Some(_) => return false,
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    host.is_none_or(name) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// `text` as it may be shown: without the names and passwords of addresses in it, and without that of these credentials.
pub(super) fn redacted(text: &str, credentials: Option<&Credentials>) -> String {
    let text = credentials.map_or_else(|| text.to_owned(), |credentials| credentials.redact(text));
    replace_users(&text, |_| Some(REDACTED.to_owned()))
}

/// An address without its password.
pub(super) fn without_password(url: &str) -> String {
    replace_users(url, |user| {
        user.split_once(':').map(|(name, _)| name.to_owned()).filter(|name| !name.is_empty())
    })
}

/// Replaces what stands before the `@` of each address in a text, where there is something; `None` takes the `@` along.
fn replace_users(text: &str, replacement: impl Fn(&str) -> Option<String>) -> String {
    const BEFORE_HOST: &str = "://";
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEFORE_HOST) {
        let (before, after) = rest.split_at(at + BEFORE_HOST.len());
        result.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/?#'\"<>".contains(c)).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                let (user, host) = after.split_at(at);
                // A name without a password is one of the address, not a secret, unless the caller thinks so.
                match replacement(user) {
                    Some(text) => {
                        result.push_str(&text);
                        host
                    }
                    None if user.contains(':') => &host[1..],
                    None => {
                        result.push_str(user);
                        host
                    }
                }
            }
            None => after,
        };
    }
    result.push_str(rest);
    result
}

fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut result = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            result.push(char::from(byte));
        } else {
            // Writing into a text does not fail.
            let _ = write!(result, "%{byte:02X}");
        }
    }
    result
}

fn percent_decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = (*first == b'%')
            .then(|| after.get(..2).filter(|two| two.iter().all(u8::is_ascii_hexdigit)))
            .flatten()
            .and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).map_err(|_| Error::invalid("the name in the address is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn clone_of(text: &str) -> Option<(String, Option<String>)> {
        let address = Address::of_clone(text, Given::NONE).ok()?;
        Some((address.url, address.credentials.map(|credentials| credentials.answer())))
    }

    #[test]
    fn addresses_get_a_protocol_and_lose_their_password() {
        let url = |text: &str| clone_of(text).map(|(url, _)| url);
        assert_eq!(url("github.com/a/b").as_deref(), Some("https://github.com/a/b"));
        assert_eq!(url("host:8443/a").as_deref(), Some("https://host:8443/a"));
        for same in
            ["git@github.com:a/b.git", "/srv/a.git", "../a", "file:///a", "ssh://git@host/a", "git://h/a"]
        {
            assert_eq!(url(same).as_deref(), Some(same));
        }
        assert_eq!(
            clone_of("https://us%40er:p%3Ass@host:1/a?b"),
            Some((
                "https://us%40er@host:1/a?b".to_owned(),
                Some("username=us@er\npassword=p:ss\n".to_owned())
            ))
        );
        assert_eq!(clone_of("http://user@host/a"), Some(("http://user@host/a".to_owned(), None)));
        assert_eq!(
            clone_of("https://a:b@c@host/"),
            Some(("https://a@host/".to_owned(), Some("username=a\npassword=b@c\n".to_owned())))
        );
        for wrong in [
            "",
            "-u",
            "--upload-pack=x",
            "ext::sh",
            "fd::3",
            "https://",
            "https://-x/a",
            "https://a b/",
            "ftp://a/b",
            "https://ho$t/",
            "a\nb",
            "https://a:%ff@host/",
            "https://a:%0a@host/",
            "https://:80/",
        ] {
            assert_eq!(clone_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_request_has_the_last_word_on_who_one_is() {
        let given = |username, password| {
            let given = Given { username, password };
            let address = Address::of_clone("https://u:p@host/a", given).ok()?;
            address.credentials.map(|credentials| (credentials.answer(), credentials.site))
        };
        let expected = |text: &str| Some((text.to_owned(), "https://host".to_owned()));
        assert_eq!(given(Some("x"), Some("y")), expected("username=x\npassword=y\n"));
        assert_eq!(given(None, Some("y")), expected("username=git\npassword=y\n"));
        assert_eq!(given(Some(""), None), expected("username=u\npassword=p\n"));
        assert_eq!(given(Some("x\nhost=evil"), Some("y")), None);
        let local = Address::of_clone("/srv/a", Given { username: Some("x"), password: Some("y") });
        assert!(local.is_ok_and(|address| address.credentials.is_none()));
    }

    #[test]
    fn hosts_have_names_and_ports() {
        for right in ["a", "a.b-c_d", "127.0.0.1:80", "[::1]", "[::1]:8443"] {
            assert!(is_host(right), "{right}");
        }
        for wrong in
            ["", "-a", ":80", "a:", "a:x", "a:99999", "a::b", "[]", "[x]", "[::1]a", "a b", "a/b", "a=b", "ä"]
        {
            assert!(!is_host(wrong), "{wrong}");
        }
    }

    #[test]
    fn texts_are_shown_without_secrets() {
        let text =
            "fatal: unable to access 'https://user:p@ss@host/a': no; https://t0ken@host https://host/x@y";
        assert_eq!(
            redacted(text, None),
            "fatal: unable to access 'https://***@host/a': no; https://***@host https://host/x@y"
        );
        let credentials =
            Given { username: None, password: Some("s/ cret") }.for_site("https://h").ok().flatten();
        assert_eq!(redacted("a s/ cret s%2F%20cret b", credentials.as_ref()), "a *** *** b");
        assert_eq!(without_password("https://u:p@host/a"), "https://u@host/a");
        assert_eq!(without_password("https://u@host/a"), "https://u@host/a");
        assert_eq!(without_password("https://:p@host/a"), "https://host/a");
        assert_eq!(without_password("git@host:a"), "git@host:a");
    }

    proptest! {
        #[test]
        fn no_password_survives(password in "[a-z0-9:@%!]{6,20}", user in "[a-z]{1,8}") {
            let url = format!("https://{user}:{password}@host.example/path");
            let shown = redacted(&format!("fatal: '{url}'"), None);
            prop_assert!(!shown.contains(&password));
            if let Ok(address) = Address::of_clone(&url, Given::NONE) {
                prop_assert_eq!(address.url, format!("https://{user}@host.example/path"));
            }
        }
    }
}
