//! The supervisor that started this server, told how the server is: ready, alive, stopping.
//!
//! This is systemd's notification protocol: a datagram of `NAME=value` to the socket that `NOTIFY_SOCKET` names. Without
//! that variable nobody asked, and nothing is told.

use std::{
    ffi::OsString,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// Where the supervisor listens.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// After how many microseconds without a sign of life the supervisor ends this server.
const WATCHDOG_VARIABLE: &str = "WATCHDOG_USEC";

/// The process that the supervisor expects signs of life from.
const WATCHDOG_PROCESS_VARIABLE: &str = "WATCHDOG_PID";

/// Signs of life within the supervisor's patience: one that comes late or fails does not end the server yet.
const SIGNS_PER_PATIENCE: u32 = 3;

/// Whoever started this server and wants to know how it is.
#[derive(Debug)]
pub(crate) struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    patience: Option<Duration>,
}

impl Supervisor {
    /// The supervisor that this process's environment tells of, if any.
    pub(crate) fn of_environment() -> Self {
        Self::of(|name| std::env::var_os(name), std::process::id())
    }

    fn of(environment: impl Fn(&str) -> Option<OsString>, process: u32) -> Self {
        let socket = environment(SOCKET_VARIABLE).and_then(|name| {
            let opened = open(&name);
            if let Err(error) = &opened {
                tracing::warn!(%error, "cannot tell the supervisor anything: {SOCKET_VARIABLE} is of no use");
            }
            opened.ok()
        });
        let number = |name: &str| environment(name)?.to_str()?.parse::<u64>().ok();
        let ours = match environment(WATCHDOG_PROCESS_VARIABLE) {
            Some(_) => number(WATCHDOG_PROCESS_VARIABLE) == Some(u64::from(process)),
            None => true,
        };
        let patience = number(WATCHDOG_VARIABLE).filter(|usec| ours && *usec > 0).map(Duration::from_micros);
        Self { socket, patience }
    }

    /// The server answers from now on.
    pub(crate) fn ready(&self) {
        self.tell("READY=1");
    }

    /// The server is on its way out.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Gives signs of life for as long as `answers` says so in time. Never returns; dropping it stops the signs.
    pub(crate) async fn keep_alive(&self, answers: impl AsyncFn() -> anyhow::Result<()>) {
        let (Some(patience), Some(_)) = (self.patience, &self.socket) else {
            return std::future::pending().await;
        };
        let pause = patience / SIGNS_PER_PATIENCE;
        let mut signs = tokio::time::interval(pause);
        signs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            signs.tick().await;
            match tokio::time::timeout(pause, answers()).await {
                Ok(Ok(())) => self.tell("WATCHDOG=1"),
                Ok(Err(error)) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "this server does not answer itself: no sign of life");
                }
                Err(_) => tracing::warn!("this server does not answer itself in time: no sign of life"),
            }
        }
    }

    fn tell(&self, state: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::warn!(%error, "cannot tell the supervisor {state}");
        }
    }
}

/// An address in the file system, or one with `@` in front in the abstract space.
fn open(name: &std::ffi::OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let socket = UnixDatagram::unbound()?;
    // A supervisor that does not listen must not hold the server up.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const PROCESS: u32 = 42;

    fn supervisor(variables: &[(&str, &str)]) -> Supervisor {
        let find =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Supervisor::of(find, PROCESS)
    }

    /// What arrived so far.
    fn arrived(listener: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 64];
        let next = || {
            let length = listener.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_supervisor_hears_of_start_and_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let supervisor = supervisor(&[(SOCKET_VARIABLE, path.to_str().unwrap())]);
        listener.set_nonblocking(true).unwrap();
        supervisor.ready();
        supervisor.stopping();
        assert_eq!(arrived(&listener), ["READY=1", "STOPPING=1"]);
    }

    #[test]
    fn an_abstract_address_is_reached() {
        let name = format!("sandhaus-test-{}", std::process::id());
        let listener =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        supervisor(&[(SOCKET_VARIABLE, &format!("@{name}"))]).ready();
        assert_eq!(arrived(&listener), ["READY=1"]);
    }

    #[test]
    fn nobody_who_asked_is_told_nothing() {
        for variables in [&[][..], &[(SOCKET_VARIABLE, "relative")], &[(SOCKET_VARIABLE, "/nowhere/at/all")]]
        {
            let supervisor = supervisor(variables);
            supervisor.ready();
            supervisor.stopping();
        }
    }

    #[test]
    fn signs_of_life_are_for_the_process_that_was_asked() {
        let patience = |process: &str| {
            supervisor(&[(WATCHDOG_VARIABLE, "3000000"), (WATCHDOG_PROCESS_VARIABLE, process)]).patience
        };
        assert_eq!(patience("42"), Some(Duration::from_secs(3)));
        assert_eq!(patience("43"), None);
        assert_eq!(patience("x"), None);
        assert_eq!(supervisor(&[(WATCHDOG_VARIABLE, "1")]).patience, Some(Duration::from_micros(1)));
        assert_eq!(supervisor(&[(WATCHDOG_VARIABLE, "0")]).patience, None);
        assert_eq!(supervisor(&[]).patience, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_gives_no_sign_of_life() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let supervisor =
            supervisor(&[(SOCKET_VARIABLE, path.to_str().unwrap()), (WATCHDOG_VARIABLE, "30000000")]);
        let (answers, hangs) = (AtomicBool::new(true), AtomicBool::new(false));
        let alive = supervisor.keep_alive(async || {
            if hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            anyhow::ensure!(answers.load(Ordering::Relaxed), "out of order");
            Ok(())
        });
        let mut alive = std::pin::pin!(alive);
        let mut live = async |time: u64| {
            assert!(tokio::time::timeout(Duration::from_secs(time), alive.as_mut()).await.is_err());
            let signs = arrived(&listener);
            assert!(signs.iter().all(|sign| sign == "WATCHDOG=1"), "{signs:?}");
            signs.len()
        };
        assert_eq!(live(29).await, 3);
        answers.store(false, Ordering::Relaxed);
        assert_eq!(live(60).await, 0);
        answers.store(true, Ordering::Relaxed);
        assert!(live(30).await >= 2);
        hangs.store(true, Ordering::Relaxed);
        assert_eq!(live(60).await, 0);
    }
}
