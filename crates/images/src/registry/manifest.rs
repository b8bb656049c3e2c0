//! What registries say about images: indexes, manifests and configurations, of OCI and of Docker.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, ImageConfig, Result, blob::BlobDigest, root::within};

/// Largest index, manifest or configuration.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// Most layers of an image. An engine stacks at most one more: the scaffold.
pub(crate) const LAYERS_MAX: u64 = 127;

/// Largest layer as it is sent.
const LAYER_BYTES_MAX: u64 = 64 << 30;

/// Most variables of an image's environment.
const ENV_MAX: u64 = 512;

/// Most words of an entry point or command.
const WORDS_MAX: u64 = 1024;

/// Kinds of documents that are asked for.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

pub(crate) const MEDIA_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const MEDIA_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const MEDIA_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const MEDIA_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Annotation with the tag of an image in a layout.
pub(crate) const ANNOTATION_NAME: &str = "org.opencontainers.image.ref.name";

/// A kind of machine: `OS/ARCHITECTURE[/VARIANT]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Architecture, in the words of registries: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// Which kind of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether an image for `offered` runs where this is wanted.
    fn accepts(&self, offered: &Self) -> bool {
        self.os == offered.os
            && self.architecture == offered.architecture
            && (self.variant.is_none() || self.variant == offered.variant)
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !parts.iter().all(|part| word(part)) {
            return Err(bad_platform(text));
        }
        match parts.as_slice() {
            [os, architecture] => {
                Ok(Self { os: (*os).to_owned(), architecture: (*architecture).to_owned(), variant: None })
            }
            [os, architecture, variant] => Ok(Self {
                os: (*os).to_owned(),
                architecture: (*architecture).to_owned(),
                variant: Some((*variant).to_owned()),
            }),
            _ => Err(bad_platform(text)),
        }
    }
}

fn bad_platform(text: &str) -> Error {
    Error::Source(format!("platform {text:.80?} must be OS/ARCHITECTURE, such as linux/amd64"))
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Points at a blob or a further document.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: BlobDigest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// One image, or a choice of images.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// One image.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// One image for each kind of machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) manifests: Vec<Descriptor>,
}

impl Document {
    /// Reads what a registry or a layout has; told by its shape, since some say no type and some a wrong one.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| bad_document("manifest", &error))?;
        if value.get("manifests").is_some() {
            return serde_json::from_value(value)
                .map(Self::Index)
                .map_err(|error| bad_document("index", &error));
        }
        if value.get("schemaVersion").and_then(serde_json::Value::as_u64) == Some(1) {
            let problem = "its manifest is of Docker's first format, which nothing makes any more";
            return Err(Error::Source(problem.to_owned()));
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|error| bad_document("manifest", &error))?;
        manifest.check()?;
        Ok(Self::Manifest(manifest))
    }
}

impl Manifest {
    fn check(&self) -> Result<()> {
        within("number of layers", self.layers.len() as u64, LAYERS_MAX)?;
        within("size of the configuration", self.config.size, DOCUMENT_BYTES_MAX)?;
        for layer in &self.layers {
            within("size of a layer", layer.size, LAYER_BYTES_MAX)?;
            let kind = layer.media_type.as_str();
            let is_layer = kind.is_empty()
                || kind.starts_with("application/vnd.oci.image.layer.")
                || kind.starts_with("application/vnd.docker.image.rootfs.");
            if !is_layer || kind.contains("encrypted") {
                return Err(Error::Source(format!(
                    "it is no container image: one of its layers is {kind:.100?}"
                )));
            }
        }
        Ok(())
    }
}

impl Index {
    /// The image for a kind of machine.
    pub(crate) fn choose(&self, reference: &dyn fmt::Display, wanted: &Platform) -> Result<&Descriptor> {
        let runs =
            |offered: &&Descriptor| offered.platform.as_ref().is_none_or(|offered| wanted.accepts(offered));
        // Attestations stand beside images as images for an unknown machine.
        self.manifests.iter().find(runs).ok_or_else(|| {
            let offered = self.manifests.iter().filter_map(|offered| offered.platform.as_ref());
            let mut available: Vec<String> = offered
                .filter(|platform| platform.os != "unknown")
                .map(|platform| crate::root::escaped(platform.to_string().as_bytes()))
                .collect();
            available.sort();
            available.dedup();
            let available = if available.is_empty() { "no machine".to_owned() } else { available.join(", ") };
            Error::Platform { reference: reference.to_string(), wanted: wanted.to_string(), available }
        })
    }
}

/// The configuration of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Configuration {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(default)]
    pub(crate) config: Option<RunConfiguration>,
    pub(crate) rootfs: RootFileSystem,
}

/// How to run in an image.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfiguration {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
}

/// What an image's root is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RootFileSystem {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    pub(crate) diff_ids: Vec<BlobDigest>,
}

impl Configuration {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let configuration: Self =
            serde_json::from_slice(bytes).map_err(|error| bad_document("configuration", &error))?;
        within("number of layers", configuration.rootfs.diff_ids.len() as u64, LAYERS_MAX)?;
        if configuration.rootfs.diff_ids.is_empty() {
            return Err(Error::Source("it has no layers".to_owned()));
        }
        Ok(configuration)
    }

    /// Fails if the image is made for another kind of machine.
    pub(crate) fn check_platform(&self, reference: &dyn fmt::Display, wanted: &Platform) -> Result<()> {
        if self.platform.os.is_empty() || wanted.accepts(&self.platform) {
            return Ok(());
        }
        // The configuration need not repeat the variant that the index named.
        let mut without = self.platform.clone();
        without.variant.clone_from(&wanted.variant);
        if self.platform.variant.is_none() && wanted.accepts(&without) {
            return Ok(());
        }
        Err(Error::Platform {
            reference: reference.to_string(),
            wanted: wanted.to_string(),
            available: crate::root::escaped(self.platform.to_string().as_bytes()),
        })
    }

    /// What of it sandboxes honour.
    pub(crate) fn image_config(&self) -> Result<ImageConfig> {
        let run = self.config.clone().unwrap_or_default();
        let variables = run.env.unwrap_or_default();
        let (entrypoint, cmd) = (run.entrypoint.unwrap_or_default(), run.cmd.unwrap_or_default());
        within("number of environment variables", variables.len() as u64, ENV_MAX)?;
        within("number of words of the entry point", entrypoint.len() as u64, WORDS_MAX)?;
        within("number of words of the command", cmd.len() as u64, WORDS_MAX)?;
        let env = variables
            .iter()
            .filter_map(|variable| variable.split_once('='))
            .filter(|(name, _)| !name.is_empty())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(ImageConfig {
            env,
            workdir: said(run.working_dir),
            user: said(run.user),
            account: None,
            entrypoint,
            cmd,
        })
    }
}

fn bad_document(what: &str, error: &serde_json::Error) -> Error {
    let problem = crate::root::escaped(error.to_string().as_bytes());
    Error::Source(format!("its {what} cannot be read: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> String {
        BlobDigest::of(&[number]).to_string()
    }

    #[test]
    fn an_index_offers_machines() {
        let entry = |number: u8, os: &str, architecture: &str, variant: &str| {
            serde_json::json!({"mediaType": MEDIA_MANIFEST, "digest": digest(number), "size": 2,
                "platform": {"os": os, "architecture": architecture, "variant": variant}})
        };
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [
            entry(0, "unknown", "unknown", ""), entry(1, "linux", "arm64", "v8"), entry(2, "linux", "amd64", ""),
            entry(3, "linux", "arm", "v6"), entry(4, "linux", "arm", "v7"),
        ]});
        let Document::Index(index) = Document::parse(index.to_string().as_bytes()).unwrap() else {
            panic!("an index")
        };
        let chosen = |platform: &str| {
            let wanted = platform.parse::<Platform>().unwrap();
            index.choose(&"x", &wanted).map(|chosen| chosen.digest.to_string())
        };
        assert_eq!(chosen("linux/amd64").unwrap(), digest(2));
        assert_eq!(chosen("linux/arm64").unwrap(), digest(1));
        assert_eq!(chosen("linux/arm/v7").unwrap(), digest(4));
        let refused = chosen("windows/amd64").unwrap_err().to_string();
        assert!(refused.contains("linux/arm64/v8") && !refused.contains("unknown"), "{refused}");
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_configuration_is_taken_apart() {
        let text = serde_json::json!({"architecture": "amd64", "os": "linux", "unknown": 1,
            "config": {"Env": ["A=b=c", "=x", "NOTHING", "E="], "Entrypoint": ["/e"], "Cmd": ["a", "b"],
                "WorkingDir": "/w", "User": "u:g", "Labels": {"x": "y"}},
            "rootfs": {"type": "layers", "diff_ids": [digest(1)]}});
        let configuration = Configuration::parse(text.to_string().as_bytes()).unwrap();
        let config = configuration.image_config().unwrap();
        assert_eq!(config.env.iter().map(|(k, v)| format!("{k}:{v}")).collect::<Vec<_>>(), ["A:b=c", "E:"]);
        assert_eq!((config.workdir.as_deref(), config.user.as_deref()), (Some("/w"), Some("u:g")));
        assert_eq!((config.entrypoint, config.cmd), (vec!["/e".to_owned()], vec!["a".into(), "b".into()]));
        let wanted = "linux/amd64".parse().unwrap();
        configuration.check_platform(&"x", &wanted).unwrap();
        let other = "linux/arm64".parse().unwrap();
        assert!(matches!(configuration.check_platform(&"x", &other), Err(Error::Platform { .. })));
        let nulls = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"Env": null, "Cmd": null},
            "rootfs": {"diff_ids": [digest(1)]}});
        Configuration::parse(nulls.to_string().as_bytes()).unwrap().image_config().unwrap();
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let manifest = |layer: serde_json::Value| {
            let text = serde_json::json!({"schemaVersion": 2,
                "config": {"mediaType": "x", "digest": digest(0), "size": 2}, "layers": [layer]});
            Document::parse(text.to_string().as_bytes())
        };
        let layer =
            |kind: &str, size: u64| serde_json::json!({"mediaType": kind, "digest": digest(1), "size": size});
        assert!(manifest(layer(MEDIA_LAYER, 5)).is_ok());
        for bad in [
            layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip", 5),
            layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", 5),
            layer(MEDIA_LAYER, u64::MAX),
            serde_json::json!({"digest": "sha256:../../etc", "size": 5}),
            serde_json::json!({"digest": digest(1), "size": -1}),
        ] {
            assert!(manifest(bad.clone()).is_err(), "{bad}");
        }
        for bad in ["", "{}", "[]", "{\"schemaVersion\":1,\"fsLayers\":[]}", "{\"manifests\":{}}"] {
            assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let many: Vec<_> = (0..128).map(|_| layer(MEDIA_LAYER, 5)).collect();
        let text = serde_json::json!({"schemaVersion": 2,
            "config": {"mediaType": "x", "digest": digest(0), "size": 2}, "layers": many});
        let refused = Document::parse(text.to_string().as_bytes()).unwrap_err();
        assert!(matches!(refused, Error::TooLarge { limit: LAYERS_MAX, .. }), "{refused}");
    }
}
