#!/usr/bin/env bash
# What must hold on a host with cgroup version 2 and the kernel of Debian 12. Runs inside the guest, on its serial
# console; asking.sh says how results are told.
# Commands for the inside are not expanded here.
# shellcheck disable=SC2016
set -u
# shellcheck source=tests/guest/asking.sh
. /usr/bin/guest-asking

data=/var/lib/sandhaus

serve() {
    sandhaus serve >>/tmp/server.log 2>&1 &
    server=$!
    until_true healthy && return
    cat /tmp/server.log
    return 1
}

only_version_2() {
    same "$(grep -c ' cgroup ' /proc/mounts)" 0 && same "$(stat -f -c %t $cgroups)" 63677270
}

doctor() {
    sandhaus doctor >/tmp/doctor
    local code=$? line
    cat /tmp/doctor
    same $code 0 || return
    # What it tells about this kernel: the controllers of version 2, layers mapped without a copy but not yet passed by
    # descriptor to overlayfs, and disks of a limited size.
    for line in '^ok +cgroups +version 2 .*cpu.*memory.*pids' '^ok +overlayfs +id-mapped layers in the launcher' \
        '^ok +disk limit' '^ok +seccomp' '^ok +user namespaces'; do
        grep -Eq "$line" /tmp/doctor || { echo "no line is like $line"; return 1; }
    done
}

run_is_root_of_its_own() {
    same "$(sandhaus run -- /bin/sh -c 'id -u; cat /proc/self/cgroup; exit 3'; echo $?)" \
        $'0\n0::/\n3'
}

run_is_limited() {
    local line group result=0
    coproc RUN { sandhaus run -i --memory 64MiB --cpus 0.25 --pids 30 -- sh -c 'echo ready; read line; echo $line'; }
    # shellcheck disable=SC2153 # set by coproc
    local process=$RUN_PID
    read -r line <&"${RUN[0]-}"
    same "$line" ready || result=1
    group=$(cgroup_of)
    limits_are "$group" memory.max=$((64 << 20)) memory.swap.max=0 'cpu.max=25000 100000' pids.max=30 || result=1
    echo bye >&"${RUN[1]-}"
    read -r line <&"${RUN[0]-}"
    same "$line" bye || result=1
    wait "$process" || result=1
    return $result
}

# What sandboxes leave behind anywhere in the kernel or on the disk; empty if nothing.
leftovers() {
    cgroup_of
    # Processes of other pid namespaces than ours.
    stat -L -c %i /proc/[0-9]*/ns/pid 2>/dev/null | sort -u | grep -vx "$(stat -L -c %i /proc/self/ns/pid)"
    grep -vxFf /tmp/mounts /proc/mounts
    losetup -a
    # Names with a dot are the engine's own places, which stay.
    find $data/run $data/machines $data/disks -mindepth 1 ! -name '.*' 2>/dev/null
}

nothing_is_left() {
    until_true no_leftovers && return
    echo 'left behind:'
    leftovers
    return 1
}

no_leftovers() {
    [[ -z $(leftovers) ]]
}

server_is_killed_and_adopts() {
    local before
    before=$(cat "$(cgroup_of "$id")/cgroup.procs")
    kill -9 "$server"
    wait "$server" 2>/dev/null
    kill -0 "${before%%$'\n'*}" || { echo "the sandbox died with the server"; return 1; }
    serve || return
    session_gives 0 'kept /tmp\n' 'echo $marker $PWD' || return
    same "$(head -n1 "$(cgroup_of "$id")/cgroup.procs")" "${before%%$'\n'*}"
}

command_line_reaches_it() {
    same "$(sandhaus exec "$id" -- echo hello)" hello && sandhaus ps | grep -q "$id"
}

session_is_deleted() {
    request DELETE "/v1/sessions/$id"
    same "$status" 200
}

server_stops() {
    kill "$server"
    wait "$server"
    same $? 0
}

no_warnings() {
    # The kill is what the next server tells about.
    ! grep -E ' (WARN|ERROR) ' /tmp/server.log
}

cat /proc/mounts >/tmp/mounts
uname -a
check cgroup-version-2-only only_version_2
check doctor doctor
check run run_is_root_of_its_own
check run-limits run_is_limited
check run-leaves-nothing nothing_is_left
check serve serve
check create session_is_made
check exec session_gives 0 '1000\n0::/\n' 'id -u; cat /proc/self/cgroup'
check exec-keeps-state session_gives 0 '' 'cd /tmp; marker=kept'
check limits session_is_limited
check memory-bomb memory_bomb_is_stopped
check many-processes many_processes_are_stopped
check kill-and-adopt server_is_killed_and_adopts
check command-line command_line_reaches_it
check delete session_is_deleted
check stop server_stops
check leaves-nothing nothing_is_left
check log no_warnings
