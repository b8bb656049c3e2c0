//! The snapshot store: what the configuration says of it, completed by the variables that other tools for S3 read too.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use sandhaus_sandbox::service::transfer::{
    Landing, SnapshotStore, StoreBucket, StoreConfig, StoreCredentials, StoreLocation, StorePlainHttp,
};
use sandhaus_snapstore::{DEFAULT_BUCKET, DEFAULT_REGION, Place, is_bucket};

use super::ApiKey;

/// Largest file of users or groups that is read.
const ACCOUNTS_BYTES_MAX: u64 = 1 << 20;

/// What the configuration says of the snapshot store.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct SnapshotSettings {
    /// Where it is.
    pub(crate) store: StoreSetting,
    /// Address of the service.
    pub(crate) endpoint: Option<String>,
    /// Region.
    pub(crate) region: Option<String>,
    /// Names who asks.
    pub(crate) access_key_id: Option<ApiKey>,
    /// Proves it.
    pub(crate) secret_access_key: Option<ApiKey>,
    /// It may be spoken to without TLS.
    pub(crate) plain_http: bool,
    /// Who gets what is pulled, `USER[:GROUP]`.
    pub(crate) owner: Option<String>,
    /// Permissions of what is pulled.
    pub(crate) mode: Option<u32>,
}

/// Where the store is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum StoreSetting {
    /// Where the environment says: nowhere, unless it names an endpoint.
    #[default]
    Environment,
    /// Nowhere.
    Off,
    /// Here.
    At(Place),
}

impl StoreSetting {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(Self::Environment),
            "off" => Ok(Self::Off),
            text => {
                let place = text.parse().map_err(|_| PLACES.to_owned())?;
                Ok(Self::At(place))
            }
        }
    }

    pub(super) fn shown(&self) -> String {
        match self {
            Self::Environment => String::new(),
            Self::Off => "off".to_owned(),
            Self::At(place) => place.to_string(),
        }
    }
}

/// What the place of a store must be.
const PLACES: &str = "must be s3://BUCKET, s3://BUCKET/PREFIX, an absolute path or off";

/// Permissions in octal digits; empty: none.
pub(super) fn parse_mode(text: &str) -> Result<Option<u32>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && text.len() <= 4);
    mode.map(Some).ok_or_else(|| "must be permissions in octal digits such as 0640".to_owned())
}

/// `USER` or `USER:GROUP`, names or numbers; empty: none.
pub(super) fn parse_owner(text: &str) -> Result<Option<String>, String> {
    let plain =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    match text.is_empty() || (plain(user) && plain(group)) {
        true => Ok((!text.is_empty()).then(|| text.to_owned())),
        false => Err("must be USER or USER:GROUP, names or numbers".to_owned()),
    }
}

impl SnapshotSettings {
    /// The store, if there is one. `variable` reads the environment.
    pub(crate) fn resolve(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<SnapshotStore>> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let endpoint = self.endpoint.clone().or_else(|| variable("AWS_ENDPOINT_URL"));
        let (bucket, prefix) = match &self.store {
            StoreSetting::Off => return Ok(None),
            StoreSetting::Environment if endpoint.is_none() => return Ok(None),
            StoreSetting::Environment => (None, String::new()),
            StoreSetting::At(Place::Directory(path)) => {
                let store = StoreConfig::at(StoreLocation::Directory(path.clone()));
                return Ok(Some(SnapshotStore { store, landing: self.landing()? }));
            }
            StoreSetting::At(Place::Bucket(bucket, prefix)) => (bucket.clone(), prefix.clone()),
        };
        let name =
            bucket.or_else(|| variable("AWS_DEFAULT_BUCKET")).unwrap_or_else(|| DEFAULT_BUCKET.to_owned());
        if !is_bucket(&name) {
            bail!("AWS_DEFAULT_BUCKET names no bucket: {name:?}");
        }
        let region = self.region.clone().or_else(|| variable("AWS_REGION"));
        let region =
            region.or_else(|| variable("AWS_DEFAULT_REGION")).unwrap_or_else(|| DEFAULT_REGION.to_owned());
        let bucket = StoreBucket {
            name,
            prefix,
            endpoint,
            region,
            credentials: self.credentials(variable)?,
            plain_http: if self.plain_http { StorePlainHttp::Anywhere } else { StorePlainHttp::Loopback },
        };
        let store = StoreConfig::at(StoreLocation::Bucket(bucket));
        Ok(Some(SnapshotStore { store, landing: self.landing()? }))
    }

    fn credentials(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Option<StoreCredentials>> {
        let reveal = |key: &Option<ApiKey>| key.as_ref().map(|key| key.reveal().to_owned());
        let (id, secret, token) = match (&self.access_key_id, &self.secret_access_key) {
            // Keys of one place only: halves of two do not fit each other.
            (None, None) => (
                variable("AWS_ACCESS_KEY_ID"),
                variable("AWS_SECRET_ACCESS_KEY"),
                variable("AWS_SESSION_TOKEN"),
            ),
            (id, secret) => (reveal(id), reveal(secret), None),
        };
        match (id, secret) {
            (Some(access_key_id), Some(secret_access_key)) => {
                Ok(Some(StoreCredentials { access_key_id, secret_access_key, session_token: token }))
            }
            (None, None) => Ok(None),
            _ => Err(anyhow!(
                "the snapshot store has half of a pair of keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                 snapshots.access_key_id and snapshots.secret_access_key"
            )),
        }
    }

    fn landing(&self) -> Result<Landing> {
        let owner = self.owner.as_deref().map(|owner| {
            let (user, group) =
                owner.split_once(':').map_or((owner, None), |(user, group)| (user, Some(group)));
            let (user, own_group) =
                account("/etc/passwd", user).with_context(|| format!("no user is called {user:?}"))?;
            let group = match group {
                Some(group) => {
                    account("/etc/group", group).with_context(|| format!("no group is called {group:?}"))?.0
                }
                None => own_group.unwrap_or(user),
            };
            anyhow::Ok((user, group))
        });
        let owner = owner.transpose().context("configuration key snapshots.owner")?;
        Ok(Landing { owner, mode: self.mode })
    }
}

/// The number of a user or group, and of a user its group, from a file of accounts. A number stands for itself.
fn account(file: &str, name: &str) -> Option<(u32, Option<u32>)> {
    if let Ok(number) = name.parse() {
        return Some((number, None));
    }
    let path = Path::new(file);
    if fs_err::metadata(path).ok()?.len() > ACCOUNTS_BYTES_MAX {
        return None;
    }
    let text = fs_err::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [known, _, number, rest @ ..] = fields.as_slice() else { return None };
        let group = rest.first().and_then(|group| group.parse().ok());
        (*known == name).then(|| number.parse().ok().map(|number| (number, group)))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(settings: &SnapshotSettings, variables: &[(&str, &str)]) -> Result<Option<StoreBucket>> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Ok(settings.resolve(variable)?.map(|store| match store.store.location {
            StoreLocation::Bucket(bucket) => bucket,
            StoreLocation::Directory(path) => panic!("{} is a directory", path.display()),
        }))
    }

    fn at(text: &str) -> SnapshotSettings {
        SnapshotSettings { store: StoreSetting::parse(text).unwrap(), ..SnapshotSettings::default() }
    }

    const SEED: &[(&str, &str)] = &[
        ("AWS_ENDPOINT_URL", "https://s3.example"),
        ("AWS_REGION", "eu"),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];

    #[test]
    fn the_environment_alone_is_enough_and_the_configuration_comes_first() {
        assert_eq!(resolved(&at(""), &[]).unwrap(), None);
        assert_eq!(resolved(&at("off"), SEED).unwrap(), None);
        let bucket = resolved(&at(""), SEED).unwrap().unwrap();
        assert_eq!((bucket.name.as_str(), bucket.region.as_str()), ("daytona", "eu"));
        assert_eq!(bucket.endpoint.as_deref(), Some("https://s3.example"));
        assert_eq!(bucket.credentials.unwrap().access_key_id, "id");

        let settings = SnapshotSettings {
            endpoint: Some("https://own.example".into()),
            region: Some("own".into()),
            access_key_id: ApiKey::parse("own-id").unwrap(),
            secret_access_key: ApiKey::parse("own-secret").unwrap(),
            ..at("s3://images/team")
        };
        let bucket = resolved(&settings, SEED).unwrap().unwrap();
        assert_eq!(
            (bucket.name.as_str(), bucket.prefix.as_str(), bucket.region.as_str()),
            ("images", "team", "own")
        );
        assert_eq!(bucket.endpoint.as_deref(), Some("https://own.example"));
        assert_eq!(bucket.credentials.unwrap().secret_access_key, "own-secret");
    }

    #[test]
    fn half_of_a_pair_of_keys_is_an_error_that_shows_neither() {
        let settings =
            SnapshotSettings { access_key_id: ApiKey::parse("own-id").unwrap(), ..at("s3://images") };
        let error = format!("{:#}", resolved(&settings, SEED).unwrap_err());
        assert!(
            error.contains("half of a pair") && !error.contains("own-id") && !error.contains("secret\""),
            "{error}"
        );
    }

    #[test]
    fn owners_and_permissions_are_checked() {
        assert_eq!(parse_mode("0640"), Ok(Some(0o640)));
        assert_eq!(parse_mode(""), Ok(None));
        for bad in ["9", "4755", "00000640", "rw"] {
            assert!(parse_mode(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_owner("root:root"), Ok(Some("root:root".into())));
        for bad in [":", "a:", "a b", "a:b:c"] {
            assert!(parse_owner(bad).is_err(), "{bad}");
        }
        let landing = |owner: &str| SnapshotSettings { owner: Some(owner.into()), ..at("/srv") }.landing();
        assert_eq!(landing("root").unwrap().owner, Some((0, 0)));
        assert_eq!(landing("7:8").unwrap().owner, Some((7, 8)));
        assert!(landing("nobody-is-called-that").is_err());
    }
}
