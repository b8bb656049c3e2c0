//! A store in a bucket of an S3-compatible service: the dozen calls that snapshots need.

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};

use super::{Condition, Depth, Entry, FOLDER, Fault, Object, Part, Payload, Upload};
use crate::{
    Result,
    config::{Bucket, Patience},
};

mod connect;
mod request;
mod sign;
mod xml;

use request::{Answer, Call, Client};

/// Largest document that is read.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;

/// Most pages of one listing.
const PAGES_MAX: usize = 10_000;

/// Largest object that is copied in one request, and the size of the parts of larger ones: what all services take.
const COPY_BYTES_MAX: u64 = 4 << 30;

/// Tells which push made an object.
const REVISION: HeaderName = HeaderName::from_static("x-amz-meta-sandhaus-revision");

const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
const COPY_SOURCE_RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");
const METADATA_DIRECTIVE: HeaderName = HeaderName::from_static("x-amz-metadata-directive");

/// A bucket.
#[derive(Debug)]
pub(crate) struct S3 {
    client: Client,
    /// What all keys begin with.
    prefix: String,
}

impl S3 {
    pub(super) fn open(bucket: &Bucket, patience: &Patience) -> Result<Self> {
        let mut prefix = format!("{FOLDER}/");
        if !bucket.prefix.is_empty() {
            prefix = format!("{}/{prefix}", bucket.prefix);
        }
        Ok(Self { client: Client::open(bucket, patience)?, prefix })
    }

    pub(super) fn name(&self) -> &str {
        self.client.name()
    }

    fn call(&self, method: Method, key: &str) -> Call {
        Call::new(method, format!("{}{key}", self.prefix))
    }

    pub(super) async fn head(&self, key: &str) -> Result<Object, Fault> {
        let answer = self.client.send(&self.call(Method::HEAD, key)).await?;
        let length = answer.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let size_bytes = length
            .and_then(|length| length.parse().ok())
            .ok_or_else(|| self.client.odd("does not say how long an object is"))?;
        let revision = answer.headers.get(REVISION).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(Object { size_bytes, etag: etag(&answer.headers), revision })
    }

    pub(super) async fn get(
        &self,
        key: &str,
        version: Option<&str>,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Fault> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut call = self.call(Method::GET, key);
        if let Some(version) = version {
            call.header(header::IF_MATCH, version)?;
        }
        self.client.fetch(&mut call, version, offset, length).await
    }

    pub(super) async fn document(&self, key: &str, bytes_max: u64) -> Result<(Bytes, Option<String>), Fault> {
        let Answer { headers, body } =
            self.client.send(&self.call(Method::GET, key).at_most(bytes_max)).await?;
        Ok((body, etag(&headers)))
    }

    pub(super) async fn put(
        &self,
        key: &str,
        payload: Payload,
        condition: &Condition,
        revision: &str,
    ) -> Result<Option<String>, Fault> {
        let mut call = self.call(Method::PUT, key).with_body(payload);
        call.header(REVISION, revision)?;
        match condition {
            Condition::Always => {}
            Condition::Absent => call.header(header::IF_NONE_MATCH, "*")?,
            Condition::Replaces(version) => call.header(header::IF_MATCH, version)?,
        }
        match self.client.send(&call).await {
            // A try whose answer was lost may have done it: then what is there is ours.
            Err(Fault::Changed) => match self.head(key).await {
                Ok(object) if object.revision.as_deref() == Some(revision) => Ok(object.etag),
                _ => Err(Fault::Changed),
            },
            answer => Ok(etag(&answer?.headers)),
        }
    }

    pub(super) async fn begin_upload(&self, key: &str, revision: &str) -> Result<Upload, Fault> {
        let mut call = self.call(Method::POST, key).query("uploads", "");
        call.header(REVISION, revision)?;
        let elements = self.elements(&call).await?;
        let id = xml::text(&elements, "InitiateMultipartUploadResult/UploadId").filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| self.client.odd("begins an upload and does not name it"))?.to_owned();
        Ok(Upload { key: key.to_owned(), id })
    }

    pub(super) async fn put_part(
        &self,
        upload: &Upload,
        number: u32,
        _offset: u64,
        payload: Payload,
    ) -> Result<String, Fault> {
        let call = self
            .call(Method::PUT, &upload.key)
            .query("partNumber", &number.to_string())
            .query("uploadId", &upload.id)
            .with_body(payload);
        let answer = self.client.send(&call).await.map_err(upload_gone)?;
        Ok(etag(&answer.headers).ok_or_else(|| self.client.odd("takes a part and does not name it"))?)
    }

    pub(super) async fn parts(&self, upload: &Upload) -> Result<Option<Vec<Part>>, Fault> {
        let (mut parts, mut marker) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let mut call = self.call(Method::GET, &upload.key).query("uploadId", &upload.id);
            if !marker.is_empty() {
                call = call.query("part-number-marker", &marker);
            }
            let elements = match self.elements(&call).await {
                Err(Fault::Failed(error)) if request::is_not_implemented(&error) => return Ok(None),
                elements => elements.map_err(upload_gone)?,
            };
            for record in xml::records(&elements, "ListPartsResult/Part", ["PartNumber", "Size", "ETag"]) {
                let [Some(number), Some(size), etag] = record else { continue };
                let (Ok(number), Ok(size_bytes)) = (number.parse(), size.parse()) else { continue };
                let etag = etag.filter(|etag| !etag.is_empty()).map(str::to_owned);
                parts.push(Part { number, size_bytes, etag });
            }
            let next = xml::text(&elements, "ListPartsResult/NextPartNumberMarker").unwrap_or_default();
            let more = xml::text(&elements, "ListPartsResult/IsTruncated") == Some("true");
            if !more || next.is_empty() || next == marker {
                return Ok(Some(parts));
            }
            next.clone_into(&mut marker);
        }
        Err(self.client.odd("lists parts without an end").into())
    }

    pub(super) async fn complete(
        &self,
        upload: &Upload,
        parts: &[(u32, String)],
        _size_bytes: u64,
    ) -> Result<Option<String>, Fault> {
        let listed: String = parts
            .iter()
            .map(|(number, etag)| {
                format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", xml::escape(etag))
            })
            .collect();
        let document = format!("<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>");
        let call = self
            .call(Method::POST, &upload.key)
            .query("uploadId", &upload.id)
            .with_body(Payload::new(vec![document.into()]));
        let elements = self.elements(&call).await.map_err(upload_gone)?;
        // Amazon's etag here and in later answers are the same; others are asked for it then.
        match xml::text(&elements, "CompleteMultipartUploadResult/ETag").filter(|etag| !etag.is_empty()) {
            Some(etag) => Ok(Some(etag.to_owned())),
            None => Ok(self.head(&upload.key).await?.etag),
        }
    }

    pub(super) async fn abort(&self, upload: &Upload) -> Result<(), Fault> {
        let call = self.call(Method::DELETE, &upload.key).query("uploadId", &upload.id);
        match self.client.send(&call).await.map_err(upload_gone) {
            Ok(_) | Err(Fault::NoUpload) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn list(&self, prefix: &str, depth: Depth) -> Result<Vec<Entry>, Fault> {
        let (mut entries, mut token) = (Vec::new(), String::new());
        for _ in 0..PAGES_MAX {
            let mut call = Call::new(Method::GET, String::new())
                .query("list-type", "2")
                .query("prefix", &format!("{}{prefix}", self.prefix));
            if depth == Depth::Level {
                call = call.query("delimiter", "/");
            }
            if !token.is_empty() {
                call = call.query("continuation-token", &token);
            }
            let elements = self.elements(&call).await?;
            for record in xml::records(&elements, "ListBucketResult/Contents", ["Key", "Size"]) {
                let [Some(key), size] = record else { continue };
                let Some(key) = key.strip_prefix(&self.prefix).filter(|key| !key.is_empty()) else {
                    continue;
                };
                let size_bytes = size.and_then(|size| size.parse().ok()).unwrap_or_default();
                entries.push(Entry { key: key.to_owned(), size_bytes });
            }
            for record in xml::records(&elements, "ListBucketResult/CommonPrefixes", ["Prefix"]) {
                let Some(key) = record[0].and_then(|key| key.strip_prefix(&self.prefix)) else { continue };
                entries.push(Entry { key: key.to_owned(), size_bytes: 0 });
            }
            let next = xml::text(&elements, "ListBucketResult/NextContinuationToken").unwrap_or_default();
            let more = xml::text(&elements, "ListBucketResult/IsTruncated") == Some("true");
            if !more || next.is_empty() || next == token {
                return Ok(entries);
            }
            next.clone_into(&mut token);
        }
        Err(self.client.odd("lists objects without an end").into())
    }

    pub(super) async fn remove(&self, key: &str) -> Result<(), Fault> {
        match self.client.send(&self.call(Method::DELETE, key)).await {
            Ok(_) | Err(Fault::Absent) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn copy(
        &self,
        from: &str,
        to: &str,
        size_bytes: u64,
        revision: &str,
    ) -> Result<Option<String>, Fault> {
        let source = sign::encode_path(&format!("/{}/{}{from}", self.client.bucket(), self.prefix));
        if size_bytes > COPY_BYTES_MAX {
            return self.copy_in_parts(&source, to, size_bytes, revision).await;
        }
        let mut call = self.call(Method::PUT, to);
        call.header(COPY_SOURCE, &source)?;
        call.header(METADATA_DIRECTIVE, "REPLACE")?;
        call.header(REVISION, revision)?;
        let elements = self.elements(&call).await?;
        match xml::text(&elements, "CopyObjectResult/ETag").filter(|etag| !etag.is_empty()) {
            Some(etag) => Ok(Some(etag.to_owned())),
            None => Ok(self.head(to).await?.etag),
        }
    }

    async fn copy_in_parts(
        &self,
        source: &str,
        to: &str,
        size_bytes: u64,
        revision: &str,
    ) -> Result<Option<String>, Fault> {
        let upload = self.begin_upload(to, revision).await?;
        let copied = async {
            let mut parts = Vec::new();
            for (number, start) in (1..).zip((0..size_bytes).step_by(COPY_STEP)) {
                let end = (start + COPY_BYTES_MAX).min(size_bytes);
                let mut call = self
                    .call(Method::PUT, to)
                    .query("partNumber", &number.to_string())
                    .query("uploadId", &upload.id);
                call.header(COPY_SOURCE, source)?;
                call.header(COPY_SOURCE_RANGE, &format!("bytes={start}-{}", end - 1))?;
                let elements = self.elements(&call).await?;
                let etag = xml::text(&elements, "CopyPartResult/ETag").filter(|etag| !etag.is_empty());
                let etag = etag.ok_or_else(|| self.client.odd("copies a part and does not name it"))?;
                parts.push((number, etag.to_owned()));
            }
            self.complete(&upload, &parts, size_bytes).await
        }
        .await;
        if copied.is_err() {
            self.abort(&upload).await?;
        }
        copied
    }

    async fn elements(&self, call: &Call) -> Result<Vec<(String, String)>, Fault> {
        let answer = self.client.send(call).await?;
        let elements = xml::elements(&answer.body).map_err(|problem| self.client.odd(&problem))?;
        // Some calls tell of a failure only after they have said that all is well.
        if elements.first().is_some_and(|(name, _)| name == "Error") {
            return Err(self.client.refusal(call, StatusCode::INTERNAL_SERVER_ERROR, &answer.body).into());
        }
        Ok(elements)
    }
}

/// [`COPY_BYTES_MAX`] as a step.
#[expect(clippy::cast_possible_truncation, reason = "the host has 64 bits")]
const COPY_STEP: usize = COPY_BYTES_MAX as usize;

fn etag(headers: &HeaderMap<HeaderValue>) -> Option<String> {
    let etag = headers.get(header::ETAG)?.to_str().ok()?;
    (!etag.is_empty()).then(|| etag.to_owned())
}

fn upload_gone(fault: Fault) -> Fault {
    match fault {
        Fault::Absent => Fault::NoUpload,
        fault => fault,
    }
}
