//! One call of the git program, from its arguments to its output.
//!
//! A name and password travel in a file in memory, under a descriptor that the called process and those it starts inherit.
//! The credential helper of this call, which git asks for the one site that they are for, reads it; every other helper is
//! off. Such a call does nothing that could start a program of the repository or of its user.

use std::{collections::BTreeMap, os::fd::AsFd as _, path::Path, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{address::Credentials, refusal};
use crate::{
    agent::Agent,
    error::{Error, Result},
    process::Leash,
    sys::{Channel, Command, Family, Script, Session, SpawnError, discard, output_pipe},
};

/// How long a call may take that stays on this machine, and one that talks to a remote.
const LOCAL_LIMIT: Duration = Duration::from_secs(10 * 60);
const REMOTE_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Most bytes of output that are taken, and most bytes of messages that are kept: the last ones.
const OUTPUT_BYTES_MAX: usize = 32 << 20;
const MESSAGE_BYTES_MAX: usize = 16 * 1024;

/// Bytes read at once.
const READ_BYTES: usize = 32 * 1024;

/// Settings of every call: no program but git itself takes part in reading a repository's state.
const SETTINGS: [&str; 5] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.quotePath=false",
    "color.ui=false",
    "log.showSignature=false",
];

/// Further settings of a call that knows a password: it starts nothing that is not git, and nothing in the background.
const SECRET_SETTINGS: [&str; 8] = [
    // An empty name takes back all helpers named before it.
    "credential.helper=",
    "core.askPass=",
    "core.alternateRefsCommand=:",
    "push.gpgSign=false",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "gc.auto=0",
    "maintenance.auto=false",
];

/// The descriptor from which the credential helper reads, and the helper: a line for git's shell in which nothing is filled
/// in.
const SECRET_FD: i32 = 9;
const HELPER: &str = r#"!f() { test "$1" = get || exit 0; while IFS= read -r line; do printf '%s\n' "$line"; done </proc/self/fd/9; }; f"#;

/// Variables that would make git work elsewhere, speak otherwise or tell more than is asked for.
const DROPPED: [&str; 15] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_CURL_VERBOSE",
    "GIT_GLOB_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_EXTERNAL_DIFF",
    "GIT_CEILING_DIRECTORIES",
    "LANGUAGE",
];
const DROPPED_STARTS: [&str; 2] = ["GIT_TRACE", "GIT_TRACE2"];

/// A call.
pub(super) struct Call<'a> {
    directory: &'a str,
    words: Vec<String>,
    settings: Vec<String>,
    variables: Vec<(&'static str, String)>,
    input: Option<Vec<u8>>,
    credentials: Option<&'a Credentials>,
    limit: Duration,
    mark: Option<&'a str>,
}

/// What a call has brought.
pub(super) struct Output {
    /// Its status.
    pub(super) status: i32,
    /// Its standard output.
    pub(super) text: Vec<u8>,
    /// What it said about its failure, without secrets.
    pub(super) messages: String,
}

impl<'a> Call<'a> {
    /// Git in a directory, with these arguments.
    pub(super) fn new(directory: &'a str, words: &[&str]) -> Self {
        Self {
            directory,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            settings: Vec::new(),
            variables: Vec::new(),
            input: None,
            credentials: None,
            limit: LOCAL_LIMIT,
            mark: None,
        }
    }

    /// With one more argument.
    pub(super) fn word(mut self, word: impl Into<String>) -> Self {
        self.words.push(word.into());
        self
    }

    /// With one more argument if there is one.
    pub(super) fn maybe(self, word: Option<impl Into<String>>) -> Self {
        match word {
            Some(word) => self.word(word),
            None => self,
        }
    }

    /// With a setting for this call alone.
    pub(super) fn setting(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// With a variable.
    pub(super) fn variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// With something to read.
    pub(super) fn input(mut self, input: Vec<u8>) -> Self {
        self.input = Some(input);
        self
    }

    /// Talks to a remote, as this user of it.
    pub(super) fn remote(mut self, credentials: Option<&'a Credentials>) -> Self {
        self.credentials = credentials;
        self.limit = REMOTE_LIMIT;
        self
    }

    /// As a member of this family.
    pub(super) fn marked(mut self, mark: &'a str) -> Self {
        self.mark = Some(mark);
        self
    }

    /// Runs it. A status other than zero is a refusal.
    pub(super) async fn run(self, agent: &Arc<Agent>) -> Result<Vec<u8>> {
        let output = self.output(agent).await?;
        match output.status {
            0 => Ok(output.text),
            _ => Err(refusal::of(&output)),
        }
    }

    /// Runs it for the one line it prints.
    pub(super) async fn line(self, agent: &Arc<Agent>) -> Result<String> {
        let text = self.run(agent).await?;
        Ok(String::from_utf8_lossy(&text).trim_end_matches('\n').to_owned())
    }

    /// Runs it for the one line it prints, if it succeeds.
    pub(super) async fn line_if_any(self, agent: &Arc<Agent>) -> Result<Option<String>> {
        let output = self.output(agent).await?;
        let line = String::from_utf8_lossy(&output.text).trim_end_matches('\n').to_owned();
        Ok((output.status == 0 && !line.is_empty()).then_some(line))
    }

    /// Runs it, whatever its status. Dropped before its end it takes git and all that git has started along.
    pub(super) async fn output(self, agent: &Arc<Agent>) -> Result<Output> {
        let _place = agent
            .git
            .places
            .try_acquire()
            .map_err(|_| Error::too_many("too many git calls at once: wait for some to end"))?;
        let (our_output, their_output) = output_pipe()?;
        let (our_messages, their_messages) = output_pipe()?;
        let (output, messages) = (Channel::reading(our_output)?, Channel::reading(our_messages)?);
        let input = match &self.input {
            Some(input) => Script::new()?.into_readable(&[input])?,
            None => discard()?,
        };
        let secret = match self.credentials {
            Some(credentials) => Some(Script::new()?.into_readable(&[credentials.answer().as_bytes()])?),
            None => None,
        };
        let mark = self.mark.map_or_else(Family::new_mark, str::to_owned);
        let mut descriptors =
            vec![(input.as_fd(), 0), (their_output.as_fd(), 1), (their_messages.as_fd(), 2)];
        descriptors.extend(secret.as_ref().map(|secret| (secret.as_fd(), SECRET_FD)));
        let child = agent
            .children
            .spawn(&Command {
                argv: &self.argv(),
                env: &self.environment(agent, &mark),
                cwd: self.directory,
                descriptors: &descriptors,
                session: Session::Own,
                workload: agent.spawn_identity(),
            })
            .map_err(|error| self.not_started(error))?;
        drop((input, their_output, their_messages, secret));
        let leash = Leash::new(agent, Family { root: child.pid, mark });
        let (finish, _) = watch::channel(());
        let run = async {
            tokio::join!(
                collect(&output, finish.subscribe(), Keep::Start(OUTPUT_BYTES_MAX)),
                collect(&messages, finish.subscribe(), Keep::End(MESSAGE_BYTES_MAX)),
                async {
                    let ending = child.ended.await;
                    // Both may have ended already.
                    let _ = finish.send(());
                    ending
                }
            )
        };
        let Ok((text, messages, ending)) = tokio::time::timeout(self.limit, run).await else {
            leash.pull().await;
            let seconds = self.limit.as_secs();
            return Err(Error::timeout(format_args!("git was ended after {seconds} seconds")));
        };
        leash.release();
        let status = ending.map_or(refusal::STATUS_UNKNOWN, |ending| ending.code());
        let text = text.ok_or_else(|| {
            Error::too_large(format_args!("git has more than {OUTPUT_BYTES_MAX} bytes to say about this"))
        })?;
        let messages = String::from_utf8_lossy(&messages.unwrap_or_default()).into_owned();
        Ok(Output { status, text, messages: super::address::redacted(&messages, self.credentials) })
    }

    fn argv(&self) -> Vec<String> {
        let mut argv = vec!["git".to_owned()];
        let mut set = |setting: &str| argv.extend(["-c".to_owned(), setting.to_owned()]);
        SETTINGS.iter().for_each(|setting| set(setting));
        self.settings.iter().for_each(|setting| set(setting));
        if let Some(credentials) = self.credentials {
            SECRET_SETTINGS.iter().for_each(|setting| set(setting));
            set(&format!("credential.{}.helper={HELPER}", credentials.site));
        }
        argv.extend(self.words.iter().cloned());
        argv
    }

    fn environment(&self, agent: &Agent, mark: &str) -> BTreeMap<String, String> {
        let mut env = agent.environment();
        env.retain(|name, _| {
            !DROPPED.contains(&name.as_str()) && !DROPPED_STARTS.iter().any(|start| name.starts_with(start))
        });
        // Git's messages are read by programs here, and nobody is there to be asked.
        let fixed = [
            ("LC_ALL", "C"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_LITERAL_PATHSPECS", "1"),
        ];
        env.extend(fixed.map(|(name, value)| (name.to_owned(), value.to_owned())));
        if self.credentials.is_some() {
            env.insert("GIT_ASKPASS".to_owned(), String::new());
        }
        if let Some(above) = Path::new(self.directory).parent().and_then(Path::to_str) {
            env.insert("GIT_CEILING_DIRECTORIES".to_owned(), above.to_owned());
        }
        env.extend(self.variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        env.insert(Family::MARK.to_owned(), mark.to_owned());
        env
    }

    fn not_started(&self, error: SpawnError) -> Error {
        match error {
            SpawnError::NotFound | SpawnError::NotExecutable(_) => refusal::not_installed(&error),
            SpawnError::Directory(_) => refusal::no_repository(self.directory),
            SpawnError::Invalid(_) | SpawnError::Exhausted(_) | SpawnError::Failed(..) => error.into(),
        }
    }
}

/// Which part of a stream is kept.
#[derive(Debug, Clone, Copy)]
enum Keep {
    /// All of it, or nothing when it is longer.
    Start(usize),
    /// The last bytes.
    End(usize),
}

/// What is written until the last writer is gone, or until the process has ended and its last words are taken: what it has
/// left running may hold the stream for long. `None` when there is too much.
async fn collect(channel: &Channel, mut finish: watch::Receiver<()>, keep: Keep) -> Option<Vec<u8>> {
    let mut kept = Kept { keep, bytes: Some(Vec::new()) };
    let mut buffer = vec![0; READ_BYTES];
    loop {
        tokio::select! {
            // Cancel-safe: nothing is consumed unless this arm wins.
            read = channel.read(&mut buffer) => match read {
                Ok(read @ 1..) => kept.append(&buffer[..read]),
                Ok(_) | Err(_) => return kept.bytes,
            },
            _ = finish.changed() => break,
        }
        tokio::task::yield_now().await;
    }
    let mut rest = channel.available();
    while rest > 0 {
        let room = rest.min(READ_BYTES);
        let Ok(Some(read @ 1..)) = channel.try_read(&mut buffer[..room]) else { break };
        kept.append(&buffer[..read]);
        rest -= read;
    }
    kept.bytes
}

struct Kept {
    keep: Keep,
    bytes: Option<Vec<u8>>,
}

impl Kept {
    fn append(&mut self, new: &[u8]) {
        let Some(bytes) = &mut self.bytes else { return };
        match self.keep {
            Keep::Start(most) if bytes.len() + new.len() > most => self.bytes = None,
            Keep::Start(_) => bytes.extend_from_slice(new),
            Keep::End(most) => {
                bytes.extend_from_slice(new);
                let over = bytes.len().saturating_sub(most);
                bytes.drain(..over);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_kept_to_their_limits() {
        let keep = |keep| {
            let mut kept = Kept { keep, bytes: Some(Vec::new()) };
            kept.append(b"abc");
            kept.append(b"def");
            kept.bytes
        };
        assert_eq!(keep(Keep::Start(6)), Some(b"abcdef".to_vec()));
        assert_eq!(keep(Keep::Start(5)), None);
        assert_eq!(keep(Keep::End(4)), Some(b"cdef".to_vec()));
    }
}
