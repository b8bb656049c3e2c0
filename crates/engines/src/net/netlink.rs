//! Netlink as bytes: messages, attributes, sockets, answers. What is said with it lies in `route` and `filter`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink},
};

/// Bytes read at once: more than the kernel puts into one datagram of a dump.
const RECEIVE_BYTES: usize = 64 * 1024;

/// How often a dump is asked for again because the list changed under it.
const DUMP_ATTEMPTS_MAX: usize = 16;

/// Bytes of a message's own header.
const HEADER_BYTES: usize = 16;

/// Bytes of an attribute's header.
const ATTRIBUTE_BYTES: usize = 4;

/// Marks an attribute that holds others.
const NESTED: u16 = 1 << 15;

/// Bits of an attribute's kind that name it.
const KIND_MASK: u16 = !(0b11 << 14);

const REQUEST: u16 = 0x1;
/// An answer is wanted also where nothing fails.
pub(super) const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
/// It may be there already, unless [`EXCLUSIVE`] says otherwise.
pub(super) const CREATE: u16 = 0x400;
/// It must not be there.
pub(super) const EXCLUSIVE: u16 = 0x200;
/// What is there is replaced.
pub(super) const REPLACE: u16 = 0x100;
/// At the end of a list.
pub(super) const APPEND: u16 = 0x800;

/// `nfgenmsg`.
const FILTER_HEADER_BYTES: usize = 4;

/// The attribute that names a table, in messages about whatever is in it.
const FILTER_TABLE: u16 = 1;

/// The group that hears of changes to filters, as a bit.
const FILTER_CHANGES: u32 = 1 << (7 - 1);

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;

/// Messages of one datagram, built one after the other.
#[derive(Debug, Default)]
pub(super) struct Messages {
    bytes: Vec<u8>,
    /// Where the message that is being built begins.
    start: usize,
}

impl Messages {
    /// Begins a message with the header of its family.
    pub(super) fn begin(&mut self, kind: u16, flags: u16, header: &[u8]) {
        self.finish();
        self.start = self.bytes.len();
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        // Answers come in order and each request is read to its end, so nothing needs to be told apart.
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(0_u32.to_ne_bytes());
        self.bytes.extend(header);
        self.pad();
    }

    /// An attribute with bytes.
    pub(super) fn put(&mut self, attribute: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_BYTES + value.len()).expect("attributes are short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(attribute.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    /// An attribute with text and its closing zero.
    pub(super) fn put_text(&mut self, attribute: u16, text: &str) {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.put(attribute, &value);
    }

    /// An attribute with a number in the order of this machine.
    pub(super) fn put_number(&mut self, attribute: u16, number: u32) {
        self.put(attribute, &number.to_ne_bytes());
    }

    /// An attribute with a number in the order of networks.
    pub(super) fn put_network_number(&mut self, attribute: u16, number: u32) {
        self.put(attribute, &number.to_be_bytes());
    }

    /// An attribute that holds others.
    pub(super) fn nest(&mut self, attribute: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend((attribute | NESTED).to_ne_bytes());
        inside(self);
        let length = u16::try_from(self.bytes.len() - start).expect("attributes are short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// The header of another family within an attribute.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.pad();
    }

    /// How many bytes there are.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(&mut self) {
        if self.bytes.len() > self.start {
            let length = u32::try_from(self.bytes.len() - self.start).expect("messages are short");
            self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn into_bytes(mut self) -> Vec<u8> {
        self.finish();
        self.bytes
    }
}

/// What a socket speaks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Interfaces, addresses, routes.
    Route,
    /// Packet filters.
    Netfilter,
}

/// A socket to the kernel. It belongs to the network namespace in which it was made, wherever its user goes.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

/// A message that told of a change.
#[derive(Debug)]
pub(super) struct Heard {
    /// The port of the socket that made the change.
    pub(super) from: u32,
    payload: Vec<u8>,
}

impl Heard {
    /// It is about something in the table of this name.
    pub(super) fn names(&self, table: &str) -> bool {
        // The first attribute of everything in a table names the table.
        let mut named = attributes(self.payload.get(FILTER_HEADER_BYTES..).unwrap_or_default());
        named.any(|(kind, value)| kind == FILTER_TABLE && text(value) == table)
    }
}

/// One message of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// What it is.
    pub(super) kind: u16,
    /// What follows its header.
    pub(super) payload: Vec<u8>,
}

impl Socket {
    /// A socket in the calling thread's network namespace.
    pub(super) fn open(protocol: Protocol) -> io::Result<Self> {
        Self::bound(protocol, 0)
    }

    /// A socket that hears of changes to filters in the calling thread's network namespace.
    pub(super) fn listen_to_filters() -> io::Result<Self> {
        Self::bound(Protocol::Netfilter, FILTER_CHANGES)
    }

    fn bound(protocol: Protocol, groups: u32) -> io::Result<Self> {
        let number = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(rustix::net::netlink::NETFILTER),
        };
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            number,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self(socket))
    }

    /// The number by which others know what this socket did.
    pub(super) fn port(&self) -> io::Result<u32> {
        let address = SocketAddrNetlink::try_from(rustix::net::getsockname(&self.0)?)?;
        Ok(address.pid())
    }

    /// What was heard until now.
    pub(super) fn hear(&self) -> io::Result<Vec<Heard>> {
        let mut heard = Vec::new();
        let mut buffer = vec![0; RECEIVE_BYTES];
        while let Some(bytes) = self.receive(&mut buffer)? {
            let messages = split(&buffer[..bytes]);
            heard.extend(
                messages.map(|(header, payload)| Heard { from: header.port, payload: payload.to_vec() }),
            );
        }
        Ok(heard)
    }

    /// Has the messages carried out; the first that fails is the error. The kernel works while it takes them, so all
    /// answers are there afterwards.
    pub(super) fn request(&self, messages: Messages) -> io::Result<()> {
        self.send(messages)?;
        let mut failure = None;
        let mut buffer = vec![0; RECEIVE_BYTES];
        while let Some(bytes) = self.receive(&mut buffer)? {
            for (header, payload) in split(&buffer[..bytes]) {
                if header.kind == KIND_ERROR
                    && let Some(error) = error_in(payload)
                {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Everything of a list; `ask` begins the one message that asks for it, with the flags given.
    pub(super) fn dump(&self, ask: impl Fn(&mut Messages, u16)) -> io::Result<Vec<Answer>> {
        for _ in 0..DUMP_ATTEMPTS_MAX {
            let mut messages = Messages::default();
            ask(&mut messages, DUMP);
            if let Some(answers) = self.try_dump(messages)? {
                return Ok(answers);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn try_dump(&self, messages: Messages) -> io::Result<Option<Vec<Answer>>> {
        self.send(messages)?;
        let (mut answers, mut interrupted) = (Vec::new(), false);
        let mut buffer = vec![0; RECEIVE_BYTES];
        // The kernel writes each part when the one before was read.
        while let Some(bytes) = self.receive(&mut buffer)? {
            for (header, payload) in split(&buffer[..bytes]) {
                interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match header.kind {
                    KIND_DONE => return Ok((!interrupted).then_some(answers)),
                    KIND_ERROR => {
                        if let Some(error) = error_in(payload) {
                            return Err(error);
                        }
                    }
                    kind => answers.push(Answer { kind, payload: payload.to_vec() }),
                }
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// One thing by name; `None` if there is none.
    pub(super) fn get(&self, messages: Messages) -> io::Result<Option<Answer>> {
        self.send(messages)?;
        let mut found = None;
        let mut buffer = vec![0; RECEIVE_BYTES];
        while let Some(bytes) = self.receive(&mut buffer)? {
            for (header, payload) in split(&buffer[..bytes]) {
                if header.kind != KIND_ERROR {
                    found = Some(Answer { kind: header.kind, payload: payload.to_vec() });
                    continue;
                }
                match error_in(payload) {
                    Some(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {}
                    Some(error) => return Err(error),
                    None => {}
                }
            }
        }
        Ok(found)
    }

    fn send(&self, messages: Messages) -> io::Result<()> {
        let bytes = messages.into_bytes();
        rustix::net::sendto(self.0.as_fd(), &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// `None` when there is nothing more.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::net::recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => return Ok(Some(bytes)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u16,
    flags: u16,
    port: u32,
}

/// The messages of a datagram.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
        let port = u32::from_ne_bytes(bytes.get(12..16)?.try_into().ok()?);
        let length = usize::try_from(length).ok()?;
        let payload = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((Header { kind, flags, port }, payload))
    })
}

/// The error that an answer carries; none: it says that all went well.
fn error_in(payload: &[u8]) -> Option<io::Error> {
    let number = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    (number != 0).then(|| io::Error::from_raw_os_error(number.saturating_neg()))
}

/// The attributes that follow a family's header.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(ATTRIBUTE_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & KIND_MASK, value))
    })
}

/// Text with or without its closing zero.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A number in the order of this machine.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A number in the order of networks.
pub(super) fn network_number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_read_as_they_were_built() {
        let mut messages = Messages::default();
        messages.begin(7, ACKNOWLEDGE, &[1, 2, 3, 4]);
        messages.put_text(1, "ab");
        messages.nest(2, |inner| {
            inner.put_number(3, 9);
            inner.put_network_number(4, 10);
        });
        messages.begin(8, 0, &[]);
        let bytes = messages.into_bytes();
        let all: Vec<_> = split(&bytes).collect();
        assert_eq!(all.iter().map(|(header, _)| header.kind).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(all[0].0.flags, REQUEST | ACKNOWLEDGE);
        let outer: Vec<_> = attributes(&all[0].1[4..]).collect();
        assert_eq!((outer[0].0, text(outer[0].1).as_str()), (1, "ab"));
        assert_eq!(outer[1].0, 2);
        let inner: Vec<_> = attributes(outer[1].1).collect();
        assert_eq!((number(inner[0].1), network_number(inner[1].1)), (Some(9), Some(10)));
    }

    #[test]
    fn what_is_cut_off_ends_the_list() {
        assert_eq!(split(&[200, 0, 0, 0, 1, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 0]).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[4, 0, 1, 0]).count(), 1);
    }

    #[test]
    fn the_kernel_lists_interfaces() {
        let socket = Socket::open(Protocol::Route).expect("a socket opens");
        let links = socket.dump(|messages, flags| messages.begin(libc::RTM_GETLINK, flags, &[0; 16]));
        let links = links.expect("a list");
        assert!(links.iter().any(|link| link.kind == libc::RTM_NEWLINK));
        let mut wrong = Messages::default();
        wrong.begin(libc::RTM_DELLINK, ACKNOWLEDGE, &[0; 16]);
        wrong.put_text(libc::IFLA_IFNAME, "no-such-thing0");
        assert!(socket.request(wrong).is_err());
    }
}
