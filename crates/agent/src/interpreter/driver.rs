//! The task behind a context: one piece of code after another, each to its end, its time limit or the end of its socket.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::extract::ws::close_code;
use sandhaus_protocol::interpreter::Frame;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Context, Job, Said, Stage,
    worker::{Decoder, Event, Exception, Which, Worker},
};
use crate::{agent::Agent, sys::Ending};

/// How long interrupted code may take to end.
const INTERRUPT_GRACE: Duration = Duration::from_secs(2);

/// Close code for code that took too long.
const TIMED_OUT: u16 = 4008;

pub(super) struct Driver {
    agent: Arc<Agent>,
    context: Arc<Context>,
    queue: mpsc::Receiver<Job>,
    stage: watch::Receiver<Stage>,
    worker: Option<Worker>,
}

/// Why code was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Its client left.
    Abandoned,
    /// Its time was up.
    TimedOut,
    /// Its context is being deleted.
    Deleted,
}

/// What a context without running code waits for.
enum Next {
    /// Code.
    Job(Job),
    /// Its worker has ended.
    Dead,
}

/// How code ended.
enum End {
    /// By itself, or since it was interrupted.
    Done(Option<Exception>),
    /// Its worker ended.
    Died(Ending),
    /// It did not stop when it was interrupted.
    Stubborn,
}

impl Driver {
    pub(super) fn new(
        agent: Arc<Agent>,
        context: Arc<Context>,
        queue: mpsc::Receiver<Job>,
        worker: Option<Worker>,
    ) -> Self {
        let stage = context.stage.subscribe();
        Self { agent, context, queue, stage, worker }
    }

    pub(super) async fn run(mut self) {
        loop {
            let idle = async {
                match &mut self.worker {
                    Some(worker) => worker.idle().await,
                    None => std::future::pending().await,
                }
            };
            let next = tokio::select! {
                // All arms are cancel-safe.
                () = deleted(&mut self.stage) => None,
                job = self.queue.recv() => job.map(Next::Job),
                () = idle => Some(Next::Dead),
            };
            match next {
                None => break,
                Some(Next::Job(job)) => self.execute(job).await,
                Some(Next::Dead) => self.bury().await,
            }
        }
        self.queue.close();
        self.bury().await;
        self.context.stage.send_replace(Stage::Gone);
    }

    /// Removes what is left of the worker.
    async fn bury(&mut self) {
        self.context.active.store(false, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.kill(&self.agent).await;
        }
    }

    async fn execute(&mut self, job: Job) {
        if job.frames.is_closed() {
            return;
        }
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => match Worker::start(&self.agent, &self.context.cwd) {
                Ok(worker) => worker,
                Err(error) => {
                    // A client that has left needs no answer, here and below.
                    let _ = job.frames.send(Said::End(close_code::ERROR, error.message.into_owned())).await;
                    return;
                }
            },
        };
        self.context.active.store(true, Ordering::Relaxed);
        worker.order(&job).await;
        let (end, reason) = self.follow(&mut worker, &job).await;
        self.worker = Some(worker);
        let end = match end {
            End::Done(exception) => exception.map(Exception::frame),
            End::Died(ending) => {
                self.bury().await;
                Some(died(ending))
            }
            End::Stubborn => {
                self.bury().await;
                None
            }
        };
        tell(&job, end, reason).await;
    }

    /// Passes on what the code prints until it has ended.
    async fn follow(&mut self, worker: &mut Worker, job: &Job) -> (End, Option<Reason>) {
        let started = Instant::now();
        let mut interrupted: Option<(Reason, Instant)> = None;
        let mut decoders = [Decoder::default(), Decoder::default()];
        let end = loop {
            let due = match (interrupted, job.limit) {
                (Some((_, since)), _) => since.checked_add(INTERRUPT_GRACE),
                (None, Some(limit)) => started.checked_add(limit),
                (None, None) => None,
            };
            let reason = tokio::select! {
                // All arms are cancel-safe.
                event = worker.next(&job.frames) => match event {
                    Event::Printed(which, bytes) => {
                        say(job, which, decoders[which as usize].decode(&bytes)).await;
                        continue;
                    }
                    Event::Chart(chart) => {
                        let _ = job.frames.send(Said::Frame(Frame::Chart { chart })).await;
                        continue;
                    }
                    Event::Done(exception) => break End::Done(exception),
                    Event::Died(ending) => break End::Died(ending),
                },
                () = at(due) => match interrupted {
                    Some(_) => break End::Stubborn,
                    None => Reason::TimedOut,
                },
                () = job.frames.closed(), if interrupted.is_none() => Reason::Abandoned,
                () = deleted(&mut self.stage), if interrupted.is_none() => Reason::Deleted,
            };
            interrupted = Some((reason, Instant::now()));
            worker.interrupt();
        };
        for (which, bytes) in worker.rest() {
            say(job, which, decoders[which as usize].decode(&bytes)).await;
        }
        for which in [Which::Stdout, Which::Stderr] {
            say(job, which, decoders[which as usize].finish()).await;
        }
        (end, interrupted.map(|(reason, _)| reason))
    }
}

/// Waits until the context is to end. Cancel-safe.
async fn deleted(stage: &mut watch::Receiver<Stage>) {
    // An error means the same: the context itself is gone.
    let _ = stage.wait_for(|stage| *stage != Stage::Alive).await;
}

/// Waits until then; for ever where there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn say(job: &Job, which: Which, text: String) {
    if text.is_empty() {
        return;
    }
    let frame = match which {
        Which::Stdout => Frame::Stdout { text },
        Which::Stderr => Frame::Stderr { text },
    };
    // A client that has left needs no output.
    let _ = job.frames.send(Said::Frame(frame)).await;
}

/// The end of a worker as an error of the code that it ran.
fn died(ending: Ending) -> Frame {
    let how = match ending {
        Ending::Exited(code) => format!("exited with status {code}"),
        Ending::Signalled(signal) => format!("was killed by signal {signal}"),
    };
    let value = format!("the interpreter {how}; the next code starts a new one, without this one's state");
    Frame::Error { name: "InterpreterDied".to_owned(), value, traceback: String::new() }
}

/// The last words to the client.
async fn tell(job: &Job, error: Option<Frame>, reason: Option<Reason>) {
    let limit = job.limit.unwrap_or_default().as_secs();
    let control = match reason {
        // Clients take the close code alone for it: a last frame would be the end of the code for some of them.
        Some(Reason::TimedOut) => {
            let said = Said::End(TIMED_OUT, format!("execution timeout: the code ran for {limit} seconds"));
            return drop(job.frames.send(said).await);
        }
        Some(Reason::Abandoned) => return,
        Some(Reason::Deleted) => "interrupted",
        None => "completed",
    };
    let control = Frame::Control { text: control.to_owned() };
    for frame in error.into_iter().chain([control]) {
        if job.frames.send(Said::Frame(frame)).await.is_err() {
            return;
        }
    }
    let _ = job.frames.send(Said::End(close_code::NORMAL, String::new())).await;
}
