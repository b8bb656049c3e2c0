//! `WWW-Authenticate`: how a registry wants to be asked.

use hyper::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password with every request.
    Basic,
    /// A token from a server of its own.
    Bearer {
        /// Where the token server is.
        realm: String,
        /// What to name to it.
        service: Option<String>,
        /// What the token is to allow; absent: what the request needs.
        scope: Option<String>,
    },
}

/// The first challenge that can be answered.
pub(crate) fn read(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let mut basic = None;
    for value in values {
        match parse(value) {
            Some(bearer @ Challenge::Bearer { .. }) => return Some(bearer),
            Some(Challenge::Basic) => basic = Some(Challenge::Basic),
            None => {}
        }
    }
    basic
}

fn parse(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = word(after.trim_start())?;
        match name.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
        rest = after.trim_start().strip_prefix(',').unwrap_or_default().trim_start();
    }
    Some(Challenge::Bearer { realm: realm?, service, scope })
}

/// A word or a quoted text, and what follows it.
fn word(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            character => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn challenges_are_read() {
        assert_eq!(parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(
            parse("Bearer realm=\"https://a.io/token\",service=\"r.io\",scope=\"repository:a/b:pull,push\""),
            bearer("https://a.io/token", Some("r.io"), Some("repository:a/b:pull,push"))
        );
        assert_eq!(
            parse("bearer  realm=https://a.io/token , error=\"x\\\"y\", service=s"),
            bearer("https://a.io/token", Some("s"), None)
        );
        for bad in ["", "Digest realm=\"x\"", "Bearer", "Bearer realm=\"x", "Bearer service=\"x\""] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=\"x\"".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, "Bearer realm=\"y\"".parse().unwrap());
        assert_eq!(read(&headers), bearer("y", None, None));
    }
}
