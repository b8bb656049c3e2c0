//! Values as they stand in the file or in the environment, and what they parse to.

use std::collections::BTreeMap;

use sandhaus_sandbox::ImageName;
use serde_yaml_ng::Value;

use super::keys::{Key, Kind};
use crate::values::Bytes;

/// Most MiB: a limit that no file system or memory reaches.
const MIB_MAX: u64 = 1 << 30;

/// A value before it is parsed, with the kind that its key says it has.
pub(super) struct Raw<'a> {
    kind: Kind,
    content: Content<'a>,
}

enum Content<'a> {
    Yaml(&'a Value),
    Text(&'a str),
}

impl<'a> Raw<'a> {
    /// A value of the file.
    pub(super) fn yaml(key: &Key, value: &'a Value) -> Self {
        Self { kind: key.kind, content: Content::Yaml(value) }
    }

    /// A value of the environment or the command line.
    pub(super) fn text(key: &Key, text: &'a str) -> Self {
        Self { kind: key.kind, content: Content::Text(text) }
    }

    /// The value as a message shows it.
    pub(super) fn shown(&self) -> String {
        match self.content {
            Content::Yaml(value) => serde_yaml_ng::to_string(value)
                .map_or_else(|_| "…".to_owned(), |text| text.trim_end().to_owned()),
            Content::Text(text) => format!("{text:?}"),
        }
    }

    /// Text.
    pub(super) fn words(&self) -> Result<&'a str, String> {
        match self.content {
            Content::Yaml(Value::String(text)) => Ok(text),
            Content::Yaml(_) => Err("must be text".to_owned()),
            Content::Text(text) => Ok(text),
        }
    }

    /// One of the words that the key's kind lists; the empty one stands for the first.
    pub(super) fn choice(&self) -> Result<&'static str, String> {
        let Kind::Choice(choices) = self.kind else { unreachable!("the key's kind lists words") };
        let text = self.words()?.trim();
        let chosen = choices.iter().copied().find(|choice| *choice == text);
        chosen.or_else(|| choices.first().copied().filter(|_| text.is_empty())).ok_or_else(|| {
            let (last, first) = choices.split_last().expect("a kind lists some words");
            format!("must be {} or {last}", first.join(", "))
        })
    }

    /// A whole number in the range of the key's kind.
    pub(super) fn number(&self) -> Result<u64, String> {
        let (least, most) = match self.kind {
            Kind::Number { least, most } => (least, most),
            Kind::Mebibytes => (0, MIB_MAX),
            _ => unreachable!("the key's kind has a range"),
        };
        let number = match self.content {
            Content::Yaml(value) => value.as_u64(),
            Content::Text(text) => text.trim().parse().ok(),
        };
        number
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("must be a whole number from {least} to {most}"))
    }

    /// A number.
    pub(super) fn decimal(&self) -> Result<f64, String> {
        let number = match self.content {
            Content::Yaml(value) => value.as_f64(),
            Content::Text(text) => text.trim().parse().ok(),
        };
        number.ok_or_else(|| "must be a number".to_owned())
    }

    /// True or false.
    pub(super) fn truth(&self) -> Result<bool, String> {
        let truth = match self.content {
            Content::Yaml(value) => value.as_bool(),
            Content::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "t" | "1" | "yes" | "on" => Some(true),
                "false" | "f" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
        };
        truth.ok_or_else(|| "must be true or false".to_owned())
    }

    /// A number of MiB, or a size with its unit, in bytes; zero is no limit.
    pub(super) fn mebibytes(&self) -> Result<u64, String> {
        match self.number() {
            Ok(number) => Ok(number << 20),
            Err(problem) => match self.words() {
                Ok(text) if text.ends_with(|c: char| c.is_ascii_alphabetic()) => {
                    Ok(text.parse::<Bytes>().map(|bytes| bytes.0)?)
                }
                _ => Err(problem),
            },
        }
    }

    /// The address of an HTTP service, without anybody's keys in it; empty: none.
    pub(super) fn endpoint(&self) -> Result<Option<String>, String> {
        let text = self.words()?.trim();
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let sound = rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', '?', '#', ' ']));
        match text.is_empty() || sound {
            true => Ok((!text.is_empty()).then(|| text.to_owned())),
            false => Err("must be https://HOST[:PORT] or http://HOST[:PORT]".to_owned()),
        }
    }

    /// The name of a region; empty: none.
    pub(super) fn region(&self) -> Result<Option<String>, String> {
        let text = self.words()?.trim();
        match text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            true => Ok((!text.is_empty()).then(|| text.to_owned())),
            false => Err("must be letters, digits and hyphens".to_owned()),
        }
    }

    /// Name of an image.
    pub(super) fn image(&self) -> Result<ImageName, String> {
        parse_image(self.words()?)
    }

    /// Names of images.
    pub(super) fn images(&self) -> Result<Vec<ImageName>, String> {
        self.list()?.iter().map(|name| parse_image(name)).collect()
    }

    /// A mapping of image names to counts, or text as `image=count,image=count`.
    pub(super) fn image_counts(&self) -> Result<BTreeMap<ImageName, usize>, String> {
        let Kind::ImageCounts { most } = self.kind else { unreachable!("the key's kind counts images") };
        let problem = || format!("must map names to whole numbers from 0 to {most}");
        let pairs: Vec<(String, Option<u64>)> = match self.content {
            Content::Yaml(Value::Mapping(mapping)) => mapping
                .iter()
                .map(|(name, count)| Some((name.as_str()?.to_owned(), count.as_u64())))
                .collect::<Option<_>>()
                .ok_or_else(problem)?,
            Content::Yaml(_) => return Err(problem()),
            Content::Text(_) => self
                .list()?
                .iter()
                .map(|item| item.split_once('=').map(|(name, count)| (name.to_owned(), count.parse().ok())))
                .collect::<Option<_>>()
                .ok_or_else(problem)?,
        };
        pairs
            .into_iter()
            .map(|(name, count)| {
                let count =
                    count.filter(|count| *count <= most).and_then(|count| usize::try_from(count).ok());
                Ok((parse_image(&name)?, count.ok_or_else(problem)?))
            })
            .collect()
    }

    /// A YAML list, or text separated by commas.
    pub(super) fn list(&self) -> Result<Vec<String>, String> {
        match self.content {
            Content::Yaml(Value::Sequence(items)) => items
                .iter()
                .map(|item| {
                    item.as_str().map(str::to_owned).ok_or_else(|| "must be a list of words".to_owned())
                })
                .collect(),
            Content::Yaml(_) => Err("must be a list of words".to_owned()),
            Content::Text(text) => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(str::to_owned)
                .collect()),
        }
    }

    /// The same of things that parse; `what` says what each must be.
    pub(super) fn list_of<T: std::str::FromStr>(&self, what: &str) -> Result<Vec<T>, String> {
        let parse = |text: &String| text.parse().map_err(|_| format!("{text:?} must be {what}"));
        self.list()?.iter().map(parse).collect()
    }
}

fn parse_image(name: &str) -> Result<ImageName, String> {
    ImageName::parse(name).map_err(|error| error.to_string())
}
