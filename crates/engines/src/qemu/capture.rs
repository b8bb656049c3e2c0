//! Capturing a machine: its disk, its memory, or both of one moment.
//!
//! ```text
//!   disk     an empty layer goes over the top; what was the top is frozen from then on, and linked into the snapshot
//!   state    QEMU writes devices and processors through a descriptor
//!   memory   we copy the RAM, with sums
//!   config   last: a snapshot without it is none
//! ```
//!
//! Of a sandbox that is suspended all of that is there already: the disk is that of one without a machine, and the files of
//! its memory image are linked.
//!
//! A disk is captured while its machine runs, too: it is then as after a power cut. The machine writes to the new layer, and
//! nobody ever again to those below, since snapshots share them. Before there are too many, those above the image's become
//! one, which costs the copy of what they hold; see [`OWN_LAYERS_MAX`].
//!
//! Nothing here has to be undone after a crash: a layer that no machine took is empty, a directory without a manifest is no
//! snapshot.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::process::Pid;
use sandhaus_sandbox::{
    engine::{Capture, EngineError, EngineResult},
    types::SandboxId,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    arguments::{Hardware, RAM},
    disk::{
        Access, Chain, Disks, INITRAMFS, KERNEL, OWN_LAYERS_MAX, READ_MARK, Record, WRITE_MARK,
        descriptor_set, if_there, layer_name, link, node, node_name, number_of_node,
    },
    image_tool,
    manifest::{self, Block, Form, MEMORY, Manifest, QemuVersion, STATE, VIDEO},
    memory::{Ram, Sums, Trust, bytes_free},
    qmp::{Qmp, QmpError, QmpResult},
    restore::Image,
};
use crate::{
    namespace::disk::failure,
    steps::{Moment, Step, hit, pass, sequence},
};

/// The set of descriptors that the state is written, or read, through.
pub(super) const STATE_SET: u32 = 900;

/// How long QEMU may take to write state without RAM, or with it.
const STATE_MAX: Duration = Duration::from_secs(60);
const WHOLE_STATE_MAX: Duration = Duration::from_secs(600);

/// How long the layers of a disk may take to become one.
const MERGE_MAX: Duration = Duration::from_secs(600);

/// Bytes a second that QEMU may write: more than there are.
const BANDWIDTH: u64 = 100 << 30;

/// Space that is left on the host besides.
const SPARE_BYTES: u64 = 64 << 20;

/// Memory of devices that is captured; a graphics card has a few mebibytes.
const VIDEO_BYTES_MAX: u64 = 256 << 20;

/// Longest stream of devices alone; it has some hundred kibibytes.
const DEVICES_BYTES_MAX: u64 = 64 << 20;

/// Modes of files that anybody may read who is given a descriptor of them.
const FILE_MODE: u32 = 0o444;

sequence! {
    /// Capturing a machine.
    CaptureStep in "vm_capture" {
        Ready = "ready",
        Merge = "merge",
        Layer = "layer",
        Switch = "switch",
        Release = "release",
        Link = "link",
        State = "state",
        Memory = "memory",
        Config = "config",
    }
}

/// Does a step that takes its time between its fault points.
pub(super) async fn step<S: Step, T>(step: S, act: impl Future<Output = EngineResult<T>>) -> EngineResult<T> {
    hit(step, Moment::Before);
    let done = act.await?;
    hit(step, Moment::After);
    Ok(done)
}

/// What is captured.
#[derive(Debug)]
pub(super) struct Subject {
    /// Whose machine.
    pub(super) id: SandboxId,
    /// Where its disk is.
    pub(super) disks: Arc<Disks>,
    /// Its monitor.
    pub(super) qmp: Arc<Qmp>,
    /// Its QEMU.
    pub(super) process: Pid,
    /// Its hardware.
    pub(super) hardware: Hardware,
    /// What [`manifest::devices_of`] says of its arguments.
    pub(super) devices: String,
    /// The version of its QEMU.
    pub(super) qemu: QemuVersion,
}

/// How a machine may be written, in the order in which it is tried.
pub(super) type Forms = &'static [Form];

/// Forms for a machine whose RAM is a file that it writes to.
const FORMS_SHARED: Forms = &[Form::IgnoreShared, Form::Devices, Form::Stream];

/// Forms for one that was restored, whose RAM is its own.
const FORMS_PRIVATE: Forms = &[Form::Devices, Form::MappedRam, Form::Stream];

impl Subject {
    /// Captures into an empty directory. A machine whose memory is wanted stands still, and goes on doing so.
    pub(super) async fn capture(&self, what: Capture, into: &Path) -> EngineResult<()> {
        self.capture_as(what, into, None).await
    }

    pub(super) async fn capture_as(
        &self,
        what: Capture,
        into: &Path,
        forms: Option<Forms>,
    ) -> EngineResult<()> {
        if matches!(what, Capture::Suspended(_)) {
            return Err(EngineError::Invalid("the machine is there, not in a memory image".to_owned()));
        }
        step(CaptureStep::Ready, self.make_ready(&what)).await?;
        let disk = match what {
            Capture::Disk | Capture::Machine => Some(self.capture_disk(into).await?),
            Capture::Memory | Capture::Suspended(_) => None,
        };
        let machine = match what {
            Capture::Memory | Capture::Machine => Some(self.capture_memory(into, forms).await?),
            Capture::Disk | Capture::Suspended(_) => None,
        };
        finish(into, Manifest::new(machine, disk), what).await
    }

    /// Sees to it that the machine stands still, if it has to, and that its disk can be worked on.
    async fn make_ready(&self, what: &Capture) -> EngineResult<()> {
        let status = self.qmp.status().await.map_err(talk("look at machine"))?;
        if status.running && *what != Capture::Disk {
            return Err(EngineError::Invalid(
                "the memory of a machine that runs cannot be captured".to_owned(),
            ));
        }
        if status.status == "postmigrate" {
            // Its state was written already, and QEMU let go of its disk. It takes it again only to run.
            self.qmp.cont().await.map_err(talk("take disk again"))?;
            self.qmp.stop().await.map_err(talk("freeze machine"))?;
        }
        Ok(())
    }

    // ---- disk ---------------------------------------------------------------------------------------------------

    async fn capture_disk(&self, into: &Path) -> EngineResult<manifest::Disk> {
        let Some(record) = self.disks.record(&self.id)? else { return Err(EngineError::NotFound) };
        let directory = self.disks.path_of(&self.id);
        let mut chain = match self.top_layer().await? {
            Some(top) => Chain::below(&directory, top)?,
            None => Chain::none(),
        };
        if let Some(top) = chain.top() {
            if chain.layers.len() - record.image_layers.min(chain.layers.len()) >= OWN_LAYERS_MAX {
                chain = step(CaptureStep::Merge, self.merge(&record, &chain)).await?;
            }
            self.switch(top, chain.size_bytes).await?;
        }
        pass(CaptureStep::Link, || link_disk(&directory, &chain, into))?;
        Ok(disk_of(record, &chain))
    }

    /// The layer that the machine writes to, if it has a disk.
    pub(super) async fn top_layer(&self) -> EngineResult<Option<u32>> {
        #[derive(Deserialize)]
        struct Device {
            inserted: Option<Inserted>,
        }
        #[derive(Deserialize)]
        struct Inserted {
            #[serde(rename = "node-name")]
            node: String,
        }
        let devices: Vec<Device> =
            self.qmp.ask("query-block", json!({})).await.map_err(talk("look at disk"))?;
        Ok(devices.into_iter().find_map(|device| number_of_node(&device.inserted?.node)))
    }

    /// Has the machine write to a new layer from now on.
    async fn switch(&self, top: u32, size_bytes: u64) -> EngineResult<()> {
        let layer = pass(CaptureStep::Layer, || self.disks.add_layer(&self.id, top, size_bytes))?;
        let (number, set) = (layer.number, descriptor_set(layer.number));
        let switch = async {
            // What an attempt before this one may have left.
            ignore_refusal(self.qmp.blockdev_del(&node_name(number)).await)?;
            ignore_refusal(self.qmp.remove_fds(set).await)?;
            if let Some(write) = &layer.write {
                self.qmp.add_marked_fd(set, write, WRITE_MARK).await?;
            }
            self.qmp.add_marked_fd(set, &layer.read, READ_MARK).await?;
            self.qmp.blockdev_add(node(number, None, Access::Own)).await?;
            self.qmp.blockdev_snapshot(&node_name(top), &node_name(number)).await
        };
        step(CaptureStep::Switch, async { switch.await.map_err(talk("change layer of disk")) }).await?;
        step(CaptureStep::Release, async { self.release(top).await.map_err(talk("release layer of disk")) })
            .await
    }

    /// Takes back the descriptor through which a layer was written: the locks that were taken through it stay as long as
    /// there is a copy of it anywhere.
    async fn release(&self, number: u32) -> QmpResult<()> {
        #[derive(Deserialize)]
        struct Set {
            #[serde(rename = "fdset-id")]
            id: u32,
            fds: Vec<Descriptor>,
        }
        #[derive(Deserialize)]
        struct Descriptor {
            fd: i32,
            opaque: Option<String>,
        }
        let sets: Vec<Set> = self.qmp.ask("query-fdsets", json!({})).await?;
        let own = sets.into_iter().filter(|set| set.id == descriptor_set(number)).flat_map(|set| set.fds);
        for descriptor in own.filter(|descriptor| descriptor.opaque.as_deref() == Some(WRITE_MARK)) {
            let arguments = json!({ "fdset-id": descriptor_set(number), "fd": descriptor.fd });
            self.qmp.execute("remove-fd", arguments).await?;
        }
        Ok(())
    }

    /// Makes one layer of those above the image's: what they hold is copied into the top, which then stands on the image.
    /// Their files stay as they are, for whoever else has them.
    async fn merge(&self, record: &Record, chain: &Chain) -> EngineResult<Chain> {
        const JOB: &str = "merge";
        let Some(top) = chain.top() else { return Ok(chain.clone()) };
        let (image, own) = chain.layers.split_at(record.image_layers.min(chain.layers.len() - 1));
        let mut arguments = json!({ "job-id": JOB, "device": node_name(top), "auto-dismiss": false });
        if let (Some(base), Some(all)) = (image.last(), arguments.as_object_mut()) {
            all.insert("base-node".to_owned(), Value::from(node_name(*base)));
            all.insert("backing-file".to_owned(), Value::from(layer_name(*base)));
        }
        let merged = async {
            self.qmp.execute("block-stream", arguments).await?;
            let done = self.qmp.job_reaches(JOB, &["concluded"], MERGE_MAX).await;
            ignore_refusal(self.qmp.job_dismiss(JOB).await)?;
            done?;
            let gone = &own[..own.len() - 1];
            for number in gone.iter().rev() {
                ignore_refusal(self.qmp.blockdev_del(&node_name(*number)).await)?;
                ignore_refusal(self.qmp.remove_fds(descriptor_set(*number)).await)?;
            }
            Ok(gone)
        };
        let gone = merged.await.map_err(talk("merge layers of disk"))?;
        self.disks.remove_layers(&self.id, gone)?;
        Chain::below(&self.disks.path_of(&self.id), top)
    }

    // ---- memory -------------------------------------------------------------------------------------------------

    async fn capture_memory(&self, into: &Path, forms: Option<Forms>) -> EngineResult<manifest::Machine> {
        let blocks = memory_blocks(&self.qmp).await.map_err(talk("look at memory"))?;
        let no_ram = || EngineError::host("look at memory", io::Error::other("QEMU has no RAM of ours"));
        let (process, block) =
            (self.process, blocks.iter().find(|block| block.name == RAM).ok_or_else(no_ram)?);
        let (address, bytes) = (block.address, block.bytes);
        let ram = blocking("find memory", move || Ram::find(process, address, bytes)).await?;
        check_space(into, &ram)?;
        let host = |error: io::Error| failure("write memory", error);
        let state = create(into, STATE).map_err(host)?;
        let forms = forms.unwrap_or(if ram.is_shared() { FORMS_SHARED } else { FORMS_PRIVATE });
        let form = step(CaptureStep::State, self.write_state(&state, forms)).await?;
        let video_blocks = match form {
            Form::Devices => devices_memory(&blocks)?,
            Form::IgnoreShared | Form::MappedRam | Form::Stream => Vec::new(),
        };
        let (memory, video) = step(CaptureStep::Memory, async {
            let video = match video_blocks.is_empty() {
                true => None,
                false => Some((create(into, VIDEO).map_err(host)?, video_blocks.clone())),
            };
            let memory = if form.maps_memory() { Some(create(into, MEMORY).map_err(host)?) } else { None };
            blocking("write memory", move || {
                let video = video.map(|(file, blocks)| copy_video(process, &blocks, &file)).transpose()?;
                Ok((memory.map(|file| ram.copy_into(&file)).transpose()?, video))
            })
            .await
        })
        .await?;
        let state = blocking("read state", move || Sums::of(&state)).await?;
        let video_blocks =
            video_blocks.into_iter().map(|block| Block { name: block.name, bytes: block.bytes }).collect();
        let (hardware, devices, qemu) = (self.hardware.clone(), self.devices.clone(), self.qemu);
        Ok(manifest::Machine { qemu, hardware, devices, form, state, memory, video, video_blocks })
    }

    /// Has QEMU write its state in the first form that it knows.
    async fn write_state(&self, state: &File, forms: Forms) -> EngineResult<Form> {
        let mut last = None;
        for &form in forms {
            state.set_len(0).map_err(|error| failure("write state", error))?;
            match self.write_state_as(state, form).await {
                Ok(()) => return Ok(form),
                Err(error @ (QmpError::Refused { .. } | QmpError::Failed { .. })) => {
                    tracing::info!(sandbox = %self.id, ?form, %error, "state is not written in this form");
                    last = Some(error);
                }
                Err(error) => return Err(talk("write state")(error)),
            }
        }
        Err(last.map_or_else(|| EngineError::Unsupported("capturing memory".to_owned()), talk("write state")))
    }

    async fn write_state_as(&self, state: &File, form: Form) -> QmpResult<()> {
        ignore_refusal(self.qmp.remove_fds(STATE_SET).await)?;
        // It is to be open in the way in which QEMU opens what it writes.
        let own = write_only(state).map_err(QmpError::Connection)?;
        self.qmp.add_fd(STATE_SET, own).await?;
        let written = match form {
            Form::Devices => {
                let arguments = json!({ "filename": format!("/dev/fdset/{STATE_SET}"), "live": false });
                match self.qmp.execute_within(STATE_MAX, "xen-save-devices-state", arguments).await {
                    Ok(_) => add_configuration(state, &self.hardware.machine).map_err(QmpError::Connection),
                    Err(error) => Err(error),
                }
            }
            Form::IgnoreShared | Form::MappedRam | Form::Stream => self.migrate(form).await,
        };
        ignore_refusal(self.qmp.remove_fds(STATE_SET).await)?;
        written
    }

    async fn migrate(&self, form: Form) -> QmpResult<()> {
        set_form(&self.qmp, form).await?;
        self.qmp.set_migration_parameters(json!({ "max-bandwidth": BANDWIDTH })).await?;
        self.qmp.migrate(&format!("file:/dev/fdset/{STATE_SET}")).await?;
        let limit = if form.maps_memory() { STATE_MAX } else { WHOLE_STATE_MAX };
        let ended = self.qmp.migration_ends(limit).await;
        if let Err(QmpError::Timeout { .. }) = &ended {
            ignore_refusal(self.qmp.migrate_cancel().await)?;
        }
        ended
    }
}

/// Tells QEMU in which form it is to write or read state.
pub(super) async fn set_form(qmp: &Qmp, form: Form) -> QmpResult<()> {
    let wanted = match form {
        Form::IgnoreShared => Some(IGNORE_SHARED),
        Form::MappedRam => Some(MAPPED_RAM),
        Form::Devices | Form::Stream => None,
    };
    for capability in [IGNORE_SHARED, MAPPED_RAM] {
        let set = qmp.set_migration_capabilities(&[(capability, wanted == Some(capability))]).await;
        if wanted == Some(capability) { set? } else { ignore_refusal(set)? }
    }
    Ok(())
}

const IGNORE_SHARED: &str = "x-ignore-shared";
const MAPPED_RAM: &str = "mapped-ram";

/// Captures the disk of a sandbox that has no machine.
pub(super) async fn capture_stopped(disks: &Disks, id: &SandboxId, into: &Path) -> EngineResult<()> {
    let disk = capture_resting_disk(disks, id, into).await?;
    finish(into, Manifest::new(None, Some(disk)), Capture::Disk).await
}

/// Captures a sandbox that has no machine, but a memory image of it.
pub(super) async fn capture_suspended(
    disks: &Disks,
    id: &SandboxId,
    memory: PathBuf,
    into: &Path,
) -> EngineResult<()> {
    let from = memory.clone();
    // What is damaged is found here, and not by everybody who goes on from the snapshot.
    let image = run_blocking(move || Image::open(&from)).await?;
    let disk = capture_resting_disk(disks, id, into).await?;
    pass(CaptureStep::Memory, || {
        [STATE, MEMORY, VIDEO]
            .into_iter()
            .try_for_each(|name| if_there(link(&memory.join(name), &into.join(name))).map(drop))
    })
    .map_err(|error| failure("link memory", error))?;
    finish(into, Manifest::new(Some(image.machine), Some(disk)), Capture::Suspended(memory)).await
}

/// Freezes the disk of a sandbox that has no machine, and links it.
async fn capture_resting_disk(disks: &Disks, id: &SandboxId, into: &Path) -> EngineResult<manifest::Disk> {
    let Some(record) = disks.record(id)? else { return Err(EngineError::NotFound) };
    let directory = disks.path_of(id);
    let mut chain = Chain::read(&directory)?;
    if let Some(top) = chain.top() {
        if chain.layers.len() - record.image_layers.min(chain.layers.len()) >= OWN_LAYERS_MAX {
            let (merged, files) = (chain.clone(), directory.clone());
            let image_layers = record.image_layers;
            step(CaptureStep::Merge, async {
                run_blocking(move || image_tool::merge(&files, &merged, image_layers)).await
            })
            .await?;
            let before = chain.layers;
            chain = Chain::below(&directory, top)?;
            let gone: Vec<u32> = before.into_iter().filter(|number| !chain.layers.contains(number)).collect();
            disks.remove_layers(id, &gone)?;
        }
        pass(CaptureStep::Layer, || disks.add_layer(id, top, chain.size_bytes))?;
    }
    pass(CaptureStep::Link, || link_disk(&directory, &chain, into))?;
    Ok(disk_of(record, &chain))
}

fn disk_of(record: Record, chain: &Chain) -> manifest::Disk {
    let image_layers = record.image_layers.min(chain.layers.len());
    let command_line = record.command_line;
    manifest::Disk { image_layers, command_line, size_bytes: chain.size_bytes, digests: None }
}

/// Links frozen layers, and what starts them, into a snapshot.
fn link_disk(from: &Path, chain: &Chain, into: &Path) -> EngineResult<()> {
    let host = |error: io::Error| failure("link disk", error);
    for &number in &chain.layers {
        link(&from.join(layer_name(number)), &into.join(layer_name(number))).map_err(host)?;
    }
    for name in [KERNEL, INITRAMFS] {
        if_there(link(&from.join(name), &into.join(name))).map_err(host)?;
    }
    Ok(())
}

/// Writes the manifest and what vouches for the files.
async fn finish(into: &Path, manifest: Manifest, what: Capture) -> EngineResult<()> {
    let into = into.to_owned();
    pass(CaptureStep::Config, || manifest.write(&into)).map_err(|error| failure("write manifest", error))?;
    if manifest.machine.is_none() {
        return Ok(());
    }
    blocking("keep memory", move || {
        let files = image_files(&into)?;
        Trust::of(&files)?.note(&into)?;
        if what == Capture::Memory {
            // Its machine goes now, and a power cut must not take what is left of it.
            for file in files {
                file.sync_all()?;
            }
            fs_err::File::open(into.join(manifest::CONFIG))?.sync_all()?;
        }
        Ok(())
    })
    .await
}

/// The files of a memory image, in the order in which they are vouched for.
pub(super) fn image_files(directory: &Path) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    for name in [STATE, MEMORY, VIDEO] {
        files.extend(if_there(super::disk::open_read(&directory.join(name)))?);
    }
    Ok(files)
}

fn check_space(into: &Path, ram: &Ram) -> EngineResult<()> {
    let host = |error: io::Error| EngineError::host("look for disk space", error);
    let directory = fs_err::File::open(into).map_err(host)?;
    let needed = ram.bytes_used().map_err(host)?.saturating_add(SPARE_BYTES);
    match bytes_free(&directory).map_err(host)? {
        free if free < needed => Err(EngineError::Exhausted("disk space".to_owned())),
        _ => Ok(()),
    }
}

fn create(directory: &Path, name: &str) -> io::Result<File> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(FILE_MODE);
    Ok(fs_err::OpenOptions::from_options(options).open(directory.join(name))?.into_file())
}

fn write_only(file: &File) -> io::Result<File> {
    use std::os::fd::AsRawFd as _;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(fs_err::OpenOptions::new().write(true).open(path)?.into_file())
}

/// Puts a description of the machine at the beginning of a stream of devices, where other streams have it. A QEMU can be told
/// that there is none, but one that was told so dies of its next migration.
fn add_configuration(state: &File, machine: &str) -> io::Result<()> {
    /// Magic number and version.
    const HEADER_BYTES: usize = 8;
    /// What begins the description: a section of its own, the length of the machine type's name, then that.
    const CONFIGURATION: u8 = 7;
    let length = state.metadata()?.len();
    if length < HEADER_BYTES as u64 || length > DEVICES_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "QEMU wrote no state of devices"));
    }
    let mut stream = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    state.read_exact_at(&mut stream, 0)?;
    let mut configuration = vec![CONFIGURATION];
    let name_bytes = u32::try_from(machine.len()).map_err(io::Error::other)?;
    configuration.extend_from_slice(&name_bytes.to_be_bytes());
    configuration.extend_from_slice(machine.as_bytes());
    stream.splice(HEADER_BYTES..HEADER_BYTES, configuration);
    state.write_all_at(&stream, 0)
}

/// A block of memory as QEMU lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemoryBlock {
    /// Its name.
    pub(super) name: String,
    /// Its length.
    pub(super) bytes: u64,
    /// Where it is in QEMU.
    pub(super) address: u64,
    /// The guest can write to it.
    writable: bool,
}

impl MemoryBlock {
    /// Reads a line of the list: name, size of pages with its unit, place, bytes used, bytes, address, `rw` or `ro`.
    fn parse(line: &str) -> Option<Self> {
        let number = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok();
        let mut words = line.split_ascii_whitespace().rev();
        let writable = match words.next()? {
            "rw" => true,
            "ro" => false,
            _ => return None,
        };
        let address = number(words.next()?)?;
        let _whole = number(words.next()?)?;
        let bytes = number(words.next()?)?;
        let _place = number(words.next()?)?;
        let (_unit, _pages) = (words.next()?, words.next()?);
        let name: Vec<&str> = words.collect::<Vec<_>>().into_iter().rev().collect();
        (!name.is_empty()).then(|| Self { name: name.join(" "), bytes, address, writable })
    }
}

/// All blocks of memory.
pub(super) async fn memory_blocks(qmp: &Qmp) -> QmpResult<Vec<MemoryBlock>> {
    let text: String = qmp.ask("human-monitor-command", json!({ "command-line": "info ramblock" })).await?;
    Ok(text.lines().filter_map(MemoryBlock::parse).collect())
}

/// Memory that a stream of devices alone leaves out, besides the RAM.
fn devices_memory(blocks: &[MemoryBlock]) -> EngineResult<Vec<MemoryBlock>> {
    let found: Vec<_> = blocks.iter().filter(|block| block.writable && block.name != RAM).cloned().collect();
    match found.iter().map(|block| block.bytes).sum::<u64>() {
        bytes if bytes > VIDEO_BYTES_MAX => {
            Err(EngineError::Unsupported(format!("capturing {bytes} bytes of memory of devices")))
        }
        _ => Ok(found),
    }
}

fn copy_video(process: Pid, blocks: &[MemoryBlock], into: &File) -> io::Result<Sums> {
    let memory = fs_err::File::open(format!("/proc/{}/mem", process.as_raw_nonzero()))?.into_file();
    let mut offset = 0;
    for block in blocks {
        let mut bytes = vec![0; usize::try_from(block.bytes).map_err(io::Error::other)?];
        memory.read_exact_at(&mut bytes, block.address)?;
        into.write_all_at(&bytes, offset)?;
        offset += block.bytes;
    }
    Sums::of(into)
}

/// Puts memory of devices where a restored machine has it.
pub(super) fn put_video(
    process: Pid,
    named: &[Block],
    blocks: &[MemoryBlock],
    from: &File,
) -> io::Result<()> {
    let path = format!("/proc/{}/mem", process.as_raw_nonzero());
    let memory = fs_err::OpenOptions::new().write(true).open(path)?.into_file();
    let mut offset = 0;
    for block in named {
        let other = || io::Error::other("the machine has other memory of devices");
        let place = blocks.iter().find(|place| place.name == block.name && place.bytes == block.bytes);
        let place = place.filter(|place| place.writable && place.name != RAM).ok_or_else(other)?;
        let mut bytes = vec![0; usize::try_from(block.bytes).map_err(io::Error::other)?];
        from.read_exact_at(&mut bytes, offset)?;
        memory.write_all_at(&bytes, place.address)?;
        offset += block.bytes;
    }
    Ok(())
}

/// What QEMU refuses here does no harm.
pub(super) fn ignore_refusal(result: QmpResult<()>) -> QmpResult<()> {
    match result {
        Err(QmpError::Refused { .. }) => Ok(()),
        other => other,
    }
}

/// A conversation that failed while doing `what`.
pub(super) fn talk(what: &'static str) -> impl FnOnce(QmpError) -> EngineError {
    move |error| EngineError::host(what, error)
}

/// Does what takes its time on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> EngineResult<T> {
    run_blocking(move || act().map_err(|error| failure(what, error))).await
}

/// The same for what has errors of its own.
pub(super) async fn run_blocking<T: Send + 'static>(
    act: impl FnOnce() -> EngineResult<T> + Send + 'static,
) -> EngineResult<T> {
    match tokio::task::spawn_blocking(act).await {
        Ok(done) => done,
        Err(error) => Err(EngineError::host("wait for a thread", error)),
    }
}
