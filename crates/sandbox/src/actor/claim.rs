//! How an idle sandbox becomes somebody's, and how one that is nobody's ends.

use std::sync::Arc;

use super::{Actor, Claim, Waiter, answer};
use crate::{
    error::{Error, Kind},
    fault, plan, pool,
    publish::Publication,
    types::*,
};

impl Actor {
    /// Gives the sandbox away: first its row, then, by the planner's own greeting, what the owner brings. One that cannot
    /// be given away is in no list any more, so it ends.
    pub(super) async fn give_away(&mut self, claim: Claim) {
        let Claim { asked, bound, reply } = claim;
        if let Err(error) = self.check(&asked) {
            self.discard();
            return answer(reply, Err(error));
        }
        let mut sandbox = pool::claimed(&self.sandbox, &asked);
        sandbox.spec.publish = bound.ports();
        hit("before");
        let written = self.shared.store.claim(&sandbox).await;
        hit("after");
        if let Err(error) = written {
            self.discard();
            return answer(reply, Err(error));
        }
        tracing::info!(sandbox = %sandbox.id, generation = %sandbox.generation, "claimed from the pool");
        self.handle.deadline.begin(sandbox.deadlines);
        self.shared.expect_deadline(sandbox.deadlines);
        self.sandbox = Arc::new(sandbox);
        self.publication = Publication::serve(&self.shared, &self.handle.id, bound);
        self.newly_claimed = true;
        // The greeting brings the environment, and shows that the agent still answers.
        self.seen.greeted = false;
        self.waiters.push(Waiter { goal: Goal::Running, reply });
    }

    fn check(&self, asked: &Sandbox) -> Result<(), Error> {
        let runs = self.sandbox.goal == Goal::Running && plan::plan(&self.wanted(), &self.seen).is_none();
        if self.sandbox.tenancy != Tenancy::Idle || !runs {
            return Err(taken(&self.handle.id));
        }
        if pool::key(&asked.spec) != self.sandbox.spec {
            let message = "the pool offered a sandbox that is not what was asked for";
            return Err(Error::new(Kind::Internal, message));
        }
        Ok(())
    }

    /// What is nobody's, or was not handed over to its owner yet, ends when it does not run.
    pub(super) fn end_if_useless(&mut self) {
        if !matches!(self.sandbox.goal, Goal::Running | Goal::Absent) {
            self.discard();
        }
    }

    /// Nobody has got to know it.
    pub(super) fn is_unknown_to_all(&self) -> bool {
        let unknown = self.sandbox.tenancy == Tenancy::Idle || self.newly_claimed;
        unknown && self.end_reason.is_none()
    }

    fn discard(&mut self) {
        let nobodys = self.sandbox.tenancy == Tenancy::Idle || self.newly_claimed;
        if nobodys && self.seen.asked.is_none() && self.sandbox.goal != Goal::Absent {
            self.wish(Goal::Absent);
        }
    }
}

/// It is not idle.
pub(super) fn taken(id: &SandboxId) -> Error {
    Error::new(Kind::Conflict, format!("sandbox {id} does not wait in the pool"))
}

fn hit(side: &str) {
    if fault::is_armed() {
        fault::hit(&format!("pool.{}.{side}", pool::Step::Claim.name()));
    }
}
