#!/usr/bin/env bash
# What must hold on a host with cgroup version 2 and the kernel of Debian 12. Runs inside the guest, on its serial
# console; every check prints one line, which tests/guest.rs reads:
#   GUEST-CHECK pass NAME
#   GUEST-CHECK fail NAME
# Everything else that is printed is for whoever reads the console of a run that failed.
# Commands for the inside are not expanded here.
# shellcheck disable=SC2016
set -u

cgroups=/sys/fs/cgroup
data=/var/lib/sandhaus
# The limits of sandhaus.yaml.
memory_max=$((96 << 20))
# Tenths of a second that anything may take to come about; the processor is emulated and shared.
patience=600

check() {
    local name=$1
    shift
    if "$@"; then echo "GUEST-CHECK pass $name"; else echo "GUEST-CHECK fail $name"; fi
}

same() {
    [[ $1 == "$2" ]] && return
    printf 'have %q, want %q\n' "$1" "$2"
    return 1
}

# Waits until a command succeeds.
until_true() {
    local left=$patience
    until "$@"; do
        ((left-- > 0)) || return 1
        usleep 100000
    done
}

# METHOD PATH [BODY]: leaves the reply's status in $status and its body in $reply.
request() {
    local body=${3-} response
    status='' reply=''
    # The outer braces take what the shell itself says where nobody listens.
    response=$({ {
        printf '%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n' "$1" "$2" >&9
        printf 'Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' "${#body}" "$body" >&9
        cat <&9
    } 9<>/dev/tcp/127.0.0.1/8080; } 2>/dev/null) || return
    status=${response#* }
    status=${status%% *}
    reply=${response#*$'\r\n\r\n'}
}

# A field of the JSON in $reply, if its value has no quotes in it.
field() {
    sed -n "s/.*\"$1\":\"\{0,1\}\([^\",}]*\).*/\1/p" <<<"$reply"
}

# Runs a command in the session, which may have no double quotes in it; true if it ended with this code and output.
session_gives() {
    local code=$1 output=$2 command=$3
    request POST "/v1/sessions/$id/exec" "{\"cmd\":\"$command\"}"
    same "$status $(field exit_code) $(field output)" "200 $code $output" && return
    echo "$reply"
    return 1
}

healthy() {
    request GET /healthz
    [[ $status == 200 ]]
}

serve() {
    sandhaus serve >>/tmp/server.log 2>&1 &
    server=$!
    until_true healthy && return
    cat /tmp/server.log
    return 1
}

# The cgroup of the sandbox with id $1, or of the only one there is.
cgroup_of() {
    find $cgroups -mindepth 1 -type d -path '*/sandhaus/*' -name "${1-*}.*" | head -n1
}

limits_are() {
    local group=$1 file wanted
    shift
    echo "limits in $group"
    for wanted in "$@"; do
        file=${wanted%%=*}
        same "$file=$(cat "$group/$file")" "$wanted" || return
    done
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

session_is_made() {
    request POST /v1/sessions '{}'
    id=$(field id)
    same "$status $(field status)" '201 running' && [[ -n $id ]] && return
    echo "$reply"
    return 1
}

session_is_limited() {
    limits_are "$(cgroup_of "$id")" memory.max=$memory_max memory.swap.max=0 'cpu.max=50000 100000' pids.max=40
}

memory_bomb_is_stopped() {
    # It ends by SIGKILL, and the kernel has counted it.
    session_gives 137 '' 'bash -c '\''x=x; while :; do x=$x$x; done'\'' 2>/dev/null' || return
    local kills
    kills=$(sed -n 's/^oom_kill //p' "$(cgroup_of "$id")/memory.events")
    ((kills >= 1)) || { echo "oom_kill is $kills"; return 1; }
    session_gives 0 'alive\n' 'echo alive'
}

many_processes_are_stopped() {
    # More than there may be; the small shell gives up at once where the large one tries again for long.
    request POST "/v1/sessions/$id/exec" '{"cmd":"busybox sh -c '\''while sleep 1000 & do :; done'\'' 2>/dev/null"}'
    local group stopped
    group=$(cgroup_of "$id")
    stopped=$(sed -n 's/^max //p' "$group/pids.events")
    ((stopped >= 1)) || { echo "pids.events says max $stopped"; echo "$reply"; return 1; }
    session_gives 0 'alive\n' 'echo alive' || return
    session_gives 0 '' 'kill -9 -1' || return
    until_true has_room "$group"
}

has_room() {
    (($(cat "$1/pids.current") < 20))
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
