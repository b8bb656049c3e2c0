//! Interfaces, addresses, routes and neighbours of one network namespace.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use ipnet::Ipv4Net;

use super::netlink::{
    ACKNOWLEDGE, APPEND, CREATE, EXCLUSIVE, Messages, Protocol, REPLACE, Socket, attributes, number, text,
};

/// Hardware address of every host's end.
pub(super) const HOST_MAC: [u8; 6] = [0x02, 0x53, 0x48, 0x00, 0x00, 0x01];

/// Hardware address of every machine's end: a machine that is restored elsewhere finds its own.
pub(super) const MACHINE_MAC: [u8; 6] = [0x02, 0x53, 0x48, 0x00, 0x00, 0x02];

/// The loopback device is the first of every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Constants that libc does not have.
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const DEVCONF_FORWARDING: u16 = 1;
const DEVCONF_PROXY_ARP: u16 = 3;
const DEVCONF_ACCEPT_REDIRECTS: u16 = 4;
const DEVCONF_SEND_REDIRECTS: u16 = 6;
const DEVCONF_REVERSE_PATH_FILTER: u16 = 8;
const DEVCONF_ACCEPT_SOURCE_ROUTE: u16 = 9;
const DEVCONF_ARP_IGNORE: u16 = 19;
const DEVCONF_ARP_ACCEPT: u16 = 21;
const DEVCONF_ROUTE_LOCALNET: u16 = 26;

/// How an interface towards a guest is: it answers for its own address only and learns nothing from the guest. It passes
/// on what it is given, or says at once that there is no way: silence would keep a guest without a network waiting. A new
/// namespace would have some of it as the host has.
const TOWARDS_GUEST: &[(u16, u32)] = &[
    (DEVCONF_FORWARDING, 1),
    (DEVCONF_PROXY_ARP, 0),
    (DEVCONF_ACCEPT_REDIRECTS, 0),
    (DEVCONF_SEND_REDIRECTS, 0),
    (DEVCONF_REVERSE_PATH_FILTER, 1),
    (DEVCONF_ACCEPT_SOURCE_ROUTE, 0),
    (DEVCONF_ARP_IGNORE, 1),
    (DEVCONF_ARP_ACCEPT, 0),
    (DEVCONF_ROUTE_LOCALNET, 0),
];
/// Families, in a header and as the attribute that holds what is about them.
const FAMILY_INET: u8 = 2;
const ATTRIBUTE_INET: u16 = 2;
const ATTRIBUTE_INET6: u16 = 10;
const UP: u32 = libc::IFF_UP as u32;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number.
    pub(super) index: u32,
    /// Its name.
    pub(super) name: String,
    /// What it is for, in words.
    pub(super) alias: String,
    /// Its largest packet.
    pub(super) mtu: u32,
    /// Packets that come in here may go out elsewhere.
    pub(super) forwards: bool,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Where to.
    pub(super) destination: Ipv4Net,
    /// Interfaces it leaves by.
    pub(super) links: Vec<u32>,
}

/// Whether an interface speaks IPv6 in this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ipv6 {
    /// The kernel knows IPv6.
    Known,
    /// It does not.
    Unknown,
}

/// A pair of interfaces to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair<'a> {
    /// Name of the host's end.
    pub(super) host: &'a str,
    /// Name of the machine's end.
    pub(super) machine: &'a str,
    /// Largest packet of both.
    pub(super) mtu: u32,
}

/// Speaks about the namespace in which it was opened.
#[derive(Debug)]
pub(super) struct Routes(Socket);

impl Routes {
    /// Of the calling thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        Socket::open(Protocol::Route).map(Self)
    }

    /// Makes a pair of which the second end lies in another namespace. A name that is taken is an error.
    pub(super) fn make_pair(&self, pair: Pair<'_>, other: BorrowedFd<'_>) -> io::Result<()> {
        let mut messages = Messages::default();
        messages.begin(libc::RTM_NEWLINK, CREATE | EXCLUSIVE | ACKNOWLEDGE, &link_header(0, 0, 0));
        let end = |messages: &mut Messages, name: &str, mac: [u8; 6]| {
            messages.put_text(libc::IFLA_IFNAME, name);
            messages.put_number(libc::IFLA_MTU, pair.mtu);
            messages.put(libc::IFLA_ADDRESS, &mac);
        };
        end(&mut messages, pair.host, HOST_MAC);
        messages.nest(libc::IFLA_LINKINFO, |kind| {
            kind.put_text(libc::IFLA_INFO_KIND, "veth");
            kind.nest(libc::IFLA_INFO_DATA, |veth| {
                veth.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&link_header(0, 0, 0));
                    end(peer, pair.machine, MACHINE_MAC);
                    peer.put(libc::IFLA_NET_NS_FD, &other.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.0.request(messages)
    }

    /// Brings an interface up.
    pub(super) fn raise(&self, index: u32) -> io::Result<()> {
        let mut messages = Messages::default();
        messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(index, UP, UP));
        self.0.request(messages)
    }

    /// Brings a host's end up: what comes in may be forwarded, and it gets no address of its own.
    pub(super) fn raise_host_end(&self, index: u32, ipv6: Ipv6) -> io::Result<()> {
        let mut messages = Messages::default();
        forgo_ipv6(&mut messages, index, ipv6);
        set_forwarding(&mut messages, index, 1);
        messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(index, UP, UP));
        self.0.request(messages)
    }

    /// Whether packets that come in on an interface may go out on another.
    pub(super) fn set_forwarding(&self, index: u32, value: u32) -> io::Result<()> {
        let mut messages = Messages::default();
        set_forwarding(&mut messages, index, value);
        self.0.request(messages)
    }

    /// Says what an interface is for.
    pub(super) fn set_alias(&self, index: u32, alias: &str) -> io::Result<()> {
        let mut messages = Messages::default();
        messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(index, 0, 0));
        messages.put(libc::IFLA_IFALIAS, alias.as_bytes());
        self.0.request(messages)
    }

    /// Removes an interface and its other end. Absent is success.
    pub(super) fn remove(&self, index: u32) -> io::Result<()> {
        let mut messages = Messages::default();
        messages.begin(libc::RTM_DELLINK, ACKNOWLEDGE, &link_header(index, 0, 0));
        match self.0.request(messages) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// The host's side of a machine: the route to it, which nobody else may have, and its hardware address, so that
    /// nobody has to be asked for it.
    pub(super) fn lead_to(&self, index: u32, machine: Ipv4Addr) -> io::Result<()> {
        let mut messages = Messages::default();
        let header = route_header(32, libc::RT_SCOPE_LINK);
        messages.begin(libc::RTM_NEWROUTE, CREATE | EXCLUSIVE | ACKNOWLEDGE, &header);
        messages.put(libc::RTA_DST, &machine.octets());
        messages.put_number(libc::RTA_OIF, index);
        self.0.request(messages)?;
        let mut messages = Messages::default();
        add_neighbour(&mut messages, index, machine, MACHINE_MAC);
        self.0.request(messages)
    }

    /// The machine's side: its address, and everything else by way of the gateway.
    pub(super) fn lead_out(&self, index: u32, machine: Ipv4Addr, gateway: Ipv4Addr) -> io::Result<()> {
        let mut messages = Messages::default();
        add_address(&mut messages, index, machine, 32);
        messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(index, UP, UP));
        add_neighbour(&mut messages, index, gateway, HOST_MAC);
        let header = route_header(32, libc::RT_SCOPE_LINK);
        messages.begin(libc::RTM_NEWROUTE, CREATE | APPEND | ACKNOWLEDGE, &header);
        messages.put(libc::RTA_DST, &gateway.octets());
        messages.put_number(libc::RTA_OIF, index);
        let header = route_header(0, libc::RT_SCOPE_UNIVERSE);
        messages.begin(libc::RTM_NEWROUTE, CREATE | APPEND | ACKNOWLEDGE, &header);
        messages.put(libc::RTA_GATEWAY, &gateway.octets());
        messages.put_number(libc::RTA_OIF, index);
        self.0.request(messages)
    }

    /// The end towards a guest: its address and hardware address are the same everywhere, and the guest's as well, so that
    /// nobody has to be asked for it.
    pub(super) fn face_guest(
        &self,
        index: u32,
        own: Ipv4Addr,
        guest: Ipv4Addr,
        ipv6: Ipv6,
    ) -> io::Result<()> {
        let mut messages = Messages::default();
        messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(index, 0, 0));
        messages.put(libc::IFLA_ADDRESS, &HOST_MAC);
        forgo_ipv6(&mut messages, index, ipv6);
        set_devconf(&mut messages, index, TOWARDS_GUEST);
        // A network of one: whoever else a guest pretends to have beside it would be remembered, in a table that all
        // namespaces of the host share.
        add_address(&mut messages, index, own, 32);
        messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(index, UP, UP));
        add_neighbour(&mut messages, index, guest, MACHINE_MAC);
        let header = route_header(32, libc::RT_SCOPE_LINK);
        messages.begin(libc::RTM_NEWROUTE, CREATE | APPEND | ACKNOWLEDGE, &header);
        messages.put(libc::RTA_DST, &guest.octets());
        messages.put(libc::RTA_PREFSRC, &own.octets());
        messages.put_number(libc::RTA_OIF, index);
        self.0.request(messages)
    }

    /// Lets packets from the outer of two interfaces through, and be as large on the inner.
    pub(super) fn join(&self, outer: u32, inner: u32, mtu: u32) -> io::Result<()> {
        let mut messages = Messages::default();
        messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(inner, 0, 0));
        messages.put_number(libc::IFLA_MTU, mtu);
        set_forwarding(&mut messages, outer, 1);
        self.0.request(messages)
    }

    /// The interface of a name.
    pub(super) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut messages = Messages::default();
        messages.begin(libc::RTM_GETLINK, ACKNOWLEDGE, &link_header(0, 0, 0));
        messages.put_text(libc::IFLA_IFNAME, name);
        Ok(self.0.get(messages)?.and_then(|answer| read_link(&answer.payload)))
    }

    /// The interface of a number.
    pub(super) fn link_at(&self, index: u32) -> io::Result<Option<Link>> {
        let mut messages = Messages::default();
        messages.begin(libc::RTM_GETLINK, ACKNOWLEDGE, &link_header(index, 0, 0));
        Ok(self.0.get(messages)?.and_then(|answer| read_link(&answer.payload)))
    }

    /// All interfaces.
    pub(super) fn links(&self) -> io::Result<Vec<Link>> {
        let links =
            self.0.dump(|messages, flags| messages.begin(libc::RTM_GETLINK, flags, &link_header(0, 0, 0)))?;
        Ok(links
            .iter()
            .filter(|answer| answer.kind == libc::RTM_NEWLINK)
            .filter_map(|answer| read_link(&answer.payload))
            .collect())
    }

    /// Routes of the main table for IPv4.
    pub(super) fn routes(&self) -> io::Result<Vec<Route>> {
        let header = route_header(0, libc::RT_SCOPE_UNIVERSE);
        let routes = self.0.dump(|messages, flags| messages.begin(libc::RTM_GETROUTE, flags, &header))?;
        Ok(routes
            .iter()
            .filter(|answer| answer.kind == libc::RTM_NEWROUTE)
            .filter_map(|answer| read_route(&answer.payload))
            .collect())
    }

    /// The host's own IPv4 addresses.
    pub(super) fn addresses(&self) -> io::Result<Vec<Ipv4Addr>> {
        let mut header = [0; 8];
        header[0] = FAMILY_INET;
        let addresses = self.0.dump(|messages, flags| messages.begin(libc::RTM_GETADDR, flags, &header))?;
        let local = |payload: &[u8]| {
            let value = attributes(payload.get(8..)?).find(|(kind, _)| *kind == libc::IFA_LOCAL)?.1;
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?))
        };
        Ok(addresses.iter().filter_map(|answer| local(&answer.payload)).collect())
    }
}

fn set_forwarding(messages: &mut Messages, index: u32, value: u32) {
    set_devconf(messages, index, &[(DEVCONF_FORWARDING, value)]);
}

fn set_devconf(messages: &mut Messages, index: u32, settings: &[(u16, u32)]) {
    messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(index, 0, 0));
    messages.nest(libc::IFLA_AF_SPEC, |families| {
        families.nest(ATTRIBUTE_INET, |family| {
            family.nest(IFLA_INET_CONF, |values| {
                settings.iter().for_each(|(setting, value)| values.put_number(*setting, *value));
            });
        });
    });
}

/// An interface gets no address of its own by IPv6.
fn forgo_ipv6(messages: &mut Messages, index: u32, ipv6: Ipv6) {
    if ipv6 == Ipv6::Unknown {
        return;
    }
    messages.begin(libc::RTM_SETLINK, ACKNOWLEDGE, &link_header(index, 0, 0));
    messages.nest(libc::IFLA_AF_SPEC, |families| {
        families.nest(ATTRIBUTE_INET6, |family| {
            family.put(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
        });
    });
}

fn add_address(messages: &mut Messages, index: u32, address: Ipv4Addr, bits: u8) {
    let mut header = [0; 8];
    (header[0], header[1]) = (FAMILY_INET, bits);
    header[4..].copy_from_slice(&index.to_ne_bytes());
    messages.begin(libc::RTM_NEWADDR, CREATE | EXCLUSIVE | ACKNOWLEDGE, &header);
    messages.put(libc::IFA_LOCAL, &address.octets());
    messages.put(libc::IFA_ADDRESS, &address.octets());
}

fn add_neighbour(messages: &mut Messages, index: u32, address: Ipv4Addr, mac: [u8; 6]) {
    let mut header = [0; 12];
    header[0] = FAMILY_INET;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    messages.begin(libc::RTM_NEWNEIGH, CREATE | REPLACE | ACKNOWLEDGE, &header);
    messages.put(libc::NDA_DST, &address.octets());
    messages.put(libc::NDA_LLADDR, &mac);
}

/// `ifinfomsg`.
fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `rtmsg` of a unicast route of the main table.
fn route_header(bits: u8, scope: u8) -> [u8; 12] {
    let (table, protocol, kind) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, libc::RTN_UNICAST);
    [FAMILY_INET, bits, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0]
}

fn read_link(payload: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: number(payload.get(4..8)?)?,
        name: String::new(),
        alias: String::new(),
        mtu: 0,
        forwards: false,
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_IFALIAS => link.alias = text(value),
            libc::IFLA_MTU => link.mtu = number(value)?,
            libc::IFLA_AF_SPEC => link.forwards = forwards(value).unwrap_or(false),
            _ => {}
        }
    }
    Some(link)
}

fn forwards(families: &[u8]) -> Option<bool> {
    let inet = attributes(families).find(|(kind, _)| *kind == ATTRIBUTE_INET)?.1;
    let values = attributes(inet).find(|(kind, _)| *kind == IFLA_INET_CONF)?.1;
    // An array that counts from one.
    let offset = usize::from(DEVCONF_FORWARDING - 1) * size_of::<u32>();
    Some(number(values.get(offset..)?)? != 0)
}

fn read_route(payload: &[u8]) -> Option<Route> {
    let (bits, table, kind) = (*payload.get(1)?, *payload.get(4)?, *payload.get(7)?);
    if table != libc::RT_TABLE_MAIN || kind != libc::RTN_UNICAST {
        return None;
    }
    let mut route = Route { destination: Ipv4Net::new(Ipv4Addr::UNSPECIFIED, bits).ok()?, links: Vec::new() };
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => {
                let address = Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?);
                route.destination = Ipv4Net::new(address, bits).ok()?;
            }
            libc::RTA_OIF => route.links.extend(number(value)),
            libc::RTA_MULTIPATH => route.links.extend(next_hops(value)),
            _ => {}
        }
    }
    Some(route)
}

/// Interfaces of a route with several: `rtnexthop` structures one after the other.
fn next_hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut links = Vec::new();
    while let (Some(length), Some(link)) = (bytes.get(..2), bytes.get(4..8)) {
        links.extend(number(link));
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        if length == 0 {
            break;
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    links
}
