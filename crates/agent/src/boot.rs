//! How the agent starts: the command line, the runtime, the signals, the end.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::RawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sandhaus_protocol::{
    boot::{ShellPreference, Workload},
    ssh::{Access, PORT, RESCUE_PORT, TERMINAL_PORT},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use crate::{
    agent::{Agent, current_environment},
    guest::{self, Network},
    http::{self, Door, Listener},
    log::Level,
    shell::dialect::ShellChoice,
    ssh::{self, Places},
    sys::{self, Interest, Signals},
    upgrade::{self, Document, Replaceable, Taken},
};

/// Threads that may touch files at once.
const FILE_THREADS_MAX: usize = 4;

/// How long the workload may take to end by itself when the sandbox is stopped.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// How long answers may take to get out once the sandbox has stopped.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How long they may take where only the agent ends.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// The variable that says that processes start at home.
const HOME_AS_WORKDIR: &str = "DAYTONA_USER_HOME_AS_WORKDIR";

/// Largest file that says who may come in.
const ACCESS_FILE_BYTES_MAX: u64 = 1 << 20;

const HELP: &str = "\
sandhaus-agent: the daemon inside a sandbox

Usage:
  sandhaus-agent --init
  sandhaus-agent --guest [--listen HOST:PORT] [--network]
  sandhaus-agent --guest-init
  sandhaus-agent --listen unix:PATH|HOST:PORT [--workdir DIR] [--shell PATH] [--replaceable]
                 [--ssh-secret-file PATH] [--authorized-keys PATH] [--ssh-port PORT] [--terminal-port PORT]
                 [[--] COMMAND [ARGUMENT]...]

Options:
  --init           Serve as PID 1: listening socket on descriptor 3, boot document on 4
  --guest          Serve as root's service in a virtual machine, to whom its host says
                   [default address: 0.0.0.0:2280]
  --network        Give the machine its address, if nothing else does
  --guest-init     Serve as a virtual machine's first process; so does PID 1 called init
  --listen ADDR    Serve by hand, as the current user; a command starts beside, in the session entrypoint
  --workdir DIR    Where shells and processes start [default: the current directory, or
                   home with DAYTONA_USER_HOME_AS_WORKDIR=true]
  --shell PATH     Shell of persistent sessions [default: bash if there is one, else sh]
  --replaceable    Let whoever reaches the address replace the agent by another build of it;
                   on a Unix socket they may anyway
  --ssh-secret-file PATH
                   Let in by SSH, and to the terminal in a browser, who knows what this file says
  --authorized-keys PATH
                   Let in by SSH who holds one of the keys in this file
  --ssh-port PORT  Port of SSH, on the host of --listen or loopback; 0 is any [default: 22220]
  --terminal-port PORT
                   Port of the terminal in a browser [default: 22222]
  COMMAND          Run this in the session `entrypoint`; its end does not end the agent
  --version        Print the version
  --help           Print this help
";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    Init,
    Guest {
        listen: Option<SocketAddr>,
        network: Network,
    },
    GuestInit,
    Listen {
        address: Address,
        workdir: Option<PathBuf>,
        shell: Option<String>,
        replaceable: Replaceable,
        doors: DoorsByHand,
        entrypoint: Vec<String>,
    },
    /// As the rescue door of the agent that started this process.
    Rescue,
    /// In the place of another agent, whose state and program are behind these descriptors. `returned` is why one that
    /// was to take this one's place did not.
    Resume {
        state: RawFd,
        program: RawFd,
        returned: Option<String>,
    },
    /// Only say whether that could be.
    CheckState {
        state: RawFd,
    },
    Version,
    Help,
}

#[derive(Debug, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Order {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments;
        let (mut address, mut workdir, mut shell) = (None, None, None);
        let (mut modes, mut network) = (Vec::new(), Network::Elsewhere);
        let mut replaceable = Replaceable::No;
        let mut doors = DoorsByHand::default();
        let mut entrypoint = Vec::new();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--init" | "--guest" | "--guest-init" => modes.push(argument),
                "--network" => network = Network::Agent,
                "--replaceable" => replaceable = Replaceable::Yes,
                "--ssh-secret-file" => doors.secret = Some(PathBuf::from(value()?)),
                "--authorized-keys" => doors.keys = Some(PathBuf::from(value()?)),
                "--ssh-port" => doors.ssh_port = Some(port(&value()?)?),
                "--terminal-port" => doors.terminal_port = Some(port(&value()?)?),
                rescue @ "--rescue" => modes.push(rescue.to_owned()),
                upgrade::RESUME => {
                    let (state, program) = (descriptor(&value()?)?, descriptor(&value()?)?);
                    return Ok(Self::Resume { state, program, returned: arguments.next() });
                }
                upgrade::CHECK => return Ok(Self::CheckState { state: descriptor(&value()?)? }),
                "--" => entrypoint = arguments.by_ref().collect(),
                "--listen" => address = Some(Address::parse(&value()?)?),
                "--workdir" => workdir = Some(PathBuf::from(value()?)),
                "--shell" => shell = Some(value()?),
                "--version" | "-V" => return Ok(Self::Version),
                "--help" | "-h" => return Ok(Self::Help),
                other if other.starts_with('-') => {
                    return Err(format!("unknown argument {other}; try --help"));
                }
                _ => {
                    entrypoint.push(argument);
                    entrypoint.extend(arguments.by_ref());
                }
            }
        }
        let modes: Vec<&str> = modes.iter().map(String::as_str).collect();
        let by_hand = workdir.is_some()
            || shell.is_some()
            || replaceable == Replaceable::Yes
            || doors != DoorsByHand::default()
            || !entrypoint.is_empty();
        match (modes.as_slice(), address) {
            (["--guest"], Some(Address::Unix(_))) => Err("--guest listens on TCP".to_owned()),
            (["--guest"], address) if !by_hand => {
                let listen = address.and_then(|address| match address {
                    Address::Tcp(address) => Some(address),
                    Address::Unix(_) => None,
                });
                Ok(Self::Guest { listen, network })
            }
            ([], _) | (["--init" | "--guest-init"], _) if network == Network::Agent => {
                Err("--network goes with --guest".to_owned())
            }
            (["--init"], None) if !by_hand => Ok(Self::Init),
            (["--guest-init"], None) if !by_hand => Ok(Self::GuestInit),
            (["--rescue"], None) if !by_hand && network == Network::Elsewhere => Ok(Self::Rescue),
            ([], Some(address)) => {
                Ok(Self::Listen { address, workdir, shell, replaceable, doors, entrypoint })
            }
            ([], None) => Err("none of --init, --guest, --guest-init, --listen given; try --help".to_owned()),
            (modes, _) => Err(format!("{} cannot be given with these other arguments", modes.join(" "))),
        }
    }

    /// The kernel starts its first process by a path alone, with words of its command line as arguments.
    fn of_first_process(program: Option<&OsStr>) -> Option<Self> {
        let name = Path::new(program?).file_name()?;
        (name == "init" && sys::is_first_process()).then_some(Self::GuestInit)
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text} is no port"))
}

/// Doors beside the API, for an agent by hand.
#[derive(Debug, Default, PartialEq, Eq)]
struct DoorsByHand {
    secret: Option<PathBuf>,
    keys: Option<PathBuf>,
    ssh_port: Option<u16>,
    terminal_port: Option<u16>,
}

impl DoorsByHand {
    /// Who may come in.
    fn read(&self) -> io::Result<Access> {
        let read = |path: &PathBuf| {
            let named =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let size = std::fs::metadata(path).map_err(named)?.len();
            if size > ACCESS_FILE_BYTES_MAX {
                return Err(named(io::ErrorKind::FileTooLarge.into()));
            }
            std::fs::read_to_string(path).map_err(named)
        };
        let secret = self.secret.as_ref().map(read).transpose()?.map(|text| text.trim_end().to_owned());
        let keys = self.keys.as_ref().map(read).transpose()?.unwrap_or_default();
        let lines = keys.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Ok(Access { secret, authorized_keys: lines.map(str::to_owned).collect(), ..Access::default() })
    }

    /// Opens the doors at this address, and says where they are.
    fn open(&self, agent: &Arc<Agent>, access: Access, ip: IpAddr) -> io::Result<()> {
        let place = |chosen: Option<u16>, usual| SocketAddr::new(ip, chosen.unwrap_or(usual));
        agent.doors.place(Places {
            ssh: place(self.ssh_port, PORT),
            terminal: place(self.terminal_port, TERMINAL_PORT),
            rescue: place(None, RESCUE_PORT),
        });
        let opened = agent.doors.take(agent, access).map_err(|error| io::Error::other(error.message))?;
        if let Some(error) = opened.failures.into_iter().next() {
            return Err(error);
        }
        for (name, port) in [("terminal", opened.terminal), ("SSH", opened.ssh)] {
            if let Some(port) = port {
                writeln!(io::stdout(), "Starting {name} server on port {port}")?;
            }
        }
        Ok(())
    }
}

fn descriptor(text: &str) -> Result<RawFd, String> {
    text.parse().map_err(|_| format!("{text} is no descriptor"))
}

impl Address {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| format!("{text} is neither unix:PATH nor an IP address and port"))
    }
}

/// Runs the agent to its end.
pub(crate) fn run(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    let program = arguments.next();
    let order = match Order::of_first_process(program.as_deref()) {
        Some(order) => order,
        // What is no text is no argument of ours, and shown as far as it is.
        None => Order::parse(arguments.map(|argument| argument.to_string_lossy().into_owned()))
            .map_err(io::Error::other)?,
    };
    match order {
        Order::Help => io::stdout().write_all(HELP.as_bytes()),
        Order::Version => writeln!(io::stdout(), "sandhaus-agent {}", env!("CARGO_PKG_VERSION")),
        Order::Init => run_init(),
        Order::Guest { listen, network } => guest::run(listen, network),
        Order::GuestInit => guest::run_first(),
        Order::Listen { address, workdir, shell, replaceable, doors, entrypoint } => {
            run_by_hand(&address, workdir, shell, replaceable, &doors, &entrypoint)
        }
        Order::Rescue => ssh::run_rescue(),
        Order::Resume { state, program, returned } => upgrade::resume(state, program, returned),
        Order::CheckState { state } => upgrade::check_state(state),
    }
}

fn run_init() -> io::Result<()> {
    let start = sys::take_inherited()?;
    let warm_shell = start.config.warm_shell;
    let entrypoint = start.config.entrypoint.clone();
    let agent = Agent::init(start.config);
    runtime_of(&agent)?.block_on(async {
        let listener = Listener::Unix(UnixListener::from_std(start.listener)?);
        if warm_shell {
            agent.warm_shell();
        }
        if !entrypoint.is_empty() {
            agent.sessions.start_entrypoint(&agent, &entrypoint);
        }
        serve(agent, listener, Replaceable::Yes).await
    })
}

/// Goes on in the place of another agent.
pub(crate) fn resume(document: Document, taken: Taken) -> io::Result<()> {
    taken.prepare(&document)?;
    let workload = document.workload.clone();
    let runtime = taken.or_back(runtime(move || sys::enter_workload_thread(&workload)))?;
    runtime.block_on(async {
        make_file_thread();
        let (agent, listener) = taken.take_over(document)?;
        // It would not have been replaced otherwise.
        serve(agent, listener, Replaceable::Yes).await
    })
}

fn run_by_hand(
    address: &Address,
    workdir: Option<PathBuf>,
    shell: Option<String>,
    replaceable: Replaceable,
    doors: &DoorsByHand,
    entrypoint: &[String],
) -> io::Result<()> {
    sys::prepare_by_hand()?;
    let access = doors.read()?;
    let env = current_environment();
    let is_home = env.get(HOME_AS_WORKDIR).is_some_and(|said| matches!(&**said, "true" | "1"));
    let workdir = match (workdir, env.get("HOME")) {
        (Some(path), _) => path.canonicalize()?,
        (None, Some(home)) if is_home => PathBuf::from(home).canonicalize()?,
        (None, _) => std::env::current_dir()?,
    };
    let workdir =
        workdir.into_os_string().into_string().map_err(|_| io::Error::other("workdir is not UTF-8"))?;
    let (uid, gid) = sys::own_ids();
    let value = |name: &str, default: &str| env.get(name).cloned().unwrap_or_else(|| default.to_owned());
    let user =
        Workload { uid, gid, name: value("USER", "root"), home: value("HOME", "/"), unprivileged: false };
    let shell = shell.map_or(ShellChoice::Preferred(ShellPreference::Bash), ShellChoice::Program);
    let agent = Agent::by_hand(env, workdir, user, shell);
    runtime_of(&agent)?.block_on(async {
        let listener = match address {
            Address::Tcp(address) => Listener::Tcp(TcpListener::bind(address).await?),
            Address::Unix(path) => Listener::Unix(UnixListener::bind(path)?),
        };
        let shown = match address {
            Address::Tcp(_) => format!("port {}", listener.port().unwrap_or_default()),
            Address::Unix(path) => path.display().to_string(),
        };
        writeln!(io::stdout(), "Starting toolbox server on {shown}")?;
        let (replaceable, ip) = match address {
            Address::Tcp(address) => (replaceable, address.ip()),
            Address::Unix(_) => (Replaceable::Yes, Ipv4Addr::LOCALHOST.into()),
        };
        doors.open(&agent, access, ip)?;
        if !entrypoint.is_empty() {
            agent.sessions.start_entrypoint(&agent, entrypoint);
        }
        serve(agent, listener, replaceable).await
    })
}

fn runtime_of(agent: &Agent) -> io::Result<tokio::runtime::Runtime> {
    let workload = agent.workload.clone();
    let runtime = runtime(move || sys::enter_workload_thread(&workload))?;
    runtime.block_on(async { make_file_thread() });
    Ok(runtime)
}

/// The first thread for files is there before any limit can refuse it.
pub(crate) fn make_file_thread() {
    drop(tokio::task::spawn_blocking(|| {}));
}

/// The runtime of every kind of agent; `enter` is run by each of its threads for files.
pub(crate) fn runtime(enter: impl Fn() + Send + Sync + 'static) -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(FILE_THREADS_MAX)
        // Threads stay: once a limit on processes bites, a thread that is there still serves.
        .thread_keep_alive(Duration::MAX)
        .on_thread_start(enter)
        .build()
}

/// Serves and reaps until someone who may says it is enough.
async fn serve(agent: Arc<Agent>, listener: Listener, replaceable: Replaceable) -> io::Result<()> {
    agent.upgrades.serve(upgrade::Place { listener: listener.number(), replaceable, guest: None });
    let signals = Signals::new()?;
    // Ends that came before the signals were listened to.
    agent.children.reap();
    let (end, ending) = watch::channel(());
    let server = tokio::spawn(http::serve(Door::open(&agent), listener, ending));
    agent.log(Level::Info, "the toolbox is served");
    reap_until_the_end(&agent, &signals).await?;
    agent.log(Level::Info, "the toolbox is ending");
    drop(end);
    let stopped = async {
        if sys::is_first_process() {
            // The sandbox ends: its processes first, and with them what waits for them.
            agent.children.hang_up();
            sys::terminate_everything(STOP_GRACE).await;
            let _ = tokio::time::timeout(LAST_ANSWERS, server).await;
        } else {
            let _ = tokio::time::timeout(ANSWER_GRACE, server).await;
        }
    };
    // Cancel-safe: whoever asks twice does not want to wait.
    tokio::select! {
        () = stopped => {}
        _ = reap_until_the_end(&agent, &signals) => {}
    }
    agent.children.hang_up();
    Ok(())
}

/// Answers that are under way may wait for the ends of processes.
async fn reap_until_the_end(agent: &Agent, signals: &Signals) -> io::Result<()> {
    while signals.next().await? == Interest::Child {
        agent.children.reap();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Order, String> {
        Order::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn command_lines() {
        assert_eq!(parse("--init"), Ok(Order::Init));
        let address = Address::Unix(PathBuf::from("/a b".replace(' ', "_")));
        assert_eq!(
            parse("--listen unix:/a_b"),
            Ok(Order::Listen {
                address,
                workdir: None,
                shell: None,
                replaceable: Replaceable::No,
                doors: DoorsByHand::default(),
                entrypoint: Vec::new()
            })
        );
        let address = Address::Tcp("127.0.0.1:2280".parse().expect("a valid address"));
        let workdir = Some(PathBuf::from("/w"));
        assert_eq!(
            parse("--listen 127.0.0.1:2280 --workdir /w --shell /s -- a --b"),
            Ok(Order::Listen {
                address,
                workdir,
                shell: Some("/s".to_owned()),
                replaceable: Replaceable::No,
                doors: DoorsByHand::default(),
                entrypoint: vec!["a".to_owned(), "--b".to_owned()]
            })
        );
        for wrong in [
            "",
            "--listen",
            "--listen nowhere",
            "--init --workdir /w",
            "--init --listen unix:/a",
            "x",
            "--init -- x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse("--guest"), Ok(Order::Guest { listen: None, network: Network::Elsewhere }));
        let listen = Some("0.0.0.0:1".parse().expect("a valid address"));
        assert_eq!(
            parse("--guest --listen 0.0.0.0:1 --network"),
            Ok(Order::Guest { listen, network: Network::Agent })
        );
        assert_eq!(parse("--guest-init"), Ok(Order::GuestInit));
        assert_eq!(parse("--rescue"), Ok(Order::Rescue));
        let doors = DoorsByHand {
            secret: Some(PathBuf::from("/s")),
            keys: Some(PathBuf::from("/k")),
            ssh_port: Some(0),
            terminal_port: Some(1),
        };
        let line =
            "--listen unix:/a --ssh-secret-file /s --authorized-keys /k --ssh-port 0 --terminal-port 1";
        assert!(matches!(parse(line), Ok(Order::Listen { doors: parsed, .. }) if parsed == doors));
        assert_eq!(parse("--resume 7 8"), Ok(Order::Resume { state: 7, program: 8, returned: None }));
        let returned = Some("why".to_owned());
        assert_eq!(parse("--resume 7 8 why"), Ok(Order::Resume { state: 7, program: 8, returned }));
        assert_eq!(parse("--check-state 3"), Ok(Order::CheckState { state: 3 }));
        for wrong in [
            "--guest --init",
            "--guest --guest",
            "--guest --listen unix:/a",
            "--guest --shell /s",
            "--guest --ssh-port 1",
            "--rescue --listen unix:/a",
            "--rescue --network",
            "--listen unix:/a --ssh-port 65536",
            "--guest-init --network",
            "--init --network",
            "--listen 127.0.0.1:1 --network",
            "--init --replaceable",
            "--resume 3",
            "--check-state x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
