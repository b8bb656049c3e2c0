//! The host's side of all networks of an instance, as the network thread works on it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
    sync::mpsc::Sender,
    time::{Duration, Instant},
};

use sandhaus_sandbox::engine::{EngineError, EngineResult};

use super::memory::Memory;
use super::{
    Attachment, NetworkConfig, Tenants,
    filter::{Common, Filter, Member, Router},
    guard, guest,
    inside::{self, Namespace},
    policy::{self, NEVER, PRIVATE, Reach},
    resolvers,
    route::{Ipv6, LOOPBACK, Link, Pair, Routes},
    steps::NetworkStep,
    thread::{Connected, Request},
    watch::Watch,
};
use crate::steps::pass;

/// Most namespaces with nothing but loopback that are kept ready.
const ISOLATED_MAX: usize = 16;

/// Most namespaces with an address that are kept ready.
const CONNECTED_MAX: usize = 8;

/// Names and addresses tried before giving up.
const ATTEMPTS_MAX: u32 = 4096;

/// How long what was seen of routes and name servers counts.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Largest packet where the host has no uplink to ask.
const MTU_DEFAULT: u32 = 1500;

/// Digits of an interface's number in its name; with the instance's id they fill it.
const DIGITS: usize = 3;

const DIGIT_LETTERS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// Interfaces that those digits can name.
const NAMES: u32 = 36 * 36 * 36;

/// The kernel's own switch for all interfaces.
const FORWARD_ALL: &str = "/proc/sys/net/ipv4/ip_forward";

/// Where the kernel shows that it knows IPv6.
const IPV6_SETTINGS: &str = "/proc/sys/net/ipv6";

/// A namespace with an address that nobody uses yet.
struct Spare {
    namespace: Namespace,
    index: u32,
    member: Member,
}

/// The host's side.
pub(super) struct Host {
    instance: String,
    tenants: Tenants,
    config: NetworkConfig,
    home: OwnedFd,
    routes: Routes,
    ipv6: Ipv6,
    /// Where the next name and address are looked for: onwards from a random place, so that one that was given back
    /// rests for long.
    next: u32,
    isolated: VecDeque<Namespace>,
    isolated_claims: usize,
    connected: VecDeque<Spare>,
    connected_claims: usize,
    /// Making ahead failed; nobody tries again before somebody asks.
    tired: bool,
    members: BTreeMap<String, Member>,
    /// Interfaces whose forwarding this instance turned on.
    memory: Memory,
    table: Option<Table>,
    mender: Sender<Request>,
}

/// What goes with a table of filters that is there.
struct Table {
    filter: Filter,
    resolvers: Vec<Ipv4Addr>,
    /// Interfaces whose forwarding we turned on, or another instance of ours.
    forwarding: BTreeSet<u32>,
    /// Interfaces that packets of machines leave by.
    uplinks: BTreeSet<u32>,
    router: Router,
    mtu: u32,
    looked: Instant,
    _watch: Watch,
}

/// What a failure of the host is called.
pub(super) fn host(what: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |error| match error.raw_os_error() {
        // Netfilter and veth say so in different words when the kernel lacks them.
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOENT) => {
            tracing::warn!(%error, what, "the kernel lacks something for networks");
            EngineError::Unsupported(
                "a bridged network on this host (`sandhaus doctor` tells what is missing)".to_owned(),
            )
        }
        Some(libc::EMFILE | libc::ENFILE) => EngineError::Exhausted("open files".to_owned()),
        Some(libc::ENOSPC) => EngineError::Exhausted("network namespaces".to_owned()),
        Some(libc::ENOMEM) => EngineError::Exhausted("memory".to_owned()),
        _ => EngineError::host(what, error),
    }
}

impl Host {
    pub(super) fn new(
        instance: &str,
        tenants: Tenants,
        config: NetworkConfig,
        memory: Memory,
        mender: Sender<Request>,
    ) -> EngineResult<Self> {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| EngineError::host("draw addresses", error))?;
        let known = std::path::Path::new(IPV6_SETTINGS).exists();
        Ok(Self {
            instance: instance.to_owned(),
            tenants,
            config,
            home: inside::own().map_err(host("open network namespace"))?,
            routes: Routes::open().map_err(host("open network"))?,
            ipv6: if known { Ipv6::Known } else { Ipv6::Unknown },
            next: u32::from_ne_bytes(random) >> 1,
            isolated: VecDeque::new(),
            isolated_claims: 0,
            connected: VecDeque::new(),
            connected_claims: 0,
            tired: false,
            members: BTreeMap::new(),
            memory,
            table: None,
            mender,
        })
    }

    /// Makes one namespace ahead, if one is wanted. A process that needs only one makes no second, and a guest takes so
    /// long to start that the first need not be there before it is asked for.
    pub(super) fn make_ahead(&mut self) -> bool {
        let wanted = |claims: usize, most: usize| claims.saturating_sub(1).min(most);
        let isolated = if self.isolated_claims + self.connected_claims == 0 {
            usize::from(self.tenants == Tenants::Processes)
        } else {
            wanted(self.isolated_claims, ISOLATED_MAX)
        };
        let made = if self.tired {
            return false;
        } else if self.isolated.len() < isolated {
            self.make_isolated().map(|namespace| self.isolated.push_back(namespace))
        } else if self.connected.len() < wanted(self.connected_claims, CONNECTED_MAX) {
            self.make_connected().map(|spare| self.connected.push_back(spare))
        } else {
            return false;
        };
        if let Err(error) = &made {
            tracing::warn!(%error, source = ?std::error::Error::source(error), "cannot make a network ahead");
            self.tired = true;
        }
        made.is_ok()
    }

    pub(super) fn isolated(&mut self) -> EngineResult<Namespace> {
        self.tired = false;
        self.isolated_claims = self.isolated_claims.saturating_add(1);
        match self.isolated.pop_front() {
            Some(namespace) => Ok(namespace),
            None => self.make_isolated(),
        }
    }

    pub(super) fn connect(&mut self, machine: &str, reach: Reach) -> EngineResult<Connected> {
        self.tired = false;
        self.connected_claims = self.connected_claims.saturating_add(1);
        self.ensure_table()?;
        let mut spare = match self.connected.pop_front() {
            Some(spare) => spare,
            None => self.make_connected()?,
        };
        let claimed = pass(NetworkStep::Claim, || {
            let table = self.table.as_ref().expect("it was just ensured");
            if reach != spare.member.reach {
                spare.member.reach = reach;
                table.filter.change(&self.config, &spare.member).map_err(host("filter machine"))?;
            }
            self.routes.set_alias(spare.index, machine).map_err(host("name interface"))
        });
        if let Err(error) = claimed {
            self.release(&spare.member.interface);
            return Err(error);
        }
        let Member { interface, address, reach } = spare.member.clone();
        self.members.insert(interface.clone(), spare.member);
        let resolvers = self.table.as_ref().map(|table| table.resolvers.clone()).unwrap_or_default();
        Ok(Connected {
            namespace: spare.namespace,
            attachment: Attachment { interface, address, reach },
            resolvers,
        })
    }

    /// Takes over what an earlier server left: machines of `known` go on, all else of the instance is removed.
    pub(super) fn adopt(&mut self, known: &[Attachment]) -> EngineResult<()> {
        let what = "take over networks";
        pass(NetworkStep::Adopt, || {
            let links = self.own_links()?;
            for attachment in known {
                if links.iter().any(|link| link.name == attachment.interface) {
                    let Attachment { interface, address, reach } = attachment.clone();
                    self.members.insert(interface.clone(), Member { interface, address, reach });
                } else {
                    // Its machine ended, or somebody removed it under a machine that runs.
                    tracing::debug!(interface = attachment.interface, "the interface of a machine is gone");
                }
            }
            for link in links.iter().filter(|link| !self.members.contains_key(&link.name)) {
                self.routes.remove(link.index).map_err(host(what))?;
            }
            if !self.members.is_empty() {
                return self.ensure_table();
            }
            let filter = match Filter::open(&self.instance) {
                Ok(filter) => filter,
                // Without netfilter there is nothing of ours in it.
                Err(_) => return Ok(()),
            };
            match filter.chains() {
                Ok(chains) => {
                    let own = || chains.iter().filter(|chain| filter.owns(chain));
                    let mut forwarding = self.memory.read();
                    forwarding.extend(own().filter_map(|chain| chain.forwarding()));
                    if !forwarding.is_empty() || own().next().is_some() {
                        self.remove_table(&filter, &forwarding)?;
                    }
                    Ok(())
                }
                Err(error) if is_absent(&error) => Ok(()),
                Err(error) => Err(host(what)(error)),
            }
        })
    }

    pub(super) fn change(&mut self, attachment: Attachment) -> EngineResult<()> {
        let Attachment { interface, address, reach } = attachment;
        if !self.members.contains_key(&interface) {
            return Err(EngineError::NotFound);
        }
        self.ensure_table()?;
        let member = Member { interface: interface.clone(), address, reach };
        let table = self.table.as_ref().expect("it was just ensured");
        table.filter.change(&self.config, &member).map_err(host("filter machine"))?;
        self.members.insert(interface, member);
        Ok(())
    }

    pub(super) fn release(&mut self, interface: &str) {
        let released = pass(NetworkStep::Release, || {
            self.members.remove(interface);
            if let Some(table) = &self.table {
                table.filter.forget(interface)?;
            }
            match self.tenants {
                // Its namespace is gone with it, and takes the interface along.
                Tenants::Processes => Ok(()),
                // What this server said to the guest last may have no answer, and keeps the namespace for some time.
                Tenants::Guests => match self.routes.link(interface)? {
                    Some(link) => self.routes.remove(link.index),
                    None => Ok(()),
                },
            }
        });
        if let Err(error) = released {
            tracing::warn!(%error, interface, "cannot let go of a machine's place; the next server will");
        }
    }

    /// Puts the table right after somebody else changed it.
    pub(super) fn mend(&mut self) {
        if self.table.is_none() {
            return;
        }
        tracing::warn!("somebody changed or removed the filters of sandboxes; writing them anew");
        if let Err(error) = self.rebuild() {
            tracing::error!(%error, source = ?std::error::Error::source(&error), "cannot filter sandboxes");
        }
    }

    /// Removes what no machine uses.
    pub(super) fn close(&mut self) -> EngineResult<()> {
        pass(NetworkStep::Close, || {
            self.isolated.clear();
            self.connected.clear();
            let Some(table) = self.table.take() else { return Ok(()) };
            for link in self.own_links()? {
                if !self.members.contains_key(&link.name) {
                    self.routes.remove(link.index).map_err(host("remove interface"))?;
                }
            }
            if self.members.is_empty() {
                self.remove_table(&table.filter, &table.forwarding)?;
            }
            Ok(())
        })
    }

    /// Interfaces that carry the instance's id.
    fn own_links(&self) -> EngineResult<Vec<Link>> {
        let mut links = self.routes.links().map_err(host("list interfaces"))?;
        links.retain(|link| {
            let digits = link.name.strip_prefix(&*self.instance);
            digits.is_some_and(|digits| digits.len() == DIGITS)
        });
        Ok(links)
    }

    fn make_isolated(&self) -> EngineResult<Namespace> {
        self.make_namespace().map(|(namespace, _)| namespace)
    }

    fn make_namespace(&self) -> EngineResult<(Namespace, Routes)> {
        let made = pass(NetworkStep::Namespace, || inside::make(&self.home, self.tenants));
        let (mut namespace, inner) = made.map_err(host("make network namespace"))?;
        match self.tenants {
            Tenants::Processes => {}
            Tenants::Guests => guest::fit_out(&self.home, &mut namespace, &inner, self.ipv6)?,
        }
        Ok((namespace, inner))
    }

    fn make_connected(&mut self) -> EngineResult<Spare> {
        self.ensure_table()?;
        let (namespace, inner) = self.make_namespace()?;
        let link = pass(NetworkStep::Pair, || self.make_pair(&namespace))?;
        let address = pass(NetworkStep::Route, || self.take_address(&link))?;
        pass(NetworkStep::Inside, || {
            let own = inner.link(guard::PAIR)?.ok_or(io::ErrorKind::NotFound)?;
            inner.lead_out(own.index, address, policy::gateway(self.config.subnet))?;
            match self.tenants {
                Tenants::Processes => Ok(()),
                Tenants::Guests => {
                    let tap = inner.link(guard::TAP)?.ok_or(io::ErrorKind::NotFound)?;
                    inner.join(own.index, tap.index, own.mtu)
                }
            }
        })
        .map_err(host("set up network of machine"))?;
        let member = Member { interface: link.name, address, reach: Reach::Internet };
        let table = self.table.as_ref().expect("it was just ensured");
        pass(NetworkStep::Rules, || table.filter.add(&self.config, &member))
            .map_err(host("filter machine"))?;
        Ok(Spare { namespace, index: link.index, member })
    }

    fn make_pair(&mut self, namespace: &Namespace) -> EngineResult<Link> {
        let mtu = self.table.as_ref().map_or(MTU_DEFAULT, |table| table.mtu);
        for _ in 0..ATTEMPTS_MAX {
            self.next = self.next.wrapping_add(1);
            let name = format!("{}{}", self.instance, digits(self.next % NAMES));
            let pair = Pair { host: &name, machine: guard::PAIR, mtu };
            match self.routes.make_pair(pair, namespace.namespace.as_fd()) {
                Ok(()) => {
                    let found = self.routes.link(&name).map_err(host("look at interface"))?;
                    return found.ok_or_else(|| host("look at interface")(io::ErrorKind::NotFound.into()));
                }
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(error) => return Err(host("make interface")(error)),
            }
        }
        Err(EngineError::Exhausted("names of interfaces".to_owned()))
    }

    /// Brings the host's end up and makes the route of an address that nobody has.
    fn take_address(&mut self, link: &Link) -> EngineResult<Ipv4Addr> {
        self.routes.raise_host_end(link.index, self.ipv6).map_err(host("raise interface"))?;
        for _ in 0..ATTEMPTS_MAX {
            let address = policy::address(self.config.subnet, self.next);
            match self.routes.lead_to(link.index, address) {
                Ok(()) => return Ok(address),
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    self.next = self.next.wrapping_add(1);
                }
                Err(error) => return Err(host("make route")(error)),
            }
        }
        Err(EngineError::Exhausted("addresses of network.subnet".to_owned()))
    }

    /// Makes the table if it is not there, and keeps it to what the host's network has become.
    fn ensure_table(&mut self) -> EngineResult<()> {
        if self.table.is_some() {
            return self.keep_up();
        }
        if let Some(mistake) = policy::mistake(&self.config) {
            return Err(EngineError::Invalid(mistake));
        }
        let what = "make filters";
        let filter = Filter::open(&self.instance).map_err(host(what))?;
        let chains = filter.chains().map_err(host(what))?;
        if chains.iter().any(|chain| chain.blocks_forwarding()) {
            let subnet = self.config.subnet;
            tracing::warn!(
                %subnet,
                "another filter of this host drops forwarded packets, so bridged sandboxes reach nothing; let both \
                 directions of the subnet through there (with Docker: iptables -I DOCKER-USER -s {subnet} -j ACCEPT \
                 and iptables -I DOCKER-USER -d {subnet} -j ACCEPT)"
            );
        }
        let surroundings = self.look_around()?;
        // What this instance turned on, or another that may be gone before it.
        let mut known = self.memory.read();
        known.extend(chains.iter().filter_map(|chain| chain.forwarding()));
        let watch = Watch::start(&self.instance, &filter, self.mender.clone()).map_err(host(what))?;
        self.table = Some(Table {
            filter,
            resolvers: surroundings.resolvers,
            forwarding: known,
            uplinks: BTreeSet::new(),
            router: surroundings.router,
            mtu: surroundings.mtu,
            looked: Instant::now(),
            _watch: watch,
        });
        let built = self.rebuild().and_then(|()| self.use_uplinks(surroundings.uplinks));
        if built.is_err() {
            self.table = None;
        }
        built
    }

    fn rebuild(&mut self) -> EngineResult<()> {
        let Some(table) = self.table.as_mut() else { return Ok(()) };
        let spares = self.connected.iter().map(|spare| spare.member.clone());
        let members: Vec<Member> = self.members.values().cloned().chain(spares).collect();
        let forwarding: Vec<u32> = table.forwarding.iter().copied().collect();
        let common = Common {
            config: &self.config,
            resolvers: &table.resolvers,
            forwarding: &forwarding,
            router: table.router,
            tenants: self.tenants,
        };
        pass(NetworkStep::Table, || table.filter.rebuild(&common, &members)).map_err(host("make filters"))
    }

    /// The host may have moved to another network.
    fn keep_up(&mut self) -> EngineResult<()> {
        let Some(table) = self.table.as_ref().filter(|table| table.looked.elapsed() >= LOOK_AGAIN) else {
            return Ok(());
        };
        let (resolvers, router) = (table.resolvers.clone(), table.router);
        let seen = self.look_around()?;
        let table = self.table.as_mut().expect("it was just there");
        table.looked = Instant::now();
        table.mtu = seen.mtu;
        if seen.resolvers != resolvers {
            table.filter.set_resolvers(&seen.resolvers, self.tenants).map_err(host("filter name servers"))?;
            table.resolvers = seen.resolvers;
        }
        table.router = seen.router;
        if seen.router != router {
            self.rebuild()?;
        }
        self.use_uplinks(seen.uplinks)
    }

    /// Lets these interfaces forward what comes back, and keeps in mind which of them did not before.
    fn use_uplinks(&mut self, uplinks: BTreeSet<u32>) -> EngineResult<()> {
        let what = "forward packets";
        let table = self.table.as_mut().expect("the caller has it");
        // All of them: another instance may have ended and turned off what it had turned on.
        let (mut fresh, mut open) = (Vec::new(), Vec::new());
        for &index in &uplinks {
            match self.routes.link_at(index).map_err(host(what))? {
                Some(link) if !link.forwards => fresh.push(index),
                Some(_) if !table.uplinks.contains(&index) => open.push(index),
                Some(_) | None => {}
            }
        }
        if !open.is_empty() {
            // The owner's wish, unless an instance of ours says that it was its own: then the last of us turns it off.
            let chains = table.filter.chains().map_err(host(what))?;
            let ours: BTreeSet<u32> = chains.iter().filter_map(|chain| chain.forwarding()).collect();
            open.retain(|index| ours.contains(index));
        }
        let unknown: Vec<u32> = [&*fresh, &*open]
            .concat()
            .into_iter()
            .filter(|index| !table.forwarding.contains(index))
            .collect();
        table.forwarding.extend(&unknown);
        if !unknown.is_empty() {
            let forwarding: Vec<u32> = table.forwarding.iter().copied().collect();
            let common = Common {
                config: &self.config,
                resolvers: &table.resolvers,
                forwarding: &forwarding,
                router: table.router,
                tenants: self.tenants,
            };
            // First what undoes it and the rule that keeps the host from being everybody's router, then the switch.
            self.memory.write(&table.forwarding).map_err(host(what))?;
            table.filter.set_forwarding(&common, &unknown).map_err(host(what))?;
        }
        for index in fresh {
            self.routes.set_forwarding(index, 1).map_err(host(what))?;
            tracing::info!(interface = index, "packets of bridged sandboxes leave by this interface");
        }
        table.uplinks = uplinks;
        Ok(())
    }

    fn look_around(&self) -> EngineResult<Surroundings> {
        let what = "look at the host's network";
        let routes = self.routes.routes().map_err(host(what))?;
        let subnet = self.config.subnet;
        let taken = routes.iter().find(|route| policy::takes(&route.destination, subnet));
        if let Some(route) = taken {
            return Err(EngineError::Invalid(format!(
                "network.subnet {subnet} is in use on this host (route {}): choose another",
                route.destination
            )));
        }
        let allowed: Vec<_> = policy::plain(&self.config.allow_private).collect();
        let matters = |destination: &ipnet::Ipv4Net| {
            let open = allowed.iter().any(|network| policy::overlap(network, destination));
            let closed =
                |networks: &[ipnet::Ipv4Net]| networks.iter().any(|network| network.contains(destination));
            !subnet.contains(destination) && !closed(NEVER) && (open || !closed(PRIVATE))
        };
        let mut uplinks = BTreeSet::new();
        let mut mtu = None;
        for route in routes.iter().filter(|route| matters(&route.destination)) {
            uplinks.extend(route.links.iter().copied().filter(|&index| index != LOOPBACK));
            if route.destination.prefix_len() == 0
                && let Some(&index) = route.links.first()
                && let Some(link) = self.routes.link_at(index).map_err(host(what))?
            {
                mtu = Some(mtu.map_or(link.mtu, |mtu: u32| mtu.min(link.mtu)));
            }
        }
        let own = self.routes.addresses().map_err(host(what))?;
        let all = fs_err::read_to_string(FORWARD_ALL).is_ok_and(|text| text.trim() == "1");
        Ok(Surroundings {
            uplinks,
            mtu: mtu.unwrap_or(MTU_DEFAULT),
            resolvers: resolvers::choose(&self.config, &own),
            router: if all { Router::Yes } else { Router::No },
        })
    }

    /// Removes the table and turns off what we turned on, unless another instance needs it.
    fn remove_table(&self, filter: &Filter, forwarding: &BTreeSet<u32>) -> EngineResult<()> {
        let what = "remove filters";
        let all = fs_err::read_to_string(FORWARD_ALL).is_ok_and(|text| text.trim() == "1");
        let needed = filter.has_neighbours().map_err(host(what))?;
        if !all && !needed {
            self.stop_forwarding(forwarding);
        }
        filter.remove().map_err(host(what))?;
        // Two that end at the same time see each other.
        if !all && needed && !filter.has_neighbours().map_err(host(what))? {
            self.stop_forwarding(forwarding);
        }
        self.memory.clear().map_err(host(what))
    }

    fn stop_forwarding(&self, interfaces: &BTreeSet<u32>) {
        for &index in interfaces {
            // It may be gone.
            if let Err(error) = self.routes.set_forwarding(index, 0) {
                tracing::debug!(%error, interface = index, "cannot stop forwarding");
            }
        }
    }
}

/// What of the host's network matters to machines.
struct Surroundings {
    uplinks: BTreeSet<u32>,
    mtu: u32,
    resolvers: Vec<Ipv4Addr>,
    router: Router,
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::ENOENT)
    )
}

/// A number in as few letters as fit a name.
fn digits(mut number: u32) -> String {
    let mut text = [b'0'; DIGITS];
    for digit in text.iter_mut().rev() {
        *digit = DIGIT_LETTERS[(number % 36) as usize];
        number /= 36;
    }
    text.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_fit_and_differ() {
        assert_eq!(digits(0), "000");
        assert_eq!(digits(35), "00z");
        assert_eq!(digits(36), "010");
        assert_eq!(digits(NAMES - 1), "zzz");
        let all: BTreeSet<String> = (0..NAMES).map(digits).collect();
        assert_eq!(all.len(), NAMES as usize);
    }
}
