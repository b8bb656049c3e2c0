//! Writing an image out: its layers merged into one archive, plain or as an OCI image with one layer.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fmt,
    fs::File,
    io::{self, Read as _, Seek as _, Write},
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::Path,
    str::FromStr,
};

use rustix::fs::Stat;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::{
    Error, ImageConfig, Platform, Result,
    blob::BlobDigest,
    digest::extended_attributes,
    merged::{Directory, Merged, Node},
    registry::manifest::{
        ANNOTATION_NAME, Descriptor, Index, MEDIA_CONFIG, MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST, Manifest,
        RunConfiguration,
    },
    root::Attributes,
    store::Scratch,
};

/// Bytes written at once.
const COPY_BYTES: usize = 256 << 10;

/// What an image is written out as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// Its files in a tar archive.
    Tar,
    /// The same, compressed with gzip.
    TarGz,
    /// The same, compressed with zstd.
    TarZst,
    /// An OCI image in a tar archive, with how to run in it.
    Oci,
}

impl ExportFormat {
    /// The one that a file name asks for by its ending.
    pub fn of_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
        if ends(&[".oci.tar", ".oci"]) {
            Some(Self::Oci)
        } else if ends(&[".tar.gz", ".tgz"]) {
            Some(Self::TarGz)
        } else if ends(&[".tar.zst", ".tzst"]) {
            Some(Self::TarZst)
        } else if ends(&[".tar"]) {
            Some(Self::Tar)
        } else {
            None
        }
    }
}

impl FromStr for ExportFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "tar" => Ok(Self::Tar),
            "tar.gz" => Ok(Self::TarGz),
            "tar.zst" => Ok(Self::TarZst),
            "oci" => Ok(Self::Oci),
            other => Err(format!("{other:?} is none of tar, tar.gz, tar.zst and oci")),
        }
    }
}

impl fmt::Display for ExportFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tar => "tar",
            Self::TarGz => "tar.gz",
            Self::TarZst => "tar.zst",
            Self::Oci => "oci",
        })
    }
}

/// The files of an image.
pub(crate) struct Files {
    pub(crate) merged: Merged,
    /// Directories whose attributes a lower layer has, by path.
    pub(crate) implied: HashMap<Vec<u8>, Attributes>,
}

impl Files {
    pub(crate) fn new((merged, implied): (Merged, Vec<(String, Attributes)>)) -> Self {
        let implied = implied.into_iter().map(|(path, attributes)| (path.into_bytes(), attributes)).collect();
        Self { merged, implied }
    }
}

/// Writes the files of an image in a format that is one archive of them.
pub(crate) fn files(files: &Files, format: ExportFormat, output: &mut dyn Write) -> Result<()> {
    let failed = |error: io::Error| Error::at("output")(error);
    match format {
        ExportFormat::TarGz => {
            let mut encoder = flate2::write::GzEncoder::new(output, flate2::Compression::default());
            archive(files, &mut encoder)?;
            encoder.finish().map(drop).map_err(failed)
        }
        ExportFormat::TarZst => {
            let mut encoder = zstd::Encoder::new(output, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(failed)?;
            archive(files, &mut encoder)?;
            encoder.finish().map(drop).map_err(failed)
        }
        ExportFormat::Tar | ExportFormat::Oci => archive(files, output),
    }
}

/// What an OCI image says besides its files.
pub(crate) struct Description<'a> {
    pub(crate) name: &'a str,
    pub(crate) created_at: &'a str,
    pub(crate) config: &'a ImageConfig,
    pub(crate) platform: Platform,
    /// The configuration it came with; what it says about layers is replaced.
    pub(crate) configuration: Option<serde_json::Value>,
}

/// The files of an image as one layer.
struct PackedLayer {
    file: File,
    digest: BlobDigest,
    diff: BlobDigest,
    size: u64,
}

/// Packs the files of an image: an archive names its digest before its content, so it has to be there first.
fn pack(files: &Files, scratch: &Scratch) -> Result<PackedLayer> {
    let place = scratch.directory("export")?.join("layer");
    let file =
        File::options().read(true).write(true).create_new(true).open(&place).map_err(Error::at(&place))?;
    let buffered = io::BufWriter::with_capacity(COPY_BYTES, file);
    let compressed = Hashing { writer: buffered, hasher: Sha256::new() };
    let encoder = flate2::write::GzEncoder::new(compressed, flate2::Compression::default());
    let mut plain = Hashing { writer: encoder, hasher: Sha256::new() };
    archive(files, &mut plain)?;
    let diff = BlobDigest::finish(plain.hasher);
    let compressed = plain.writer.finish().map_err(Error::at(&place))?;
    let digest = BlobDigest::finish(compressed.hasher);
    let mut file = compressed.writer.into_inner().map_err(|error| Error::at(&place)(error.into_error()))?;
    let size = file.stream_position().map_err(Error::at(&place))?;
    file.rewind().map_err(Error::at(&place))?;
    Ok(PackedLayer { file, digest, diff, size })
}

/// Writes an image as an OCI layout in an archive.
pub(crate) fn oci(
    files: &Files,
    description: Description<'_>,
    scratch: &Scratch,
    output: &mut dyn Write,
) -> Result<()> {
    let PackedLayer { mut file, digest, diff, size } = pack(files, scratch)?;
    let config = serde_json::to_vec(&configuration(&description, &diff)).map_err(bad_json)?;
    let point = |media_type: &str, digest: BlobDigest, size: u64| Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: BTreeMap::new(),
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: MEDIA_MANIFEST.to_owned(),
        config: point(MEDIA_CONFIG, BlobDigest::of(&config), config.len() as u64),
        layers: vec![point(&format!("{MEDIA_LAYER}+gzip"), digest.clone(), size)],
    };
    let manifest = serde_json::to_vec(&manifest).map_err(bad_json)?;
    let mut entry = point(MEDIA_MANIFEST, BlobDigest::of(&manifest), manifest.len() as u64);
    entry.annotations.insert(ANNOTATION_NAME.to_owned(), description.name.to_owned());
    let index = Index { schema_version: 2, media_type: MEDIA_INDEX.to_owned(), manifests: vec![entry] };
    let index = serde_json::to_vec(&index).map_err(bad_json)?;

    let mut builder = Builder::new(output);
    let mut write = |path: &str, size: u64, content: &mut dyn io::Read| {
        let mut header = Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(EntryType::Regular);
        builder.append_data(&mut header, path, content).map_err(Error::at("output"))
    };
    let blob = |digest: &BlobDigest| format!("blobs/sha256/{}", digest.hex());
    let version: &[u8] = b"{\"imageLayoutVersion\":\"1.0.0\"}";
    for (path, bytes) in [
        ("oci-layout".to_owned(), version),
        ("index.json".to_owned(), &*index),
        (blob(&BlobDigest::of(&manifest)), &*manifest),
        (blob(&BlobDigest::of(&config)), &*config),
    ] {
        write(&path, bytes.len() as u64, &mut &*bytes)?;
    }
    write(&blob(&digest), size, &mut file)?;
    builder.into_inner().map(drop).map_err(Error::at("output"))
}

fn bad_json(error: serde_json::Error) -> Error {
    Error::at("output")(io::Error::from(error))
}

/// The configuration of the image that is written.
fn configuration(description: &Description<'_>, diff: &BlobDigest) -> serde_json::Value {
    let mut value = match description.configuration.clone() {
        Some(value @ serde_json::Value::Object(_)) => value,
        _ => {
            let config = description.config;
            let words = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
            let env = config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let run = RunConfiguration {
                env: Some(env),
                entrypoint: words(&config.entrypoint),
                cmd: words(&config.cmd),
                working_dir: config.workdir.clone(),
                user: config.user.clone(),
            };
            json!({
                "created": description.created_at,
                "os": description.platform.os,
                "architecture": description.platform.architecture,
                "config": run,
            })
        }
    };
    if let Some(object) = value.as_object_mut() {
        object.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": [diff]}));
        object.remove("history");
    }
    value
}

fn archive(files: &Files, output: &mut dyn Write) -> Result<()> {
    let mut writer = Writer {
        files,
        builder: Builder::new(io::BufWriter::with_capacity(COPY_BYTES, output)),
        names: HashMap::new(),
    };
    let root = files.merged.root()?;
    writer.directory(&root, b"")?;
    let mut output = writer.builder.into_inner().map_err(Error::at("output"))?;
    output.flush().map_err(Error::at("output"))
}

struct Writer<'a> {
    files: &'a Files,
    builder: Builder<io::BufWriter<&'a mut dyn Write>>,
    /// Files with several names, and the first one.
    names: HashMap<(u64, u64), Vec<u8>>,
}

impl Writer<'_> {
    /// Writes what is in a directory.
    fn directory(&mut self, directory: &Directory, path: &[u8]) -> Result<()> {
        for name in self.files.merged.names(directory)? {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            match self.files.merged.lookup(directory, &name)? {
                Some(Node::Directory(inner, stat)) => {
                    self.attributes(inner.top())?;
                    let mut header = header(EntryType::Directory, &stat);
                    if let Some(attributes) = self.files.implied.get(&path) {
                        header.set_mode(attributes.mode);
                        header.set_uid(attributes.uid);
                        header.set_gid(attributes.gid);
                    }
                    self.append(&mut header, &[&*path, b"/"].concat(), &mut io::empty())?;
                    self.directory(&inner, &path)?;
                }
                Some(Node::File(file, stat)) => self.file(File::from(file), &stat, path)?,
                Some(Node::Symlink(target, stat)) => {
                    if !self.again(&stat, &path)? {
                        let mut header = header(EntryType::Symlink, &stat);
                        self.link(&mut header, &path, &target)?;
                    }
                }
                Some(Node::Other) | None => {}
            }
        }
        Ok(())
    }

    /// Writes a further name of what was written before; false if it was not.
    fn again(&mut self, stat: &Stat, path: &[u8]) -> Result<bool> {
        if stat.st_nlink <= 1 {
            return Ok(false);
        }
        let Some(first) = self.names.get(&(stat.st_dev, stat.st_ino)).cloned() else {
            self.names.insert((stat.st_dev, stat.st_ino), path.to_vec());
            return Ok(false);
        };
        let mut header = header(EntryType::Link, stat);
        self.link(&mut header, path, &first)?;
        Ok(true)
    }

    fn file(&mut self, file: File, stat: &Stat, path: Vec<u8>) -> Result<()> {
        if self.again(stat, &path)? {
            return Ok(());
        }
        self.attributes(file.as_fd())?;
        let mut header = header(EntryType::Regular, stat);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        header.set_size(size);
        self.append(&mut header, &path, &mut io::BufReader::with_capacity(COPY_BYTES, file).take(size))
    }

    fn append(&mut self, header: &mut Header, path: &[u8], content: &mut dyn io::Read) -> Result<()> {
        self.builder.append_data(header, OsStr::from_bytes(path), content).map_err(Error::at("output"))
    }

    fn link(&mut self, header: &mut Header, path: &[u8], target: &[u8]) -> Result<()> {
        let (path, target) = (OsStr::from_bytes(path), OsStr::from_bytes(target));
        self.builder.append_link(header, path, target).map_err(Error::at("output"))
    }

    /// Extended attributes of what is written next.
    fn attributes(&mut self, file: std::os::fd::BorrowedFd<'_>) -> Result<()> {
        let kept = extended_attributes(file).map_err(Error::at("image"))?;
        if kept.is_empty() {
            return Ok(());
        }
        let named: Vec<(String, Vec<u8>)> = kept
            .into_iter()
            .filter_map(|(name, value)| Some((format!("SCHILY.xattr.{}", name.to_str().ok()?), value)))
            .collect();
        let records = named.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(records).map_err(Error::at("output"))
    }
}

fn header(kind: EntryType, stat: &Stat) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

/// Hashes what is written through it.
struct Hashing<W> {
    writer: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.writer.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
