//! Linux: start-up as PID 1, starting and reaping children, terminals, process trees, files.
//!
//! `unsafe` lives here and nowhere else: in [`spawn`] (the moment between clone and exec), [`succession`], [`signals`] and [`identity`].

mod changes;
mod channel;
mod children;
mod disks;
mod first;
mod heap;
mod identity;
mod init;
mod initramfs;
mod listening;
mod machine;
mod modes;
mod network;
mod places;
pub(crate) mod remote_files;
mod rotating;

mod signals;
mod sockets;
mod spawn;
mod succession;
mod terminal;
mod tree;
mod uevents;
mod uploads;
mod usage;
mod watches;

pub(crate) use changes::{NotMoved, Removal, make_folder, make_link, move_file, remove, set_mode, set_owner};
pub(crate) use channel::Channel;
pub(crate) use children::{Child, Children, Ended, Ending};
pub(crate) use first::{begin_machine, is_first_process, say};
pub(crate) use heap::return_memory;
pub(crate) use identity::{enter_workload_thread, own_ids};
pub(crate) use init::{
    Standing, prepare_by_hand, prepare_guest, prepare_heir, take_descriptor, take_inherited,
};
pub(crate) use listening::listening_ports;
pub(crate) use machine::{
    ask_systemd_for_power_off, bare_command, flush_disks, freeze_root, grow_root, seed_random, set_clock,
    set_host_name, sever_connections, switch_off, thaw_root,
};
pub(crate) use modes::set_terminal_modes;
pub(crate) use network::configure_network;
pub(crate) use places::{Entry, EntryKind, Place, open_directory, open_regular_below};
pub(crate) use rotating::{Keep, RotatingFile};
pub(crate) use signals::{
    Interest, Signals, signal_group, signal_pids, stop_with_children, terminate_everything,
};
pub(crate) use sockets::{
    connect_local, listen_in_folder, listen_local, listen_tcp, listen_tcp_as, remove_socket,
};
pub(crate) use spawn::{Command, Session, SpawnError, open_files};
pub(crate) use succession::{
    ELF_HEADER_BYTES, become_program, close_numbers, duplicate, executable_file, foreign_program,
    has_room_for_descriptors, has_unread, hide, memory_file, number, own_build, own_program, seal_executable,
};
pub(crate) use terminal::{
    Script, Terminal, discard, input_pipe, output_pipe, random_hex, script_pipe, second_reader, second_writer,
};
pub(crate) use tree::{Birth, Family};
pub(crate) use uploads::Upload;
pub(crate) use usage::{Gauge, Scope, space};
pub(crate) use watches::{Extent, Told, Watches};
