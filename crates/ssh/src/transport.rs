//! The encrypted stream: versions, packets, exchanges of keys whenever either side wants one. It does no I/O: bytes go in
//! and come out.
//!
//! ```text
//!  version ──> first exchange ──> open <──────────────> exchange
//!              nothing else       payloads both ways    ours wait until it is over
//! ```

use std::{mem, sync::Arc};

use bytes::{Bytes, BytesMut};

use crate::{
    cipher::{Opener, Sealer},
    error::{Error, Result},
    exchange::{self, Agreement, Secret, Transcript},
    keys::{self, HostKey},
    message,
    wire::Writer,
};

/// What the server calls itself.
const VERSION: &str = concat!("SSH-2.0-sandhaus_", env!("CARGO_PKG_VERSION"));

/// Longest line with which a client says its version.
const VERSION_BYTES_MAX: usize = 255;

/// Most packets under one key in either direction: far below what the ciphers and their counters bear.
const PACKETS_MAX: u32 = 1 << 28;

/// Most bytes that are kept while an exchange holds them back: answers to what was on the way. They are few.
const HELD_BYTES_MAX: usize = 4 << 20;

/// One side of the stream.
struct Side {
    sequence: u32,
    packets: u32,
    bytes: u64,
}

impl Side {
    const NEW: Self = Self { sequence: 0, packets: 0, bytes: 0 };

    fn count(&mut self, bytes: usize) {
        self.sequence = self.sequence.wrapping_add(1);
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    fn renew(&mut self, strict: bool) {
        *self = Self { sequence: if strict { 0 } else { self.sequence }, ..Self::NEW };
    }

    fn is_worn(&self, bytes_max: u64) -> bool {
        self.packets >= PACKETS_MAX || self.bytes >= bytes_max
    }
}

/// How far an exchange of keys is.
enum Stage {
    /// There is none.
    Idle,
    /// Our greeting went out.
    Greeted { ours: Vec<u8> },
    /// Theirs came too: their half is next.
    Agreed { ours: Vec<u8>, theirs: Bytes, agreement: Agreement },
    /// Our half went out and our keys are new: theirs are, once they say so.
    Answered { secret: Secret, agreement: Agreement },
}

/// The stream of one connection.
pub(crate) struct Transport {
    host: Arc<HostKey>,
    incoming: BytesMut,
    outgoing: BytesMut,
    held: Vec<Vec<u8>>,
    held_bytes: usize,
    client_version: Option<Vec<u8>>,
    opener: Opener,
    sealer: Sealer,
    received: Side,
    sent: Side,
    stage: Stage,
    skip_guess: bool,
    strict: bool,
    /// The hash of the first exchange.
    session: Option<Vec<u8>>,
    rekey_bytes: u64,
}

impl Transport {
    /// Says its version and offers the first exchange at once. Another follows after so many bytes.
    pub(crate) fn new(host: Arc<HostKey>, rekey_bytes: u64) -> Self {
        let mut transport = Self {
            host,
            incoming: BytesMut::new(),
            outgoing: BytesMut::from(format!("{VERSION}\r\n").as_bytes()),
            held: Vec::new(),
            held_bytes: 0,
            client_version: None,
            opener: Opener::Clear,
            sealer: Sealer::Clear,
            received: Side::NEW,
            sent: Side::NEW,
            stage: Stage::Idle,
            skip_guess: false,
            strict: false,
            session: None,
            rekey_bytes,
        };
        transport.offer();
        transport
    }

    /// Where received bytes are appended, and bytes to be sent, which whoever sends them removes.
    pub(crate) fn buffers(&mut self) -> (&mut BytesMut, &mut BytesMut) {
        (&mut self.incoming, &mut self.outgoing)
    }

    /// Bytes that wait to be sent.
    pub(crate) fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// The connection's name, which logins sign.
    pub(crate) fn session(&self) -> &[u8] {
        self.session.as_deref().unwrap_or_default()
    }

    /// Whether what is sent now waits for an exchange to end.
    pub(crate) fn is_exchanging(&self) -> bool {
        !matches!(self.stage, Stage::Idle | Stage::Answered { .. })
    }

    /// Sends a payload, after the exchange of keys if there is one.
    pub(crate) fn send(&mut self, payload: Vec<u8>) -> Result<()> {
        if !self.is_exchanging() {
            self.seal(&payload);
            if self.sent.is_worn(self.rekey_bytes) && self.session.is_some() {
                self.offer();
            }
            return Ok(());
        }
        self.held_bytes += payload.len();
        if self.held_bytes > HELD_BYTES_MAX {
            return Err(Error::Protocol("an exchange of keys that does not end"));
        }
        self.held.push(payload);
        Ok(())
    }

    /// Says why the connection ends.
    pub(crate) fn disconnect(&mut self, reason: u32, text: &str) {
        let payload = Writer::message(message::DISCONNECT).number(reason).string(text).string("").finish();
        self.seal(&payload);
    }

    fn seal(&mut self, payload: &[u8]) {
        let before = self.outgoing.len();
        self.sealer.seal(self.sent.sequence, payload, &mut self.outgoing);
        self.sent.count(self.outgoing.len() - before);
    }

    fn offer(&mut self) {
        if matches!(self.stage, Stage::Idle) {
            let ours = exchange::greeting();
            self.seal(&ours);
            self.stage = Stage::Greeted { ours };
        }
    }

    /// The next payload that is not the stream's own affair; `None` when more bytes are needed.
    pub(crate) fn next_payload(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.client_version.is_none() && !self.take_version()? {
                return Ok(None);
            }
            let whole = self.opener.packet_bytes(self.received.sequence, &self.incoming)?;
            let Some(bytes) = whole.filter(|bytes| self.incoming.len() >= *bytes) else { return Ok(None) };
            let mut packet = self.incoming.split_to(bytes);
            let place = self.opener.open(self.received.sequence, &mut packet)?;
            let payload = packet.freeze().slice(place);
            let number = self.received.sequence;
            self.received.count(bytes);
            if self.received.is_worn(self.rekey_bytes) && !matches!(self.opener, Opener::Clear) {
                self.offer();
            }
            if let Some(payload) = self.handle(payload, number)? {
                return Ok(Some(payload));
            }
        }
    }

    /// Takes the client's version if it is there.
    fn take_version(&mut self) -> Result<bool> {
        let Some(end) = self.incoming.iter().take(VERSION_BYTES_MAX).position(|byte| *byte == b'\n') else {
            return match self.incoming.len() >= VERSION_BYTES_MAX {
                true => Err(Error::Protocol("no version where there must be one")),
                false => Ok(false),
            };
        };
        let line = self.incoming.split_to(end + 1);
        let line = line.trim_ascii_end();
        if !line.starts_with(b"SSH-2.0-") || line.contains(&0) {
            return Err(Error::Protocol("not a client of SSH 2"));
        }
        self.client_version = Some(line.to_owned());
        Ok(true)
    }

    fn handle(&mut self, payload: Bytes, number: u32) -> Result<Option<Bytes>> {
        let kind = *payload.first().ok_or(Error::Protocol("an empty packet"))?;
        let first = matches!(self.opener, Opener::Clear);
        match kind {
            message::KEXINIT => self.begin(payload)?,
            message::NEWKEYS => self.renew_opener()?,
            message::DISCONNECT => return Err(Error::HungUp),
            // In the first exchange nothing may be slipped in, once it is known that both keep to that.
            message::IGNORE | message::DEBUG | message::UNIMPLEMENTED if !(first && self.strict) => {}
            30..=49 if matches!(self.stage, Stage::Agreed { .. }) => {
                if !mem::take(&mut self.skip_guess) {
                    self.answer(&payload)?;
                }
            }
            _ if first => return Err(Error::Protocol("a message before there are keys")),
            _ if matches!(self.stage, Stage::Agreed { .. } | Stage::Answered { .. }) => {
                return Err(Error::Protocol("a message within an exchange of keys"));
            }
            message::EXT_INFO => {}
            message::SERVICE_REQUEST | 50.. => return Ok(Some(payload)),
            _ => {
                let reply = Writer::message(message::UNIMPLEMENTED).number(number).finish();
                self.send(reply)?;
            }
        }
        Ok(None)
    }

    fn begin(&mut self, theirs: Bytes) -> Result<()> {
        let first = self.session.is_none();
        self.offer();
        let Stage::Greeted { ours } = mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(Error::Protocol("an exchange of keys within another"));
        };
        let agreement = exchange::agree(&theirs)?;
        if first {
            self.strict = agreement.strict;
            if self.strict && self.received.sequence != 1 {
                return Err(Error::Protocol("a message before the exchange of keys"));
            }
        }
        self.skip_guess = agreement.skip_guess;
        self.stage = Stage::Agreed { ours, theirs, agreement };
        Ok(())
    }

    fn answer(&mut self, payload: &[u8]) -> Result<()> {
        let Stage::Agreed { ours, theirs, agreement } = mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(Error::Protocol("half an exchange of keys"));
        };
        let transcript = Transcript {
            client_version: self.client_version.as_deref().unwrap_or_default(),
            server_version: VERSION.as_bytes(),
            client_greeting: &theirs,
            server_greeting: &ours,
        };
        let (reply, secret) = exchange::answer(&transcript, &self.host, payload)?;
        let first = self.session.is_none();
        self.seal(&reply);
        self.seal(&[message::NEWKEYS]);
        let session = self.session.get_or_insert_with(|| secret.hash().to_owned());
        self.sealer = secret.sealer(session, agreement.to_client);
        self.sent.renew(self.strict);
        self.stage = Stage::Answered { secret, agreement };
        if first && agreement.extensions {
            let signatures = keys::SIGNATURES.join(",");
            let extensions =
                Writer::message(message::EXT_INFO).number(1).string("server-sig-algs").string(signatures);
            self.seal(&extensions.finish());
        }
        self.held_bytes = 0;
        for payload in mem::take(&mut self.held) {
            self.seal(&payload);
        }
        Ok(())
    }

    fn renew_opener(&mut self) -> Result<()> {
        let Stage::Answered { secret, agreement } = mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(Error::Protocol("new keys without an exchange"));
        };
        self.opener = secret.opener(self.session(), agreement.from_client);
        self.received.renew(self.strict);
        Ok(())
    }
}
