//! Versions of images: `NAME.1`, `NAME.2` … stay, `NAME` stands for one of them, the newest unless it was rolled back.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use super::{BuiltVm, FileRecord, Manifest, Novelty, manifest::MANIFEST};
use crate::{
    Catalogue, Error, Image, ImageName, Platform, Result,
    blob::BlobDigest,
    catalogue::{NameRecord, Versions},
    content::ContentRecord,
    host::now,
    store::{self, Scratch},
};

/// Most versions of one name: more would be one made every hour for a century.
const VERSIONS_MAX: u64 = 1_000_000;

impl Catalogue {
    /// Fails if versions of this name could not be made.
    pub(crate) fn refuse_versions_of(&self, name: &ImageName) -> Result<()> {
        crate::catalogue::refuse_built_in(name)?;
        version_name(name, VERSIONS_MAX).map(drop)
    }

    /// Stores an image of a virtual machine whose files lie in `whole`, and gives it the next version of a name.
    pub(crate) fn enter_vm(
        &self,
        name: &ImageName,
        scratch: &Scratch,
        whole: &Path,
        manifest: Manifest,
    ) -> Result<BuiltVm> {
        let bytes = manifest.bytes()?;
        let digest = BlobDigest::of(&bytes);
        let path = whole.join(MANIFEST);
        fs_err::write(&path, bytes).map_err(Error::at(&path))?;
        let mut size_bytes = 0;
        for file in store::entries(whole)? {
            let path = whole.join(file);
            size_bytes += fs_err::symlink_metadata(&path).map_err(Error::at(&path))?.blocks() * 512;
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o444))
                .map_err(Error::at(&path))?;
        }
        let record = ContentRecord {
            created_at: now(),
            size_bytes,
            config: manifest.config.clone(),
            layers: Vec::new(),
            platform: Some(Platform::host()),
            disk: Some(manifest),
        };
        store::write_new(&whole.join("image.json"), &record)?;
        scratch.sync()?;
        let lock = self.store().lock()?;
        let place = self.content_directory(digest.as_str())?;
        if !store::exists(&place)? {
            store::publish(whole, &place)?;
        }
        let there = store::read_record::<NameRecord>(&self.name_record_path(name))?;
        let known = self.versions(name)?;
        if let Some((number, newest)) = known.last()
            && newest.digest == digest.as_str()
        {
            // It stands for the newest again, if it was rolled back.
            let made =
                there.as_ref().and_then(|there| there.versions).map_or(*number, |versions| versions.made);
            let versions = Some(Versions { current: *number, made: made.max(*number) });
            let record =
                NameRecord { name: name.clone(), digest: digest.to_string(), origin: None, versions };
            self.write_name(&record, &lock)?;
            let (image, version) = (self.image(record)?, version_name(name, *number)?);
            return Ok(BuiltVm { image, version, novelty: Novelty::Same });
        }
        let made = there.and_then(|there| there.versions).map_or(0, |versions| versions.made);
        let number = made.max(known.last().map_or(0, |(number, _)| *number)) + 1;
        let version = version_name(name, number)?;
        let named = |name: &ImageName, versions| NameRecord {
            name: name.clone(),
            digest: digest.to_string(),
            origin: None,
            versions,
        };
        // The version first: a name that stands for a version that is not there could not be rolled back to it.
        self.write_name(&named(&version, None), &lock)?;
        let record = named(name, Some(Versions { current: number, made: number }));
        self.write_name(&record, &lock)?;
        let image = self.image(record)?;
        drop(lock);
        tracing::info!(%name, %version, digest = image.digest, "image of a virtual machine made");
        Ok(BuiltVm { image, version, novelty: Novelty::New })
    }

    /// Lets a name stand for the version before the one that it stands for. Returns that version's name.
    pub fn rollback(&self, name: &ImageName) -> Result<(Image, ImageName)> {
        let lock = self.store().lock()?;
        let record = self.name_record(name)?;
        let known = self.versions(name)?;
        let current = match record.versions {
            Some(versions) => versions.current,
            // Somebody gave the name to something by hand: what the version is called by which that is known.
            None => {
                let current = known.iter().rev().find(|(_, version)| version.digest == record.digest);
                current.map_or(0, |(number, _)| *number)
            }
        };
        let before = known.into_iter().rev().find(|(number, _)| *number < current);
        let Some((number, before)) = before else { return Err(Error::NoVersionBefore(name.to_string())) };
        let made = record.versions.map_or(current, |versions| versions.made);
        let version = before.name;
        let record = NameRecord {
            name: name.clone(),
            digest: before.digest,
            origin: before.origin,
            versions: Some(Versions { current: number, made }),
        };
        self.write_name(&record, &lock)?;
        Ok((self.image(record)?, version))
    }

    /// Reads every file of a disk and compares it with the manifest, and that with the image's name.
    pub(crate) fn validate_disk(&self, name: &ImageName, digest: &str, directory: &Path) -> Result<()> {
        let damaged = |problem: String| Error::Damaged { image: name.to_string(), problem };
        let (manifest, found) = Manifest::read(directory)?;
        if found.as_str() != digest {
            return Err(damaged("its manifest has changed".to_owned()));
        }
        for (file, record) in manifest.files() {
            if FileRecord::of(&directory.join(&file)).ok().as_ref() != Some(record) {
                return Err(damaged(format!(
                    "its file {file} has changed; remove the image and build it again"
                )));
            }
        }
        Ok(())
    }

    /// The versions of a name that are there, oldest first.
    fn versions(&self, name: &ImageName) -> Result<Vec<(u64, NameRecord)>> {
        let number = |record: &NameRecord| {
            let number = record.name.as_str().strip_prefix(name.as_str())?.strip_prefix('.')?;
            let plain = !number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit());
            number.parse().ok().filter(|_| plain)
        };
        let records = self.name_records()?.into_iter();
        let mut found: Vec<(u64, NameRecord)> =
            records.filter_map(|record| Some((number(&record)?, record))).collect();
        found.sort_by_key(|(number, _)| *number);
        Ok(found)
    }
}

fn version_name(name: &ImageName, number: u64) -> Result<ImageName> {
    crate::root::within("number of versions", number, VERSIONS_MAX)?;
    ImageName::parse(&format!("{name}.{number}"))
}
