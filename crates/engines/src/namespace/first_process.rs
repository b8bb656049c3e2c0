//! Which process of a cgroup is the first of its machine.

use rustix::process::Pid;

use crate::machine::read_process;

/// Whether a process is the first of a process namespace below ours and runs the agent. Only the launcher makes such
/// processes, and until they execute the agent they carry the launcher's own arguments.
pub(super) fn is_agent(pid: Pid) -> bool {
    let status = read_process(pid, "status");
    let status = String::from_utf8_lossy(&status);
    let Some(numbers) = status.lines().find_map(|line| line.strip_prefix("NSpid:")) else { return false };
    let mut numbers = numbers.split_whitespace().rev();
    let first = numbers.next() == Some("1") && numbers.next().is_some();
    first && read_process(pid, "cmdline").starts_with(super::child::AGENT_NAME.to_bytes_with_nul())
}
