//! Memory images to go on from: found whole, found to fit, then loaded into a machine that waits for it.

use std::{
    fs::File,
    os::fd::AsFd as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::process::Pid;
use sandhaus_sandbox::engine::{EngineError, EngineResult};

use super::{
    capture::{STATE_SET, blocking, ignore_refusal, image_files, memory_blocks, put_video, set_form, talk},
    disk::{if_there, open_read},
    manifest::{MEMORY, Machine, Manifest, STATE, VIDEO},
    memory::{Sums, Trust},
    qmp::{Qmp, QmpResult},
};

/// How long QEMU may take to read state without RAM, or with it.
const STATE_MAX: Duration = Duration::from_secs(60);
const WHOLE_STATE_MAX: Duration = Duration::from_secs(600);

/// A memory image that is whole.
#[derive(Debug)]
pub(super) struct Image {
    /// What is known of it.
    pub(super) machine: Machine,
    state: File,
    memory: Option<File>,
    video: Option<File>,
}

impl Image {
    /// Opens the memory image in a directory. Every bit of it is what was written: unless it was found so before and nobody
    /// has touched it since, all of it is read.
    pub(super) fn open(directory: &Path) -> EngineResult<Self> {
        Self::open_trusting(directory, Trust::noted(directory))
    }

    /// The same without trusting what was noted.
    pub(super) fn open_unseen(directory: &Path) -> EngineResult<Self> {
        Self::open_trusting(directory, None)
    }

    fn open_trusting(directory: &Path, noted: Option<Trust>) -> EngineResult<Self> {
        let host = |error: std::io::Error| EngineError::host("open memory image", error);
        let none = || EngineError::Invalid("the snapshot holds no memory".to_owned());
        let machine = Manifest::read(directory)?.machine.ok_or_else(none)?;
        let open = |name: &str| if_there(open_read(&directory.join(name))).map_err(host);
        let missing = || damaged(STATE);
        let state = open(STATE)?.ok_or_else(missing)?;
        let (memory, video) = (open(MEMORY)?, open(VIDEO)?);
        let image = Self { machine, state, memory, video };
        if image.machine.memory.is_some() != image.machine.form.maps_memory() {
            return Err(damaged(MEMORY));
        }
        let seen = seen_in(directory)?;
        if noted.as_ref() == Some(&seen) {
            return Ok(image);
        }
        image.check()?;
        // Without the note it is read again next time, that is all.
        if let Err(error) = seen.note(directory) {
            tracing::warn!(%error, "cannot note that a memory image is whole");
        }
        Ok(image)
    }

    fn check(&self) -> EngineResult<()> {
        let Machine { state, memory, video, .. } = &self.machine;
        let files = [
            (STATE, Some(state), Some(&self.state)),
            (MEMORY, memory.as_ref(), self.memory.as_ref()),
            (VIDEO, video.as_ref(), self.video.as_ref()),
        ];
        for (name, sums, file) in files {
            match (sums, file) {
                (Some(sums), Some(file)) => check_file(name, sums, file)?,
                (Some(_), None) => return Err(damaged(name)),
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// The RAM to map privately; none: it comes with the state, into fresh RAM.
    pub(super) fn memory(&self) -> Option<&File> {
        self.memory.as_ref().filter(|_| self.machine.form.maps_memory())
    }

    /// Arguments of QEMU for a memory image: it waits for its state, and stands still once it has it.
    pub(super) const ARGUMENTS: &[&str] = &["-incoming", "defer", "-S"];

    /// Has a machine that waits for its state (`-S -incoming defer`) read it. It is frozen afterwards.
    pub(super) async fn load(&self, qmp: &Qmp, process: Pid) -> EngineResult<()> {
        self.read_state(qmp).await.map_err(talk("read state"))?;
        let Some(video) = self.video.as_ref().filter(|_| !self.machine.video_blocks.is_empty()) else {
            return Ok(());
        };
        let blocks = memory_blocks(qmp).await.map_err(talk("look at memory"))?;
        let named = self.machine.video_blocks.clone();
        let video = video.try_clone().map_err(|error| EngineError::host("open memory image", error))?;
        blocking("write memory of devices", move || put_video(process, &named, &blocks, &video)).await
    }

    async fn read_state(&self, qmp: &Qmp) -> QmpResult<()> {
        qmp.add_fd(STATE_SET, self.state.as_fd()).await?;
        set_form(qmp, self.machine.form).await?;
        qmp.migrate_incoming(&format!("file:/dev/fdset/{STATE_SET}")).await?;
        let limit = if self.machine.form.maps_memory() { STATE_MAX } else { WHOLE_STATE_MAX };
        let ended = qmp.migration_ends(limit).await;
        ignore_refusal(qmp.remove_fds(STATE_SET).await)?;
        ended
    }
}

/// Has the memory image of a snapshot, if it has one, read once for all that are made of it: what is noted beside it goes
/// along with it, where each of them would have to read all of it after a restart of the host. Those who come meanwhile
/// wait for `turn`.
pub(super) fn find_whole(snapshot: &Path, turn: &Mutex<()>) -> EngineResult<()> {
    if Manifest::read(snapshot)?.machine.is_none() || Trust::noted(snapshot) == Some(seen_in(snapshot)?) {
        return Ok(());
    }
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    Image::open(snapshot).map(drop)
}

fn seen_in(directory: &Path) -> EngineResult<Trust> {
    let seen = image_files(directory).and_then(|files| Trust::of(&files));
    seen.map_err(|error| EngineError::host("open memory image", error))
}

fn check_file(name: &'static str, sums: &Sums, file: &File) -> EngineResult<()> {
    match sums.fit(file) {
        Ok(true) => Ok(()),
        Ok(false) => Err(damaged(name)),
        Err(error) => Err(EngineError::host("read memory image", error)),
    }
}

/// A file that is not what was written.
pub(super) fn damaged(name: &str) -> EngineError {
    EngineError::Invalid(format!("{name} of the snapshot is missing or damaged"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Accelerator,
            arguments::Hardware,
            manifest::{Form, QemuVersion},
        },
        *,
    };

    /// A snapshot of a machine that never was.
    fn snapshot(directory: &Path) {
        let write = |name: &str, content: &[u8]| {
            fs_err::write(directory.join(name), content).expect("written");
            let file = fs_err::File::open(directory.join(name)).expect("opened").into_file();
            Sums::of(&file).expect("summed up")
        };
        let machine = Machine {
            qemu: QemuVersion { major: 10, minor: 0, micro: 2 },
            hardware: Hardware {
                machine: "pc-q35-10.0".to_owned(),
                cpu: "Nehalem".to_owned(),
                accelerator: Accelerator::Tcg,
                cpus: 1,
                memory_mib: 64,
            },
            devices: String::new(),
            form: Form::IgnoreShared,
            state: write(STATE, b"state"),
            memory: Some(write(MEMORY, b"memory")),
            video: None,
            video_blocks: Vec::new(),
        };
        Manifest::new(Some(machine), None).write(directory).expect("written");
    }

    #[test]
    fn an_image_is_read_once_for_all_that_are_made_of_it() {
        let (original, copy) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
        let (original, copy) = (original.path(), copy.path());
        let turn = Mutex::default();
        snapshot(original);
        assert_eq!(Trust::noted(original), None);
        find_whole(original, &turn).expect("whole");
        for entry in fs_err::read_dir(original).expect("listed") {
            let entry = entry.expect("listed");
            fs_err::hard_link(entry.path(), copy.join(entry.file_name())).expect("linked");
        }
        let seen = seen_in(copy).expect("looked at");
        assert_eq!(Trust::noted(copy), Some(seen), "nothing of the copy has to be read again");
        find_whole(original, &turn).expect("whole still");
    }

    #[test]
    fn what_is_damaged_is_found_before_anything_is_made_of_it() {
        let directory = tempfile::tempdir().expect("made");
        let directory = directory.path();
        snapshot(directory);
        fs_err::write(directory.join(MEMORY), b"memorY").expect("written");
        let found = find_whole(directory, &Mutex::default());
        assert!(matches!(found, Err(EngineError::Invalid(_))), "{found:?}");
        assert_eq!(Trust::noted(directory), None);
    }
}
