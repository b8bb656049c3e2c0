//! Images in layers that lie in files: OCI layouts and what `docker save` writes.

use std::{
    fs::File,
    io::Read as _,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    Error, ImportOptions, Platform, Result,
    blob::BlobDigest,
    content::NewImage,
    import::Progress,
    layer::{self, Expected, HeldLayer},
    registry::manifest::{Configuration, DOCUMENT_BYTES_MAX, Descriptor, Document, Index},
    root::{Limits, within},
    store::Store,
};

/// Marks a folder as an OCI layout.
const LAYOUT_FILE: &str = "oci-layout";

/// What an OCI layout holds.
const INDEX_FILE: &str = "index.json";

/// What an archive of `docker save` holds.
const MANIFEST_FILE: &str = "manifest.json";

/// Most indexes on the way to an image.
const INDEXES_MAX: usize = 4;

/// An image in an archive of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    layers: Vec<String>,
}

/// A folder with a layout, whose content nobody has checked.
struct Layout {
    directory: OwnedFd,
    location: PathBuf,
}

/// Whether `source` is a folder that holds an image in layers.
pub(crate) fn is_layout(source: &Path) -> Result<bool> {
    let is_file =
        |name: &str| std::fs::symlink_metadata(source.join(name)).is_ok_and(|found| found.is_file());
    let programs = ["bin", "usr", "etc"].iter().any(|name| source.join(name).symlink_metadata().is_ok());
    Ok(!programs && ((is_file(LAYOUT_FILE) && is_file(INDEX_FILE)) || is_file(MANIFEST_FILE)))
}

/// Takes an image out of the layout at `source`: its layers are in the store then.
pub(crate) fn read(
    store: &Store,
    source: &Path,
    options: &ImportOptions,
    limits: &Limits,
    progress: Progress<'_>,
) -> Result<NewImage> {
    let directory =
        rustix::fs::open(source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(Error::at(source))?;
    let layout = Layout { directory, location: source.to_path_buf() };
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    if layout.open(INDEX_FILE)?.is_some() {
        layout.oci(store, &platform, limits, progress)
    } else {
        layout.saved(store, &platform, limits, progress)
    }
}

impl Layout {
    fn oci(
        &self,
        store: &Store,
        platform: &Platform,
        limits: &Limits,
        progress: Progress<'_>,
    ) -> Result<NewImage> {
        let mut document = Document::parse(&self.document(INDEX_FILE)?)?;
        let mut depth = 0;
        let manifest = loop {
            match document {
                Document::Manifest(manifest) => break manifest,
                Document::Index(index) => {
                    depth += 1;
                    if depth > INDEXES_MAX {
                        return Err(Error::Source("its indexes lead to one another".to_owned()));
                    }
                    let chosen = self.choose(&index, platform)?;
                    let bytes = self.document(&blob_path(&chosen.digest))?;
                    chosen.digest.check("a manifest", &bytes)?;
                    document = Document::parse(&bytes)?;
                }
            }
        };
        let bytes = self.document(&blob_path(&manifest.config.digest))?;
        manifest.config.digest.check("the configuration of an image", &bytes)?;
        let configuration = Configuration::parse(&bytes)?;
        let diffs = &configuration.rootfs.diff_ids;
        let blobs: Vec<(String, Option<BlobDigest>)> = manifest
            .layers
            .iter()
            .map(|layer| (blob_path(&layer.digest), Some(layer.digest.clone())))
            .collect();
        let layers = self.layers(store, &blobs, diffs, limits, progress)?;
        self.image(configuration, bytes, layers, platform)
    }

    /// The one image, or the one for this kind of machine.
    fn choose<'a>(&self, index: &'a Index, platform: &Platform) -> Result<&'a Descriptor> {
        let images: Vec<&Descriptor> = index.manifests.iter().collect();
        match images.as_slice() {
            [] => Err(Error::Source("it holds no image".to_owned())),
            [only] => Ok(only),
            several => {
                let unnamed = several.iter().filter(|image| image.platform.is_none()).count();
                if unnamed > 1 {
                    let problem = "it holds several images; export one of them alone";
                    return Err(Error::Source(problem.to_owned()));
                }
                index.choose(&self.location.display(), platform)
            }
        }
    }

    fn saved(
        &self,
        store: &Store,
        platform: &Platform,
        limits: &Limits,
        progress: Progress<'_>,
    ) -> Result<NewImage> {
        let images: Vec<SavedImage> =
            serde_json::from_slice(&self.document(MANIFEST_FILE)?).map_err(|error| {
                let problem = crate::root::escaped(error.to_string().as_bytes());
                Error::Source(format!("its manifest cannot be read: {problem}"))
            })?;
        let [image] = images.as_slice() else {
            return Err(Error::Source(format!("it holds {} images; save one of them alone", images.len())));
        };
        let bytes = self.document(&image.config)?;
        let configuration = Configuration::parse(&bytes)?;
        let blobs: Vec<(String, Option<BlobDigest>)> =
            image.layers.iter().map(|path| (path.clone(), None)).collect();
        let layers = self.layers(store, &blobs, &configuration.rootfs.diff_ids, limits, progress)?;
        self.image(configuration, bytes, layers, platform)
    }

    fn layers(
        &self,
        store: &Store,
        blobs: &[(String, Option<BlobDigest>)],
        diffs: &[BlobDigest],
        limits: &Limits,
        progress: Progress<'_>,
    ) -> Result<Vec<HeldLayer>> {
        if blobs.len() != diffs.len() {
            let problem = "its configuration and its manifest do not have the same number of layers";
            return Err(Error::Source(problem.to_owned()));
        }
        let mut sizes = Vec::new();
        for (path, _) in blobs {
            sizes.push(self.need(path)?.1);
        }
        let total = Some(sizes.iter().sum());
        let mut done = 0;
        let mut layers = Vec::new();
        for (((path, digest), diff), size) in blobs.iter().zip(diffs).zip(sizes) {
            layers.push(match layer::hold(store, diff)? {
                Some(layer) => layer,
                None => {
                    let (mut file, _) = self.need(path)?;
                    let blob = match digest {
                        Some(digest) => digest.clone(),
                        // Docker's own archives name no digest of what they hold, only of what is in it.
                        None => digest_of(&mut file, &self.location.join(path))?,
                    };
                    let expected = Expected { blob, diff: diff.clone() };
                    layer::make(store, file, &self.location, &expected, limits)?
                }
            });
            done += size;
            progress(done, total);
        }
        Ok(layers)
    }

    fn image(
        &self,
        configuration: Configuration,
        bytes: Vec<u8>,
        layers: Vec<HeldLayer>,
        platform: &Platform,
    ) -> Result<NewImage> {
        configuration.check_platform(&self.location.display(), platform)?;
        Ok(NewImage {
            id: BlobDigest::of(&bytes),
            layers,
            config: configuration.image_config()?,
            platform: Some(configuration.platform),
            configuration: Some(bytes),
        })
    }

    fn document(&self, path: &str) -> Result<Vec<u8>> {
        let (file, length) = self.need(path)?;
        within("size of a document", length, DOCUMENT_BYTES_MAX)?;
        let mut bytes = Vec::new();
        file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(Error::at(self.location.join(path)))?;
        Ok(bytes)
    }

    fn need(&self, path: &str) -> Result<(File, u64)> {
        let missing = || {
            let path = crate::root::shown(path.as_bytes());
            Error::Source(format!("it names {path}, which it does not have"))
        };
        self.open(path)?.ok_or_else(missing)
    }

    /// A regular file of the layout and its length. Links are followed inside of it only.
    fn open(&self, path: &str) -> Result<Option<(File, u64)>> {
        let opened = rustix::fs::openat2(
            &self.directory,
            path,
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        let file = match opened {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(Error::at(self.location.join(path))(error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(Error::at(self.location.join(path)))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        Ok(Some((file.into(), u64::try_from(stat.st_size).unwrap_or(0))))
    }
}

fn blob_path(digest: &BlobDigest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The digest of a file, which is at its start again afterwards.
fn digest_of(file: &mut File, location: &Path) -> Result<BlobDigest> {
    use std::io::Seek as _;
    const READ_BYTES: usize = 128 << 10;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer).map_err(Error::at(location))? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    file.rewind().map_err(Error::at(location))?;
    Ok(BlobDigest::finish(hasher))
}
