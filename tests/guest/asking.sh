# shellcheck shell=bash
# How the scripts of guests tell what they found, ask the server, and look at its sandboxes. Every check prints one line,
# which tests/guest.rs reads:
#   GUEST-CHECK pass NAME
#   GUEST-CHECK fail NAME
# Everything else that is printed is for whoever reads the console of a run that failed.
# Commands for the inside are not expanded here.
# shellcheck disable=SC2016

cgroups=/sys/fs/cgroup
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
        sleep 0.1
    done
}

# The server's key, if it wants one.
key=

# METHOD PATH [BODY]: leaves the reply's status in $status and its body in $reply.
request() {
    local body=${3-} response
    status='' reply=''
    # The outer braces take what the shell itself says where nobody listens.
    response=$({ {
        printf '%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n' "$1" "$2" >&9
        printf '%s' "${key:+Authorization: Bearer $key$'\r\n'}" >&9
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

session_is_made() {
    request POST /v1/sessions '{}'
    id=$(field id)
    same "$status $(field status)" '201 running' && [[ -n $id ]] && return
    echo "$reply"
    return 1
}

# The limits of sandhaus.yaml, in the kernel.
session_is_limited() {
    limits_are "$(cgroup_of "$id")" memory.max=$((96 << 20)) memory.swap.max=0 'cpu.max=50000 100000' pids.max=40
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
