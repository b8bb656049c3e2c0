//! Images as they are stored: an ordered list of layers, a scaffold, and what is known of them.

use std::path::{Path, PathBuf};

use rustix::fs::Timespec;
use serde::{Deserialize, Serialize};

use crate::{
    Error, ImageConfig, Result, Tree,
    blob::BlobDigest,
    host::now,
    layer::{self, HeldLayer, LayerRecord},
    merged::Merged,
    registry::manifest::Platform,
    root::{Attributes, within},
    scaffold::{self, SCAFFOLD_VERSION},
    store::{self, Scratch, Store},
    vm::Manifest,
};

/// Name of an image's own configuration in its folder.
const CONFIGURATION: &str = "config.json";

/// Most directories whose attributes layers leave to layers below.
const IMPLIED_MAX: u64 = 20_000;

/// What is known of a content.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ContentRecord {
    pub(crate) created_at: String,
    pub(crate) size_bytes: u64,
    pub(crate) config: ImageConfig,
    /// Its layers, lowest first. Empty in images from before layers were shared: they have one tree of their own.
    #[serde(default)]
    pub(crate) layers: Vec<BlobDigest>,
    /// The machine it is made for, where that is known.
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    /// What it is, if it is the disk of a virtual machine: then it has files of its own, and neither layers nor a tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<Manifest>,
}

/// An image that is about to be stored.
#[derive(Debug)]
pub(crate) struct NewImage {
    /// What names it: the digest of its configuration, or of its tree.
    pub(crate) id: BlobDigest,
    /// Lowest first.
    pub(crate) layers: Vec<HeldLayer>,
    pub(crate) config: ImageConfig,
    pub(crate) platform: Option<Platform>,
    /// The configuration as its maker wrote it.
    pub(crate) configuration: Option<Vec<u8>>,
}

impl ContentRecord {
    /// The record of the image in `directory`, if it is there.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>> {
        store::read_record(&directory.join("image.json"))
    }

    /// The directories that hold its files, top first.
    pub(crate) fn trees(&self, store: &Store, directory: &Path) -> Vec<PathBuf> {
        if self.layers.is_empty() {
            return vec![directory.join("tree")];
        }
        self.layers.iter().rev().map(|id| layer::tree_of(&store.layer(id))).collect()
    }

    /// What an engine needs of it.
    pub(crate) fn tree(self, store: &Store, directory: &Path) -> Tree {
        if let Some(manifest) = &self.disk {
            let disk = Some(manifest.disk(directory));
            return Tree { layers: Vec::new(), binds: Vec::new(), config: self.config, disk };
        }
        let mut layers = vec![directory.join(scaffold_directory())];
        layers.extend(self.trees(store, directory));
        Tree { layers, binds: Vec::new(), config: self.config, disk: None }
    }
}

/// Makes the folder of an image in a scratch folder, complete but for its name.
pub(crate) fn make(store: &Store, scratch: &Scratch, image: &NewImage) -> Result<PathBuf> {
    let whole = scratch.directory("image")?;
    let layers: Vec<&HeldLayer> = stacked(&image.layers);
    let top_first: Vec<PathBuf> = layers.iter().rev().map(|layer| layer.tree()).collect();
    let records: Vec<LayerRecord> = layers.iter().rev().map(|layer| layer.record.clone()).collect();
    let merged = Merged::new(top_first);
    let above = scratch.directory(&format!("image/{}", scaffold_directory()))?;
    scaffold::build(&merged, &implied(&merged, &records)?, &above)?;
    let mut config = image.config.clone();
    if let Some(user) = &config.user {
        config.account = scaffold::account(&merged, user)?;
    }
    let record = ContentRecord {
        created_at: now(),
        size_bytes: layers.iter().map(|layer| layer.record.size_bytes).sum(),
        config,
        layers: layers.iter().map(|layer| layer.id.clone()).collect(),
        platform: image.platform.clone(),
        disk: None,
    };
    store::write_new(&whole.join("image.json"), &record)?;
    if let Some(configuration) = &image.configuration {
        let path = whole.join(CONFIGURATION);
        fs_err::write(&path, configuration).map_err(Error::at(&path))?;
    }
    debug_assert_eq!(record.trees(store, &whole).len(), layers.len());
    Ok(whole)
}

/// Makes the scaffold of an image that was stored when scaffolds were others.
pub(crate) fn renew_scaffold(store: &Store, directory: &Path, record: &ContentRecord) -> Result<()> {
    let above = directory.join(scaffold_directory());
    let scratch = store.scratch(&store.lock()?)?;
    let built = scratch.directory("scaffold")?;
    let (merged, implied) = merged(store, directory, record)?;
    scaffold::build(&merged, &implied, &built)?;
    scratch.sync()?;
    let _lock = store.lock()?;
    if store::exists(&above)? { Ok(()) } else { store::publish(&built, &above) }
}

/// The files of a stored image, without its scaffold, and the directories of it that only a lower layer describes.
pub(crate) fn merged(
    store: &Store,
    directory: &Path,
    record: &ContentRecord,
) -> Result<(Merged, Vec<(String, Attributes)>)> {
    let mut records = Vec::new();
    for id in record.layers.iter().rev() {
        let found = layer::record(&store.layer(id))?;
        records.push(found.ok_or_else(|| Error::NotFound(id.to_string()))?);
    }
    let merged = Merged::new(record.trees(store, directory));
    let implied = implied(&merged, &records)?;
    Ok((merged, implied))
}

/// The layers that show at all, lowest first: nothing of what lies below one that hides everything, none twice (the
/// upper one shows all that the lower one does), and no empty ones.
fn stacked(layers: &[HeldLayer]) -> Vec<&HeldLayer> {
    let mut shown: Vec<&HeldLayer> = Vec::new();
    for layer in layers.iter().rev() {
        if layer.record.entries > 0 && shown.iter().all(|above| above.id != layer.id) {
            shown.push(layer);
        }
        if layer.record.hides_all {
            break;
        }
    }
    // An image is at least one directory.
    if shown.is_empty() {
        shown.extend(layers.last());
    }
    shown.reverse();
    shown
}

/// Directories whose topmost layer holds them without saying what they are like, with what a layer below says. Records
/// are top first, as the layers of `merged`.
fn implied(merged: &Merged, records: &[LayerRecord]) -> Result<Vec<(String, Attributes)>> {
    let mut found: Vec<(String, Attributes)> = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for path in records.iter().flat_map(|record| &record.implied) {
        if !seen.insert(path) {
            continue;
        }
        within("number of directories that layers do not list", seen.len() as u64, IMPLIED_MAX)?;
        let mut above = 0;
        let said = loop {
            let Some((index, stat)) = merged.directory_below(path, above)? else { break None };
            if records.get(index).is_some_and(|record| record.implied.contains(path)) {
                above = index + 1;
                continue;
            }
            break (above > 0).then_some(stat);
        };
        if let Some(stat) = said {
            let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
            let attributes = Attributes {
                mode: stat.st_mode & 0o7777,
                uid: stat.st_uid.into(),
                gid: stat.st_gid.into(),
                modified,
                extended: Vec::new(),
            };
            found.push((path.clone(), attributes));
        }
    }
    Ok(found)
}

/// The configuration that an image came with.
pub(crate) fn configuration(directory: &Path) -> Result<Option<serde_json::Value>> {
    store::read_record(&directory.join(CONFIGURATION))
}

pub(crate) fn scaffold_directory() -> String {
    format!("scaffold-{SCAFFOLD_VERSION}")
}
