//! What the engine and its launcher say to each other: one JSON document per packet, descriptors beside it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use sandhaus_sandbox::types::{Access, Seccomp, SecurityProfile};
use serde::{Deserialize, Serialize};

/// Largest packet in bytes: bounds paths, layers and mounts of one machine together.
pub(super) const PACKET_BYTES_MAX: usize = 128 * 1024;

/// Most descriptors in one packet; the kernel's own limit is 253.
pub(super) const DESCRIPTORS_MAX: usize = 200;

/// Asks for one machine. Its descriptors follow [`LaunchRequest::descriptors`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LaunchRequest {
    /// Names the request in the reply.
    pub(super) tag: u64,
    /// First id outside of the machine's range of [`super::disk::IDS_PER_SANDBOX`].
    pub(super) base: u32,
    /// The workload's user inside.
    pub(super) workload: u32,
    pub(super) security: SecurityProfile,
    pub(super) seccomp: Seccomp,
    pub(super) readonly_root: bool,
    /// Where the image says that its user is at home.
    pub(super) home: Option<PathBuf>,
    /// The machine's memory limit; zero: none.
    pub(super) memory_bytes: u64,
    pub(super) hostname: String,
    /// Where it is born.
    pub(super) network: LaunchNetwork,
    /// `/etc/resolv.conf`.
    pub(super) resolv_conf: String,
    /// Read-only layers, top first.
    pub(super) layers: Vec<PathBuf>,
    /// How the layers' ids become the machine's.
    pub(super) mapping: LayerMapping,
    pub(super) disk: DiskPlace,
    pub(super) binds: Vec<LaunchBind>,
    pub(super) mounts: Vec<LaunchMount>,
    /// A cgroup of the unified hierarchy to be born in is among the descriptors.
    pub(super) unified: bool,
    /// A mount to show at `/workspace` in place of the disk's own is among the descriptors.
    pub(super) workspace: bool,
}

impl LaunchRequest {
    /// Takes the request's descriptors apart: boot document, listening socket, agent, network, its `/sys`, workspace,
    /// then the cgroups.
    pub(super) fn descriptors(&self, descriptors: Vec<OwnedFd>) -> io::Result<LaunchDescriptors> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or(io::Error::from(io::ErrorKind::InvalidData));
        let (boot, listener, agent) = (next()?, next()?, next()?);
        let (network, sys) = match self.network {
            LaunchNetwork::Host => (None, None),
            LaunchNetwork::Apart => (Some(next()?), None),
            LaunchNetwork::ApartWithSys => (Some(next()?), Some(next()?)),
        };
        let workspace = if self.workspace { Some(next()?) } else { None };
        let unified = if self.unified { Some(next()?) } else { None };
        let tasks = descriptors.collect();
        Ok(LaunchDescriptors { boot, listener, agent, network, sys, workspace, unified, tasks })
    }
}

/// The descriptors of a [`LaunchRequest`], in the order they are sent.
#[derive(Debug)]
pub(super) struct LaunchDescriptors {
    /// The boot document, ready to be read.
    pub(super) boot: OwnedFd,
    /// The agent's listening socket.
    pub(super) listener: OwnedFd,
    /// The agent's executable.
    pub(super) agent: OwnedFd,
    /// The network namespace.
    pub(super) network: Option<OwnedFd>,
    /// `/sys` of that namespace, attached nowhere.
    pub(super) sys: Option<OwnedFd>,
    /// The workspace, attached nowhere, with its ids as they lie on disk.
    pub(super) workspace: Option<OwnedFd>,
    /// The cgroup in the unified hierarchy.
    pub(super) unified: Option<OwnedFd>,
    /// `tasks` of the cgroups in the hierarchies of version 1, open for writing.
    pub(super) tasks: Vec<OwnedFd>,
}

impl LaunchDescriptors {
    /// All of them in order.
    pub(super) fn all(&self) -> Vec<BorrowedFd<'_>> {
        let mut all = vec![self.boot.as_fd(), self.listener.as_fd(), self.agent.as_fd()];
        all.extend(self.network.as_ref().map(AsFd::as_fd));
        all.extend(self.sys.as_ref().map(AsFd::as_fd));
        all.extend(self.workspace.as_ref().map(AsFd::as_fd));
        all.extend(self.unified.as_ref().map(AsFd::as_fd));
        all.extend(self.tasks.iter().map(AsFd::as_fd));
        all
    }
}

/// The network that a machine is born in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LaunchNetwork {
    /// The host's own.
    Host,
    /// A namespace that is among the descriptors.
    Apart,
    /// The same, with its `/sys` among the descriptors.
    ApartWithSys,
}

/// How ids of layers become those of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum LayerMapping {
    /// By mounts that map ids and are attached nowhere (Linux 6.15).
    Detached,
    /// By mounts that map ids, attached for a moment in the launcher's own mount namespace (Linux 5.19).
    Attached,
    /// Not at all: the layers are copies that carry the machine's ids already.
    Copied,
}

/// Where a machine's writable files lie.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum DiskPlace {
    /// In a directory.
    Directory(PathBuf),
    /// In an ext4 file system within a file.
    Image(PathBuf),
}

/// A part of the host shown read-only as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LaunchBind {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
}

/// A directory of the host shown with its owner as the machine's user.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LaunchMount {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) access: Access,
}

/// The launcher's answer. With success comes a descriptor of the machine's first process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LaunchReply {
    pub(super) tag: u64,
    pub(super) outcome: Result<(), LaunchFailure>,
}

/// Where and why a start failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{area} step {step}{}: {}", subject.as_deref().map(|subject| format!(" ({subject})")).unwrap_or_default(),
    io::Error::from_raw_os_error(*errno))]
pub(super) struct LaunchFailure {
    /// The sequence.
    pub(super) area: String,
    /// Its step.
    pub(super) step: String,
    /// What the kernel said.
    pub(super) errno: i32,
    /// What it was about, safe to show.
    pub(super) subject: Option<String>,
}

/// Sends one packet with descriptors.
pub(super) fn send(
    socket: impl AsFd,
    packet: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::ArgumentListTooLong.into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(packet)], &mut ancillary, flags | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet with its descriptors into `buffer`. No bytes means that the other side is gone.
pub(super) fn receive(
    socket: impl AsFd,
    buffer: &mut [u8],
    flags: RecvFlags,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        flags | RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}
