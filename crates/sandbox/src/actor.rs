//! The one task that changes a sandbox.
//!
//! It asks the planner for the next step, carries it out to its end, and sleeps when there is none: until a message
//! comes, the engine tells of an end, or the pause after a failure is over. Nothing here decides what is to be done;
//! what is done lies in `actor/steps.rs`. A step is never dropped half-way: callers that go away drop only their wait,
//! and a shutdown lets the present step end.

mod capture;
mod change;
mod claim;
mod steps;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    error::{Error, Kind, Result},
    fault,
    handle::{Capturing, Handle, Message, News, Published, gone},
    plan::{self, Failed, Row, Seen, Step, Wanted},
    publish::{Bound, Publication},
    service::Shared,
    types::*,
};

/// How often a step that can be given up is tried.
pub(crate) const ATTEMPTS_MAX: u32 = 3;

/// The first pause after a failure; each further one is four times as long.
const PAUSE_FIRST: Duration = Duration::from_millis(50);

/// The longest pause after a failure.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The task that owns one sandbox.
pub(crate) struct Actor {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    inbox: mpsc::Receiver<Message>,
    /// The row as the store has it, or is about to get it.
    sandbox: Arc<Sandbox>,
    seen: Seen,
    /// What goes with `seen.asked`.
    ask: Ask,
    waiters: Vec<Waiter>,
    /// Failures since the goal was last reached or changed.
    failures: u32,
    pause_until: Option<Instant>,
    /// Why the goal could not be reached, for those who wait for it.
    trouble: Option<Error>,
    /// The memory limit ended the machine of this generation.
    out_of_memory: Option<Generation>,
    end_reason: Option<EndReason>,
    /// Somebody who wants it out of the pool.
    claim: Option<Claim>,
    /// It was given away and its owner has not been told yet.
    newly_claimed: bool,
    /// Its ports on the host's loopback.
    publication: Publication,
    /// What is to be other than it is.
    changes: VecDeque<change::Asked>,
    /// Those who want it captured.
    captures: VecDeque<Capturing>,
}

/// Somebody who wants a sandbox out of the pool.
struct Claim {
    /// The row that admission made of the request.
    asked: Box<Sandbox>,
    /// The ports of the host that are to lead into it.
    bound: Bound,
    reply: oneshot::Sender<Result<SandboxView>>,
}

/// Someone who waits for a goal.
struct Waiter {
    goal: Goal,
    reply: oneshot::Sender<Result<SandboxView>>,
}

/// Why a goal is asked for.
#[derive(Debug, Clone, Default)]
enum Ask {
    /// Somebody wants it.
    #[default]
    Wish,
    /// The former one cannot be reached.
    FallBack(Failure),
}

impl Actor {
    /// An actor for `sandbox`, of which so much is seen.
    pub(crate) fn new(
        shared: Arc<Shared>,
        handle: Arc<Handle>,
        inbox: mpsc::Receiver<Message>,
        sandbox: Arc<Sandbox>,
        seen: Seen,
    ) -> Self {
        Self {
            shared,
            handle,
            inbox,
            sandbox,
            seen,
            ask: Ask::Wish,
            waiters: Vec::new(),
            failures: 0,
            pause_until: None,
            trouble: None,
            out_of_memory: None,
            end_reason: None,
            claim: None,
            newly_claimed: false,
            publication: Publication::default(),
            changes: VecDeque::new(),
            captures: VecDeque::new(),
        }
    }

    /// The same with somebody who waits for it to run.
    pub(crate) fn with_creator(mut self, reply: oneshot::Sender<Result<SandboxView>>) -> Self {
        self.waiters.push(Waiter { goal: Goal::Running, reply });
        self
    }

    /// The same with listeners that lead into it.
    pub(crate) fn with_publication(mut self, publication: Publication) -> Self {
        self.publication = publication;
        self
    }

    /// Owns the sandbox until nothing of it is left or the service shuts down.
    pub(crate) async fn run(mut self) {
        while !self.shared.token.is_cancelled() {
            self.take_news();
            if let Some(claim) = self.claim.take() {
                self.give_away(claim).await;
            }
            self.end_if_useless();
            match plan::plan(&self.wanted(), &self.seen) {
                Some(step) if self.is_due() => self.advance(step).await,
                next => {
                    if next.is_none() {
                        self.settle();
                        self.make_changes().await;
                        if self.make_capture().await {
                            continue;
                        }
                    }
                    self.publish();
                    if self.seen.row == Row::Gone || !self.wait().await {
                        break;
                    }
                }
            }
        }
        self.publication.close().await;
        if self.seen.row == Row::Gone {
            self.shared.remove(&self.handle.id);
            self.release_snapshot();
            // Whoever asked too late hears that it is gone, not that the server is.
            self.inbox.close();
            while let Ok(message) = self.inbox.try_recv() {
                match message {
                    Message::SetGoal { goal, reply } => answer(reply, self.outcome(goal)),
                    Message::Claim { reply, .. } | Message::Change { reply, .. } => {
                        answer(reply, Err(gone(&self.handle.id)));
                    }
                    Message::Capture(capture) => answer(capture.reply, Err(gone(&self.handle.id))),
                    Message::Expire | Message::Touched | Message::Discard => {}
                }
            }
        }
    }

    /// Takes what is waiting, without waiting.
    fn take_news(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
        match self.handle.exits.take() {
            Some(News::Exit(exit)) if exit.generation == self.sandbox.generation => {
                if exit.out_of_memory {
                    self.out_of_memory = Some(exit.generation);
                }
                self.look_again();
            }
            // The end of a former machine, of which the planner has no need.
            Some(News::Exit(_)) | None => {}
            Some(News::Unsure) => self.look_again(),
            Some(News::Forgotten) => {
                tracing::warn!(sandbox = %self.handle.id, "its agent was started anew");
                self.seen.greeted = false;
                self.look_again();
            }
        }
    }

    fn look_again(&mut self) {
        if self.seen.row == Row::Kept {
            self.seen.host = None;
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::SetGoal { goal, reply } => {
                if self.sandbox.goal == Goal::Absent && goal != Goal::Absent {
                    return answer(reply, Err(gone(&self.handle.id)));
                }
                self.end_reason = self.end_reason.or((goal == Goal::Absent).then_some(EndReason::Deleted));
                self.waiters.push(Waiter { goal, reply });
                self.wish(goal);
            }
            Message::Expire => {
                if self.sandbox.goal != Goal::Absent && self.handle.expired(self.shared.clock.now_ms()) {
                    self.end_reason = self.end_reason.or(Some(EndReason::Expired));
                    self.wish(Goal::Absent);
                }
            }
            Message::Touched => self.write_deadline(),
            Message::Claim { reply, .. } if self.claim.is_some() => {
                answer(reply, Err(claim::taken(&self.handle.id)));
            }
            Message::Claim { asked, bound, reply } => self.claim = Some(Claim { asked, bound, reply }),
            Message::Change { change, reply } => self.changes.push_back(change::Asked { change, reply }),
            Message::Capture(capture) => self.await_capture(*capture),
            Message::Discard => {
                if self.sandbox.tenancy == Tenancy::Idle {
                    self.wish(Goal::Absent);
                }
            }
        }
    }

    fn wish(&mut self, goal: Goal) {
        if self.seen.asked == Some(Goal::Absent) {
            return;
        }
        let stands = self.seen.asked.is_none() && self.sandbox.goal == goal && self.sandbox.failure.is_none();
        if !stands {
            self.seen.asked = Some(goal);
            self.ask = Ask::Wish;
            // A new wish neither waits for the pause after a failure of the former one nor is it to blame for it.
            self.pause_until = None;
            self.trouble = None;
        }
    }

    fn write_deadline(&mut self) {
        let sandbox = Arc::make_mut(&mut self.sandbox);
        sandbox.deadlines.expires_at_ms = self.handle.deadline.to_write();
        if self.seen.row == Row::Kept {
            self.shared.store.save_unawaited(&self.sandbox);
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            goal: self.sandbox.goal,
            generation: self.sandbox.generation,
            holdings: self.sandbox.holdings,
            life: self.sandbox.life,
            lost: self.sandbox.failure.as_ref().is_some_and(|failure| failure.kind == FailureKind::DataLost),
            warm: matches!(self.sandbox.spec.source, Source::Snapshot { memory: true, .. }),
        }
    }

    fn is_due(&self) -> bool {
        self.pause_until.is_none_or(|until| until <= Instant::now())
    }

    async fn advance(&mut self, step: Step) {
        self.pause_until = None;
        if fault::is_armed() {
            fault::hit(&format!("plan.{}.before", step.name()));
        }
        let wanted = self.wanted();
        let result = self.carry_out(step, &wanted).await;
        if fault::is_armed() {
            fault::hit(&format!("plan.{}.after", step.name()));
        }
        match result {
            Ok(()) => {
                tracing::trace!(sandbox = %self.handle.id, step = step.name(), "step done");
                self.seen.succeeded(step, &wanted);
                if step == Step::Resolve {
                    self.failures = 0;
                }
                if matches!(step, Step::Resolve | Step::Lower | Step::Lose) {
                    self.publish();
                }
            }
            Err(error) => self.failed(step, &wanted, error),
        }
    }

    fn failed(&mut self, step: Step, wanted: &Wanted, error: Error) {
        self.failures = self.failures.saturating_add(1);
        let hopeless =
            matches!(error.kind(), Kind::Invalid | Kind::Unsupported | Kind::NotFound | Kind::Exists);
        tracing::warn!(
            sandbox = %self.handle.id,
            step = step.name(),
            failures = self.failures,
            %error,
            source = ?std::error::Error::source(&error),
            "step failed"
        );
        if step == Step::Enroll {
            // Nothing was made yet: without a row there is no sandbox.
            self.trouble = Some(error);
            self.seen.row = Row::Gone;
            return;
        }
        self.seen.failed();
        match plan::fall_back(step, wanted) {
            // A wish that came meanwhile is newer than what failed.
            Some(goal) if (hopeless || self.failures >= ATTEMPTS_MAX) && self.seen.asked.is_none() => {
                let kind = match (step, wanted.life) {
                    (Step::Greet, Life::Up(_)) => FailureKind::Crashed,
                    _ => FailureKind::StartFailed,
                };
                let failure =
                    Failure { kind, message: error.message().to_owned(), at_ms: self.shared.clock.now_ms() };
                self.seen.asked = Some(goal);
                self.ask = Ask::FallBack(failure);
            }
            _ => self.pause_until = Some(Instant::now() + pause(self.failures)),
        }
        self.trouble = Some(error);
    }

    /// The goal is reached: tells those who wait.
    fn settle(&mut self) {
        self.failures = 0;
        self.newly_claimed = false;
        if self.sandbox.tenancy == Tenancy::Idle && self.sandbox.goal == Goal::Running {
            // Published first: whoever finds it in the pool looks at what is published.
            self.publish();
            self.shared.pool.ready(&self.handle.id);
        }
        for waiter in std::mem::take(&mut self.waiters) {
            let outcome = self.outcome(waiter.goal);
            answer(waiter.reply, outcome);
        }
        self.trouble = None;
    }

    /// What somebody who waits for `goal` hears now that there is nothing left to do.
    fn outcome(&mut self, goal: Goal) -> Result<SandboxView> {
        let id = &self.handle.id;
        if self.seen.row == Row::Gone && goal != Goal::Absent {
            return Err(self.trouble.take().map_or_else(
                || gone(id),
                |trouble| {
                    // Everyone hears the message, the first also takes the cause to the log.
                    self.trouble = Some(Error::new(trouble.kind(), trouble.message()));
                    trouble
                },
            ));
        }
        if self.sandbox.goal == goal {
            self.publish();
            return Ok(self.handle.view());
        }
        if let Some(trouble) = self.trouble.take() {
            self.trouble = Some(Error::new(trouble.kind(), trouble.message()));
            return Err(trouble);
        }
        Err(match &self.sandbox.failure {
            Some(failure) => Error::new(Kind::Conflict, failure.message.clone()),
            None => {
                Error::new(Kind::Conflict, format!("another request changed what is wanted of sandbox {id}"))
            }
        })
    }

    fn publish(&self) {
        let failed = if self.sandbox.failure.is_some() { Failed::Yes } else { Failed::No };
        let phase = plan::phase(&self.wanted(), &self.seen, failed);
        self.handle.published.send_if_modified(|published| {
            let same = published.phase == phase && Arc::ptr_eq(&published.sandbox, &self.sandbox);
            if !same {
                *published = Published { sandbox: self.sandbox.clone(), phase };
            }
            !same
        });
    }

    /// Waits for something to do; false when the service shuts down. Every arm is cancel-safe: a message stays in the
    /// mailbox, a notification keeps its permit, a sleep and a token hold nothing.
    async fn wait(&mut self) -> bool {
        let pause = self.pause_until;
        let rest = async {
            match pause {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.inbox.recv() => match message {
                Some(message) => {
                    self.take(message);
                    true
                }
                None => false,
            },
            () = self.handle.exits.arrived.notified() => true,
            () = rest => true,
            () = self.shared.token.cancelled() => false,
        }
    }
}

/// Whoever asked may be gone: then nobody needs the answer.
fn answer<T>(reply: oneshot::Sender<Result<T>>, outcome: Result<T>) {
    drop(reply.send(outcome));
}

fn pause(failures: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(4_u32.saturating_pow(failures.saturating_sub(1))).min(PAUSE_MAX)
}
