//! The network of a virtual machine, which is the same in all of them: one address, and the host as gateway and name
//! server.

#![expect(unsafe_code, reason = "the ioctls of network interfaces have no safe wrapper")]

use std::{
    fs, io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use sandhaus_protocol::guest::{GUEST_ADDRESS, HOST_ADDRESS, PREFIX_BITS};

use super::{first::say, uevents::Uevents};

/// How long the machine's network card may take to appear.
const CARD_MAX: Duration = Duration::from_secs(20);

/// Where the kernel lists interfaces.
const INTERFACES: &str = "/sys/class/net";

/// Name of the card unless something renames it.
const USUAL_NAME: &str = "eth0";

/// `ARPHRD_ETHER`, as the kernel prints it.
const ETHERNET: &str = "1";

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// First line of files that are the agent's to change.
const MARK: &str = "# sandhaus";

/// Gives the machine's card its address, unless it has one, and names the host as gateway and name server.
pub(crate) fn configure_network() -> io::Result<()> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    raise(&socket, "lo")?;
    let card = wait_for_card()?;
    if !has_address(&socket, &card) {
        set_address(&socket, &card, libc::SIOCSIFADDR, Ipv4Addr::from(GUEST_ADDRESS))?;
        let mask = u32::MAX << (u32::BITS - u32::from(PREFIX_BITS));
        set_address(&socket, &card, libc::SIOCSIFNETMASK, Ipv4Addr::from(mask))?;
    }
    raise(&socket, &card)?;
    match add_default_route(&socket) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    if let Err(error) = name_server() {
        say(format_args!("{RESOLV_CONF} stays as it is: {error}"));
    }
    Ok(())
}

/// The first card, by its usual name if there are several.
fn wait_for_card() -> io::Result<String> {
    let found = Uevents::open()?.wait_for(CARD_MAX, || {
        let mut names: Vec<String> = fs::read_dir(INTERFACES)
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name != "lo" && is_ethernet(name))
            .collect();
        names.sort_by_key(|name| (name != USUAL_NAME, name.clone()));
        names.into_iter().next()
    })?;
    found.ok_or_else(|| io::Error::other("no network card appeared"))
}

fn is_ethernet(name: &str) -> bool {
    let kind = fs::read_to_string(Path::new(INTERFACES).join(name).join("type"));
    kind.is_ok_and(|kind| kind.trim_end() == ETHERNET)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: any bytes are a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero, which ends the name.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    Ok(request)
}

fn raise(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    call(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the call before has written the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).expect("a small number");
    request.ifr_ifru.ifru_flags = flags | up;
    call(socket, libc::SIOCSIFFLAGS, &mut request)
}

fn has_address(socket: &OwnedFd, name: &str) -> bool {
    request(name).and_then(|mut request| call(socket, libc::SIOCGIFADDR, &mut request)).is_ok()
}

fn set_address(socket: &OwnedFd, name: &str, what: libc::Ioctl, address: Ipv4Addr) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_addr = plain(address);
    call(socket, what, &mut request)
}

fn call(socket: &OwnedFd, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the kernel reads and writes one such structure.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn add_default_route(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: any bytes are a valid value of this plain structure.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = plain(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = plain(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = plain(Ipv4Addr::from(HOST_ADDRESS));
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the kernel reads one such structure.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The address as the old structures hold it.
fn plain(address: Ipv4Addr) -> libc::sockaddr {
    let family = libc::sa_family_t::try_from(libc::AF_INET).expect("a small number");
    // Two bytes of port, then the address.
    let mut data = [0; 14];
    for (place, byte) in data[2..].iter_mut().zip(address.octets()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    libc::sockaddr { sa_family: family, sa_data: data }
}

/// Writes which name server there is, where nobody else has.
fn name_server() -> io::Result<()> {
    let path = Path::new(RESOLV_CONF);
    // A symbolic link belongs to a resolver of the guest's.
    let ours = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            metadata.len() == 0 || fs::read_to_string(path)?.starts_with(MARK)
        }
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if !ours {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, format!("{MARK}\nnameserver {}\n", Ipv4Addr::from(HOST_ADDRESS)))
}
