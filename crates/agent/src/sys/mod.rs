//! The seam to the operating system: everything above it is shared by all guests, everything below is one folder per
//! system exporting the same names. This is the only file that asks which system it is built for.

#[cfg(windows)]
compile_error!("the agent has no Windows side in this build");

#[cfg(unix)]
mod linux;

#[cfg(unix)]
pub(crate) use linux::*;
