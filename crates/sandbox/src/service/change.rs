//! Changes to a sandbox that is there.

use tokio::sync::oneshot;

use super::{Service, shutting_down};
use crate::{
    admission,
    engine::Change,
    error::{Error, Kind, Result},
    handle::{Message, not_running},
    types::*,
};

impl Service {
    /// Gives a sandbox new limits, or another reach, at once; it keeps them when it starts again. Refused by name if its
    /// engine cannot.
    pub async fn change(&self, id: &SandboxId, change: Change) -> Result<SandboxView> {
        let handle = self.live(id).await?;
        if handle.is_idle() {
            return Err(not_running(id));
        }
        admission::admit_change(&handle, &change)?;
        let (reply, answer) = oneshot::channel();
        handle.tell(Message::Change { change, reply })?;
        match tokio::time::timeout(self.shared.config.settle_timeout, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(shutting_down()),
            Err(_) => Err(Error::new(Kind::Timeout, format!("sandbox {id} is busy; it is changed later"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::{
        engine::{Capabilities, Engine, EngineError},
        instance::Instance,
        service::CreateSandbox,
        testing::{self, FakeEngine, Op, Reach},
    };

    async fn open(dir: &TempDir, engine: &FakeEngine) -> Service {
        let instance = Instance::acquire(dir.path()).expect("free");
        testing::open(instance, testing::config(), engine.clone()).await.expect("opens")
    }

    fn memory(memory_bytes: u64) -> Change {
        Change::Resources(Resources { memory_bytes, ..Resources::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_reaches_the_machine_and_outlives_the_server() {
        let (dir, engine) = (tempfile::tempdir().expect("directory"), FakeEngine::default());
        let service = open(&dir, &engine).await;
        let id = service.create(testing::request()).await.expect("created").sandbox.id;
        service.change(&id, memory(64 << 20)).await.expect("changed");
        let view = service.change(&id, Change::Network(NetworkPolicy::Bridge)).await.expect("changed");
        assert_eq!(view.sandbox.spec.resources.memory_bytes, 64 << 20);
        let spec = engine.spec(&id).expect("a machine");
        assert_eq!((spec.resources.memory_bytes, spec.network), (64 << 20, NetworkPolicy::Bridge));

        // A stopped one has no machine to tell.
        service.set_goal(&id, Goal::Stopped).await.expect("stopped");
        service.change(&id, memory(32 << 20)).await.expect("changed");
        service.shutdown().await;
        drop(service);
        let service = open(&dir, &engine).await;
        let view = service.set_goal(&id, Goal::Running).await.expect("runs");
        assert_eq!(view.sandbox.spec.resources.memory_bytes, 32 << 20);
        assert_eq!(engine.spec(&id).expect("a machine").resources.memory_bytes, 32 << 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        let engine = FakeEngine::default();
        let service = open(&dir, &engine).await;
        let id = service.create(testing::request()).await.expect("created").sandbox.id;
        let before = service.get(&id).await.expect("there").sandbox.spec;
        let refused = service.change(&id, memory(1)).await.expect_err("too little");
        assert_eq!(refused.kind(), Kind::Invalid);
        engine.fail(Op::Update, Reach::Nothing, || EngineError::Unsupported("that".to_owned()));
        let refused = service.change(&id, memory(64 << 20)).await.expect_err("the engine cannot");
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert_eq!(service.get(&id).await.expect("there").sandbox.spec, before);
        service.delete(&id).await.expect("deleted");
        assert_eq!(service.change(&id, memory(64 << 20)).await.expect_err("gone").kind(), Kind::Gone);

        let rigid = Capabilities { resize: false, ..Engine::capabilities(&FakeEngine::default()).clone() };
        let dir = tempfile::tempdir().expect("directory");
        let service = open(&dir, &FakeEngine::new(rigid)).await;
        let id = service.create(testing::request()).await.expect("created").sandbox.id;
        let refused = service.change(&id, memory(64 << 20)).await.expect_err("the engine cannot");
        assert_eq!(refused.kind(), Kind::Unsupported);
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_that_is_asked_for_is_given_once() {
        let (dir, engine) = (tempfile::tempdir().expect("directory"), FakeEngine::default());
        let service = open(&dir, &engine).await;
        let id = SandboxId::parse("0123abcd-0123-4567-89ab-0123456789ab").expect("an id");
        let asked = || CreateSandbox { id: Some(id.clone()), ..testing::request() };
        let view = service.create(asked()).await.expect("created");
        assert_eq!(view.sandbox.id, id);
        assert_eq!(service.create(asked()).await.expect_err("taken").kind(), Kind::Exists);
        service.delete(&id).await.expect("deleted");
        assert_eq!(service.create(asked()).await.expect_err("in the history").kind(), Kind::Exists);
    }
}
