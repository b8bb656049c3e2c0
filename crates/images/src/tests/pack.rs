//! Archives as nobody's packer writes them.

use tar::{EntryType, Header};

/// An archive being put together byte by byte.
#[derive(Debug, Clone, Default)]
pub(super) struct Pack(Vec<u8>);

impl Pack {
    pub(super) fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, "", content)
    }

    pub(super) fn directory(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Directory, path, "", "")
    }

    pub(super) fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Symlink, path, target, "")
    }

    pub(super) fn hard_link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Link, path, target, "")
    }

    pub(super) fn device(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Char, path, "", "")
    }

    /// Extended header records before the next entry.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let digits = (rest + rest.to_string().len()).to_string().len();
            content.extend_from_slice(format!("{} {key}=", rest + digits).as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", content)
    }

    pub(super) fn entry(
        self,
        kind: EntryType,
        path: impl AsRef<[u8]>,
        link: impl AsRef<[u8]>,
        content: impl AsRef<[u8]>,
    ) -> Self {
        self.entry_with(kind, path, link, content, |_| {})
    }

    /// An entry whose header `change` may still change.
    pub(super) fn entry_with(
        mut self,
        kind: EntryType,
        path: impl AsRef<[u8]>,
        link: impl AsRef<[u8]>,
        content: impl AsRef<[u8]>,
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let (path, link, content) = (path.as_ref(), link.as_ref(), content.as_ref());
        if path.len() > 100 {
            self = self.entry(EntryType::GNULongName, "long", "", [path, b"\0"].concat());
        }
        if link.len() > 100 {
            self = self.entry(EntryType::GNULongLink, "long", "", [link, b"\0"].concat());
        }
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        for (field, value) in [(&mut old.name, path), (&mut old.linkname, link)] {
            let fits = value.len().min(field.len());
            field[..fits].copy_from_slice(&value[..fits]);
        }
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// The archive without its end mark.
    pub(super) fn unfinished(self) -> Vec<u8> {
        self.0
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
