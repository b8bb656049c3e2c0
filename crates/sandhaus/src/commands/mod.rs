//! One file per command, each a plain function from its arguments to an exit status.

pub(crate) mod change;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod console;
pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod pool;
pub(crate) mod ps;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod screenshot;
pub(crate) mod security;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod stop;
pub(crate) mod version;
pub(crate) mod vm_image;
pub(crate) mod workspace;
