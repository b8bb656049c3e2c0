//! Interpreter contexts: a Python each that keeps its state, fed one piece of code at a time.
//!
//! ```text
//!   socket ──> job ──> queue of the context ──> driver ── order ──> worker (python3)
//!   socket <── frames <───────────────────────── driver <── streams, ends ──┘
//! ```
//! Files: [`self`] the contexts, [`routes`], [`driver`] the task behind each context, [`worker`] its process.
//!
//! A context has a worker while it is used: that of the default one starts with its first code, and one that died is
//! made anew by the next code, without its state. Code is interrupted by its time limit and by the end of its socket,
//! as Ctrl+C would; what does not stop then is killed with everything that it has started.

mod driver;
mod routes;
mod worker;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use sandhaus_protocol::interpreter::{DEFAULT, Frame, InterpreterContext};
use tokio::{
    sync::{mpsc, watch},
    time::Duration,
};

pub(crate) use self::routes::routes;
use self::{driver::Driver, worker::Worker};
use crate::{
    agent::Agent,
    clock,
    error::{Error, Result},
    sys::random_hex,
};

/// The one language.
const PYTHON: &str = "python";

/// Most contexts at once, beside the default one.
const CONTEXTS_MAX: usize = 64;

/// Most pieces of code that wait in one context.
const QUEUE_MAX: usize = 64;

/// Pieces of output that wait for one client; then the code waits, too.
const FRAMES_MAX: usize = 16;

/// The contexts by name.
#[derive(Default)]
pub(crate) struct Contexts {
    by_id: Mutex<BTreeMap<String, Arc<Context>>>,
}

/// A context.
struct Context {
    id: String,
    cwd: String,
    created_at: String,
    queue: mpsc::Sender<Job>,
    /// Its worker lives.
    active: AtomicBool,
    stage: watch::Sender<Stage>,
}

/// How far a context's life is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It takes code.
    Alive,
    /// It is to end.
    Deleted,
    /// Nothing of it runs any more.
    Gone,
}

/// A piece of code that waits for its turn.
struct Job {
    code: String,
    envs: BTreeMap<String, String>,
    limit: Option<Duration>,
    charts: bool,
    frames: mpsc::Sender<Said>,
}

/// What a job's client is told.
enum Said {
    /// A message.
    Frame(Frame),
    /// The last: code and reason of the close frame.
    End(u16, String),
}

impl Context {
    fn describe(&self) -> InterpreterContext {
        InterpreterContext {
            id: self.id.clone(),
            cwd: self.cwd.clone(),
            created_at: self.created_at.clone(),
            active: self.active.load(Ordering::Relaxed),
            language: PYTHON.to_owned(),
        }
    }

    /// Puts code into the queue.
    fn submit(&self, job: Job) -> Result<()> {
        self.queue.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::too_many(format_args!("{QUEUE_MAX} pieces of code wait in this context already"))
            }
            mpsc::error::TrySendError::Closed(_) => missing(&self.id),
        })
    }
}

fn missing(id: &str) -> Error {
    Error::no_process(format_args!("interpreter context not found: {id}"))
}

impl Contexts {
    fn by_id(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Context>>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a context whose worker runs already.
    fn create(&self, agent: &Arc<Agent>, cwd: String) -> Result<Arc<Context>> {
        let mut by_id = self.by_id();
        if by_id.keys().filter(|id| *id != DEFAULT).count() >= CONTEXTS_MAX {
            return Err(Error::too_many(format_args!("there are {CONTEXTS_MAX} contexts already")));
        }
        let worker = Worker::start(agent, &cwd)?;
        let context = open(agent, random_hex(16), cwd, Some(worker));
        by_id.insert(context.id.clone(), Arc::clone(&context));
        Ok(context)
    }

    /// The context of this name; the default one is made when it is asked for.
    fn find_or_default(&self, agent: &Arc<Agent>, id: &str) -> Result<Arc<Context>> {
        let mut by_id = self.by_id();
        if let Some(context) = by_id.get(id) {
            return Ok(Arc::clone(context));
        }
        if id != DEFAULT {
            return Err(missing(id));
        }
        let context = open(agent, DEFAULT.to_owned(), agent.workdir.clone(), None);
        by_id.insert(DEFAULT.to_owned(), Arc::clone(&context));
        Ok(context)
    }

    /// All but the default one, oldest first.
    fn list(&self) -> Vec<InterpreterContext> {
        let by_id = self.by_id();
        let mut all: Vec<_> = by_id.values().filter(|c| c.id != DEFAULT).map(|c| c.describe()).collect();
        all.sort_by(|one, other| one.created_at.cmp(&other.created_at));
        all
    }

    /// Ends a context with everything that it has started.
    async fn delete(&self, id: &str) -> Result<()> {
        if id == DEFAULT {
            return Err(Error::invalid("the default context cannot be deleted"));
        }
        let context = self.by_id().remove(id).ok_or_else(|| missing(id))?;
        context.stage.send_replace(Stage::Deleted);
        // The sender lives in the context, which is held here.
        let _ = context.stage.subscribe().wait_for(|stage| *stage == Stage::Gone).await;
        Ok(())
    }
}

/// A context and the task behind it.
fn open(agent: &Arc<Agent>, id: String, cwd: String, worker: Option<Worker>) -> Arc<Context> {
    let (queue, receiver) = mpsc::channel(QUEUE_MAX);
    let context = Arc::new(Context {
        id,
        cwd,
        created_at: clock::now_rfc3339(),
        queue,
        active: AtomicBool::new(worker.is_some()),
        stage: watch::Sender::new(Stage::Alive),
    });
    let driver = Driver::new(Arc::clone(agent), Arc::clone(&context), receiver, worker);
    tokio::spawn(driver.run());
    context
}
