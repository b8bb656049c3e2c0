//! Long work: a record that survives the server, and a watch for whoever waits.

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{digits, error::Result, store::Store};

/// Names a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl JobId {
    fn random() -> Self {
        Self(digits::random::<8>())
    }
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// An image is imported; the subject is its name.
    ImportImage,
    /// An image is pulled from a registry; the subject is its name.
    PullImage,
    /// A disk image for virtual machines is built; the subject is its name.
    BuildImage,
    /// A snapshot is taken; the subject is its name.
    CreateSnapshot,
    /// A snapshot is pushed to the store; the subject is its name.
    PushSnapshot,
    /// A snapshot is pulled from the store; the subject is its name.
    PullSnapshot,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Ended without its result; the error says why.
    Failed,
}

/// What is being counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Bytes.
    Bytes,
}

/// How much of a job's present stage is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is at, in words.
    pub stage: String,
    /// So much is done.
    pub done: u64,
    /// Of so much, where that is known.
    pub total: Option<u64>,
    /// Of what.
    pub unit: Unit,
}

/// Long work, as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// What it works on.
    pub subject: String,
    /// What it does.
    pub kind: JobKind,
    /// How far it is.
    pub state: JobState,
    /// How much of it is done.
    pub progress: Progress,
    /// Why it failed, safe to show.
    pub error: Option<String>,
    /// When it began, milliseconds since the Unix epoch.
    pub created_at_ms: i64,
}

/// The one that does the job: reports progress, and records its end. Dropped without one, the record stays "running"
/// until the next start of the server, which turns it into a failure.
#[derive(Debug)]
pub struct JobHandle {
    job: watch::Sender<Job>,
}

impl JobHandle {
    /// Records a job that begins now.
    pub(crate) async fn begin(
        store: &Store,
        kind: JobKind,
        subject: String,
        created_at_ms: i64,
    ) -> Result<Self> {
        let handle = Self::new(kind, subject, created_at_ms);
        handle.record(store).await?;
        Ok(handle)
    }

    /// A job that is not on record yet.
    pub(crate) fn new(kind: JobKind, subject: String, created_at_ms: i64) -> Self {
        let progress = Progress { stage: String::new(), done: 0, total: None, unit: Unit::Bytes };
        let job = Job {
            id: JobId::random(),
            subject,
            kind,
            state: JobState::Running,
            progress,
            error: None,
            created_at_ms,
        };
        Self { job: watch::Sender::new(job) }
    }

    /// Puts it on record.
    pub(crate) async fn record(&self, store: &Store) -> Result<()> {
        let job = self.job.borrow().clone();
        store.put_job(&job).await
    }

    /// Follows the job.
    pub fn watch(&self) -> watch::Receiver<Job> {
        self.job.subscribe()
    }

    /// Reports progress to those who watch; it is not stored.
    pub fn progress(&self, stage: &str, done: u64, total: Option<u64>) {
        self.job.send_modify(|job| {
            if job.progress.stage != stage {
                stage.clone_into(&mut job.progress.stage);
            }
            job.progress.done = done;
            job.progress.total = total;
        });
    }

    /// Records how it ended.
    pub(crate) async fn end<T>(&self, store: &Store, outcome: &Result<T>) -> Result<()> {
        self.job.send_modify(|job| match outcome {
            Ok(_) => job.state = JobState::Succeeded,
            Err(error) => {
                job.state = JobState::Failed;
                job.error = Some(error.message().to_owned());
            }
        });
        let job = self.job.borrow().clone();
        store.put_job(&job).await
    }
}
