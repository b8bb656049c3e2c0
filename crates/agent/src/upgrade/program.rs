//! Taking the executable of the next agent: into a file in memory that nobody can change or read any more afterwards.

use std::{fs::File, io::Write as _};

use axum::{body::Body, http::HeaderMap};
use sandhaus_protocol::upgrade::{DIGEST_HEADER, EXECUTABLE_BYTES_MAX};
use sha2::{Digest as _, Sha256};

use crate::{
    error::{Error, Result, reason},
    http, sys,
};

/// Digits of a digest.
const DIGEST_CHARS: usize = 64;

/// The executable of a request's body.
pub(super) async fn receive(headers: &HeaderMap, mut body: Body) -> Result<File> {
    let told = headers.get(DIGEST_HEADER).and_then(|digest| digest.to_str().ok());
    let told = told.filter(|digest| digest.len() == DIGEST_CHARS).ok_or_else(|| {
        Error::invalid(format_args!("{DIGEST_HEADER} is to be the body's SHA-256 in hexadecimal"))
    })?;
    let no_room = |error| Error::unavailable(format_args!("no room for the new agent: {}", reason(&error)));
    let mut file = sys::executable_file().map_err(no_room)?;
    let (mut length, mut digest, mut header) = (0, Sha256::new(), Vec::new());
    loop {
        let chunk = http::next_chunk(&mut body)
            .await
            .map_err(|_| Error::invalid("the executable was cut short on its way"))?;
        let Some(chunk) = chunk else { break };
        length += chunk.len() as u64;
        if length > EXECUTABLE_BYTES_MAX {
            return Err(Error::too_large(format_args!(
                "an executable has at most {EXECUTABLE_BYTES_MAX} bytes"
            )));
        }
        if header.len() < sys::ELF_HEADER_BYTES {
            header.extend_from_slice(&chunk[..chunk.len().min(sys::ELF_HEADER_BYTES - header.len())]);
            if header.len() == sys::ELF_HEADER_BYTES
                && let Some(what) = sys::foreign_program(&header)
            {
                return Err(Error::invalid(what));
            }
        }
        digest.update(&chunk);
        file.write_all(&chunk).map_err(no_room)?;
        // The kernel takes it at once: others get their turn in between.
        tokio::task::yield_now().await;
    }
    if let Some(what) = sys::foreign_program(&header) {
        return Err(Error::invalid(what));
    }
    let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if digest != told {
        return Err(Error::invalid(format_args!("the body is not what {DIGEST_HEADER} says")));
    }
    sys::seal_executable(&file).map_err(no_room)?;
    Ok(file)
}
