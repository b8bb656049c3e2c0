//! Values as people write them on the command line and in the configuration, parsed once into what they mean.

use std::{path::PathBuf, str::FromStr};

use sandhaus_client::wire::{Network, Port};
use sandhaus_sandbox::{Access, NetworkPolicy, PublishedPort, SandboxId};

/// An amount of bytes: `512MiB`, `512m`, `2g`, `1GiB`, `4096`. The letters count in powers of 1024, as memory does;
/// only `kB`, `MB`, `GB` and `TB` written out count in powers of 1000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let factor: u64 = match unit.trim() {
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "kB" | "KB" => 1_000,
            unit => match unit.to_ascii_lowercase().as_str() {
                "" | "b" => 1,
                "k" | "ki" | "kib" => 1 << 10,
                "m" | "mi" | "mib" => 1 << 20,
                "g" | "gi" | "gib" => 1 << 30,
                "t" | "ti" | "tib" => 1 << 40,
                _ => return Err(format!("unit {unit:?} is not known; use k, m, g or KiB, MiB, GiB")),
            },
        };
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.checked_mul(factor),
            Err(_) => number.parse::<f64>().ok().and_then(|part| whole_bytes(part, factor)),
        };
        match bytes {
            Some(0) => Err("must be above zero".to_owned()),
            Some(bytes) => Ok(Self(bytes)),
            None => Err("not a size such as 512MiB".to_owned()),
        }
    }
}

/// `part` units of `factor` bytes, if that is a sensible amount.
fn whole_bytes(part: f64, factor: u64) -> Option<u64> {
    // Exact enough: both stay far below 2^53 for every amount that a host has.
    let bytes = (part * factor as f64).round();
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the line before")]
    #[expect(clippy::cast_sign_loss, reason = "bounded by the line before")]
    (bytes >= 0.0 && bytes < (1_u64 << 53) as f64).then_some(bytes as u64)
}

/// What a sandbox may reach: `none`, `bridge`, `allow=ADDRESS/BITS,…`. The host's own network is not for the command
/// line to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkChoice(pub(crate) NetworkPolicy);

impl NetworkChoice {
    /// The same for a server.
    pub(crate) fn to_wire(&self) -> Network {
        match &self.0 {
            NetworkPolicy::Allow(networks) => {
                Network::Allow { allow: networks.iter().map(ToString::to_string).collect() }
            }
            NetworkPolicy::Bridge => Network::Mode("bridge".to_owned()),
            NetworkPolicy::None | NetworkPolicy::Host => Network::Mode("none".to_owned()),
        }
    }
}

impl FromStr for NetworkChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => return Ok(Self(NetworkPolicy::None)),
            "bridge" => return Ok(Self(NetworkPolicy::Bridge)),
            _ => {}
        }
        let list = text
            .strip_prefix("allow=")
            .ok_or_else(|| "use none, bridge or allow=ADDRESS/BITS,ADDRESS/BITS,...".to_owned())?;
        let networks = list.split(',').map(|network| {
            network.trim().parse().map_err(|_| format!("{network:?} must be a network as ADDRESS/BITS"))
        });
        networks.collect::<Result<_, _>>().map(|networks| Self(NetworkPolicy::Allow(networks)))
    }
}

/// A port to show on the host's loopback: `PORT`, or `HOST:PORT` to choose the host's; 0 is any that is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortMapping(pub(crate) PublishedPort);

impl PortMapping {
    /// The same for a server.
    pub(crate) fn to_wire(self) -> Port {
        Port { port: self.0.port, host_port: self.0.host_port }
    }
}

impl FromStr for PortMapping {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port"));
        let (host_port, port) = match text.split_once(':') {
            Some((host, port)) => (number(host)?, number(port)?),
            None => (0, number(text)?),
        };
        match port {
            0 => Err("the port inside must be above zero".to_owned()),
            port => Ok(Self(PublishedPort { port, host_port })),
        }
    }
}

/// An amount of processor time in thousandths of a core: `0.5`, `2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores {
    pub(crate) millis: u32,
}

impl Cores {
    /// Most cores that may be asked for.
    const MAX: f64 = 4096.0;

    /// Least, as the kernel's quota of 1 ms in 100 ms.
    const MIN: f64 = 0.01;

    /// Parses a number that a configuration gave.
    pub(crate) fn new(cores: f64) -> Result<Self, String> {
        if !(Self::MIN..=Self::MAX).contains(&cores) {
            return Err(format!("must be between {} and {}", Self::MIN, Self::MAX));
        }
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the check above")]
        #[expect(clippy::cast_sign_loss, reason = "bounded by the check above")]
        let millis = (cores * 1000.0).round() as u32;
        Ok(Self { millis })
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::new(text.parse().map_err(|_| "not a number of cores such as 0.5".to_owned())?)
    }
}

/// A variable with its value, or one to be passed on from our own environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EnvironmentEntry {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

impl FromStr for EnvironmentEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() || name.contains('\0') {
            return Err("a name is needed before '='".to_owned());
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

/// A host directory or file to show inside: `SRC:DST` or `SRC:DST:ro`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountPoint {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) access: Access,
}

impl FromStr for MountPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (rest, access) = match text.rsplit_once(':') {
            Some((rest, "ro")) => (rest, Access::ReadOnly),
            Some((rest, "rw")) => (rest, Access::ReadWrite),
            _ => (text, Access::ReadWrite),
        };
        let Some((source, target)) = rest.rsplit_once(':') else {
            return Err("must be SRC:DST or SRC:DST:ro".to_owned());
        };
        if source.is_empty() {
            return Err("the host's path is empty".to_owned());
        }
        if !target.starts_with('/') {
            return Err(format!("{target:?} is not an absolute path inside the sandbox"));
        }
        Ok(Self { source: PathBuf::from(source), target: target.to_owned(), access })
    }
}

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    /// On this host.
    Host(PathBuf),
    /// In a sandbox.
    Sandbox { id: SandboxId, path: String },
}

impl FromStr for Location {
    type Err = String;

    /// What stands before the first colon is a sandbox if it has the form of an id; `./` keeps such a file name.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((id, path)) = text.split_once(':')
            && let Ok(id) = SandboxId::parse(id)
        {
            if path.is_empty() {
                return Err("a path is needed after the colon".to_owned());
            }
            return Ok(Self::Sandbox { id, path: path.to_owned() });
        }
        if text.is_empty() {
            return Err("the path is empty".to_owned());
        }
        Ok(Self::Host(PathBuf::from(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let good = [
            ("512MiB", 512 << 20),
            ("512m", 512 << 20),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1.5GiB", 3 << 29),
            ("1GB", 1_000_000_000),
            ("64k", 64 << 10),
            ("4096", 4096),
            ("1b", 1),
            ("1 GiB", 1 << 30),
        ];
        for (text, bytes) in good {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in [
            "",
            "0",
            "0m",
            "m",
            "-1m",
            "1x",
            "1.5.5g",
            "99999999999999999999",
            "18446744073709551615k",
            "1e9",
        ] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cores() {
        assert_eq!("0.5".parse(), Ok(Cores { millis: 500 }));
        assert_eq!("2".parse(), Ok(Cores { millis: 2000 }));
        for bad in ["0", "-1", "NaN", "inf", "5000", "0.001", "two"] {
            assert!(bad.parse::<Cores>().is_err(), "{bad}");
        }
    }

    #[test]
    fn environment_entries() {
        let entry = |name: &str, value: Option<&str>| EnvironmentEntry {
            name: name.to_owned(),
            value: value.map(str::to_owned),
        };
        assert_eq!("A=b=c".parse(), Ok(entry("A", Some("b=c"))));
        assert_eq!("A=".parse(), Ok(entry("A", Some(""))));
        assert_eq!("A".parse(), Ok(entry("A", None)));
        assert!("=b".parse::<EnvironmentEntry>().is_err());
        assert!("".parse::<EnvironmentEntry>().is_err());
    }

    #[test]
    fn mount_points() {
        let mount = |source: &str, target: &str, access| MountPoint {
            source: source.into(),
            target: target.to_owned(),
            access,
        };
        assert_eq!("/a:/b".parse(), Ok(mount("/a", "/b", Access::ReadWrite)));
        assert_eq!("/a:/b:ro".parse(), Ok(mount("/a", "/b", Access::ReadOnly)));
        assert_eq!("./x:y:/b:rw".parse(), Ok(mount("./x:y", "/b", Access::ReadWrite)));
        for bad in ["/a", "/a:b", ":/b", "/a:ro", ""] {
            assert!(bad.parse::<MountPoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn locations() {
        let id = SandboxId::parse("0123abcd-ef0").unwrap();
        assert_eq!(
            "0123abcd-ef0:/x:y".parse(),
            Ok(Location::Sandbox { id: id.clone(), path: "/x:y".to_owned() })
        );
        assert_eq!("0123abcd-ef0:x".parse(), Ok(Location::Sandbox { id, path: "x".to_owned() }));
        assert_eq!("a:b".parse(), Ok(Location::Host("a:b".into())));
        assert_eq!("./0123abcd-ef0:x".parse(), Ok(Location::Host("./0123abcd-ef0:x".into())));
        assert!("0123abcd-ef0:".parse::<Location>().is_err());
    }

    #[test]
    fn networks_and_ports() {
        let network = |text: &str| text.parse::<NetworkChoice>().map(|choice| choice.0);
        assert_eq!(network("none"), Ok(NetworkPolicy::None));
        assert_eq!(network("bridge"), Ok(NetworkPolicy::Bridge));
        let list = ["1.2.3.0/24".parse().unwrap(), "8.8.8.8/32".parse().unwrap()];
        assert_eq!(network("allow=1.2.3.0/24,8.8.8.8/32"), Ok(NetworkPolicy::Allow(list.into())));
        for wrong in ["", "host", "allow", "allow=", "allow=x", "allow=1.2.3.4/33", "Bridge"] {
            assert!(network(wrong).is_err(), "{wrong}");
        }
        let port =
            |text: &str| text.parse::<PortMapping>().map(|mapping| (mapping.0.host_port, mapping.0.port));
        assert_eq!(port("80"), Ok((0, 80)));
        assert_eq!(port("8080:80"), Ok((8080, 80)));
        for wrong in ["", ":", "80:", ":80", "0", "8080:0", "65536", "a:b", "1:2:3", "127.0.0.1:80:80"] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }
}
