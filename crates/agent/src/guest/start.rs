//! How the agent of a virtual machine starts and ends: as a service of the guest's own init system, or as its first
//! process.

use std::{
    ffi::OsStr,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::{linux::net::SocketAddrExt as _, unix::ffi::OsStrExt as _, unix::net as unix},
    sync::Arc,
    time::Duration,
};

use sandhaus_protocol::guest::PORT;
use tokio::{net::TcpListener, sync::watch};

use super::{Guest, Identity, names};
use crate::{
    agent::Agent,
    boot,
    http::{self, Door, Listener},
    sys::{self, Interest, Signals},
    upgrade::{Document, StandingState, Taken},
};

/// How long processes may take to end by themselves before the machine is switched off.
const END_GRACE: Duration = Duration::from_secs(5);

/// How long answers may take to get out at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Programs that ask init systems other than systemd to switch the machine off.
const POWER_OFF_PROGRAMS: [&str; 3] = ["/sbin/poweroff", "/usr/sbin/poweroff", "/bin/poweroff"];

/// Who gives the machine its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Whoever else does so in this guest.
    Elsewhere,
    /// The agent, where nobody has.
    Agent,
}

/// What the agent is to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A service: another program is the first process.
    Service,
    /// The first process.
    First,
}

/// Serves as a service of the guest.
pub(crate) fn run(listen: Option<SocketAddr>, network: Network) -> io::Result<()> {
    sys::prepare_guest()?;
    if network == Network::Agent {
        sys::configure_network()?;
    }
    live(listen, Place::Service)
}

/// Serves as the first process of the machine, from the initramfs on if it began there. Returns only if it could not
/// switch the machine off.
pub(crate) fn run_first() -> io::Result<()> {
    // Beginning may become another program, which must not inherit what the agent makes of itself.
    let lived = sys::begin_machine().and_then(|()| sys::prepare_guest()).and_then(|()| {
        names::tell("the network", sys::configure_network());
        live(None, Place::First)
    });
    match lived {
        Err(error) if !sys::is_first_process() => return Err(error),
        // The console is all there is to tell it to.
        Err(error) => sys::say(format_args!("this machine cannot go on and is switched off: {error}")),
        Ok(()) => {}
    }
    sys::switch_off()
}

fn live(listen: Option<SocketAddr>, place: Place) -> io::Result<()> {
    let guest = Guest::new();
    let workload = Arc::clone(&guest.workload);
    let enter = move || {
        if let Some(workload) = workload.get() {
            sys::enter_workload_thread(workload);
        }
    };
    let address = listen.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)));
    boot::runtime(enter)?.block_on(async {
        let listener = TcpListener::bind(address).await?;
        writeln!(io::stdout(), "Starting toolbox server on port {}", listener.local_addr()?.port())?;
        let listener = Listener::Tcp(listener);
        let _ = guest.place.set((listener.number(), place));
        serve(guest, listener, place).await
    })
}

/// Goes on in the place of another agent of the machine.
pub(crate) fn resume(document: Document, taken: Taken) -> io::Result<()> {
    taken.prepare(&document)?;
    let StandingState::Guest { first, sandbox_id, generation, token } = &document.standing else {
        return taken.or_back(Err(io::Error::other("the state is not that of a virtual machine")));
    };
    let identity = Identity { sandbox_id: sandbox_id.clone(), generation: *generation, token: token.clone() };
    let place = if *first { Place::First } else { Place::Service };
    let guest = Guest::new();
    let _ = guest.workload.set(document.workload.clone());
    let workload = Arc::clone(&guest.workload);
    let enter = move || {
        if let Some(workload) = workload.get() {
            sys::enter_workload_thread(workload);
        }
    };
    let lived = taken.or_back(boot::runtime(enter))?.block_on(async {
        boot::make_file_thread();
        let (agent, listener) = taken.take_over(document)?;
        *guest.identity() = Some(identity);
        let _ = guest.place.set((listener.number(), place));
        guest.live(agent);
        serve(guest, listener, place).await
    });
    match place {
        Place::Service => lived,
        Place::First => {
            if let Err(error) = lived {
                sys::say(format_args!("this machine cannot go on and is switched off: {error}"));
            }
            sys::switch_off()
        }
    }
}

async fn serve(guest: Arc<Guest>, listener: Listener, place: Place) -> io::Result<()> {
    let signals = match place {
        Place::Service => Signals::new()?,
        Place::First => Signals::of_machine()?,
    };
    reap(&guest);
    let door = Door::Guest { guest: Arc::clone(&guest), reception: guest.reception() };
    let (end, ending) = watch::channel(());
    let server = tokio::spawn(http::serve(door, listener, ending));
    names::tell("the supervisor", notify_ready());
    loop {
        // Both are cancel-safe: a signal is read, and a permit taken, only by the arm that wins.
        tokio::select! {
            interest = signals.next() => match interest? {
                Interest::Child => reap(&guest),
                Interest::End => break,
            },
            () = guest.power_off.notified() => match place {
                Place::First => break,
                // The first process ends this one as any other.
                Place::Service => ask_for_power_off(guest.agent())?,
            },
        }
    }
    drop(end);
    // Nothing could end or be written otherwise.
    let _ = guest.freezer.thaw();
    if let Some(agent) = guest.agent() {
        agent.children.hang_up();
    }
    let stopped = async {
        sys::terminate_everything(END_GRACE).await;
        let _ = tokio::time::timeout(LAST_ANSWERS, server).await;
    };
    tokio::pin!(stopped);
    loop {
        // Cancel-safe: ending goes on where it was.
        tokio::select! {
            () = &mut stopped => return Ok(()),
            interest = signals.next() => match interest? {
                Interest::Child => reap(&guest),
                // It is under way.
                Interest::End => {}
            },
        }
    }
}

/// Before there is an agent proper, only orphans of others end here.
fn reap(guest: &Guest) {
    match guest.agent() {
        Some(agent) => agent.children.reap(),
        None => sys::Children::default().reap(),
    }
}

/// Has the guest's own init system switch the machine off; where there is none, the kernel.
fn ask_for_power_off(agent: Option<&Arc<Agent>>) -> io::Result<()> {
    if sys::ask_systemd_for_power_off() {
        return Ok(());
    }
    let asked = agent.is_some_and(|agent| {
        POWER_OFF_PROGRAMS
            .iter()
            .any(|program| agent.children.spawn(&sys::bare_command(&[(*program).to_owned()])).is_ok())
    });
    if asked { Ok(()) } else { sys::switch_off() }
}

/// Tells a supervisor that asked for it (`Type=notify`) that greetings are answered from now on.
fn notify_ready() -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => unix::SocketAddr::from_abstract_name(name)?,
        None => unix::SocketAddr::from_pathname::<&OsStr>(&path)?,
    };
    unix::UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}
