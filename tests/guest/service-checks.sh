#!/usr/bin/env bash
# What must hold of the server as a service of systemd, with the units as they are shipped. Runs inside the guest as a
# unit of its own; asking.sh says how results are told.
# Commands for the inside are not expanded here.
# shellcheck disable=SC2016
set -u
# shellcheck source=tests/guest/asking.sh
. /usr/bin/guest-asking

units=/etc/systemd/system
# How exposed systemd may find the units, in tenths; the server is root and makes namespaces.
exposure_max=90
keeper_exposure_max=60

units_are_well_formed() {
    same "$(SYSTEMD_COLORS=0 systemd-analyze --man=no verify $units/sandhaus.service $units/sandhaus-sandboxes.service 2>&1)" ''
}

units_are_confined() {
    systemd-analyze security --offline=true --no-pager --threshold=$exposure_max $units/sandhaus.service >/tmp/exposure &&
        systemd-analyze security --offline=true --no-pager --threshold=$keeper_exposure_max \
            $units/sandhaus-sandboxes.service >/tmp/exposure && return
    cat /tmp/exposure
    return 1
}

# UNIT PROPERTY
property() {
    systemctl show --property "$2" --value "$1"
}

main_process() {
    property sandhaus MainPID
}

# STATE UNIT...: all are in that state.
states_are() {
    local state=$1 unit
    shift
    for unit in "$@"; do
        same "$unit $(property "$unit" ActiveState)" "$unit $state" || { journalctl --no-pager -n 40; return 1; }
    done
}

service_starts() {
    # With a notification from the server, so nothing needs to be waited for.
    systemctl start sandhaus
    states_are active sandhaus sandhaus-sandboxes && healthy
}

# Where processes are: the server in its own cgroup, sandboxes in theirs, the keeper in a leaf.
cgroups_are_apart() {
    same "$(cat "/proc/$(main_process)/cgroup")" '0::/system.slice/sandhaus.service' || return
    same "$(cat "/proc/$(property sandhaus-sandboxes MainPID)/cgroup")" \
        '0::/system.slice/sandhaus-sandboxes.service/server' || return
    [[ $(cgroup_of "$id") == $cgroups/system.slice/sandhaus-sandboxes.service/sandhaus/* ]] && return
    echo "the sandbox is in $(cgroup_of "$id")"
    return 1
}

# The sandbox's first process as the host sees it.
first_process() {
    head -n1 "$(cgroup_of "$id")/cgroup.procs"
}

# The same shell with all it knew, in the same sandbox.
session_went_on() {
    session_gives 0 'kept /tmp\n' 'echo $marker $PWD' && same "$(first_process)" "$first" && session_is_limited
}

service_restarts() {
    local before
    before=$(main_process)
    systemctl restart sandhaus
    states_are active sandhaus sandhaus-sandboxes || return
    [[ $(main_process) != "$before" ]] || { echo 'the server is the same process'; return 1; }
    session_went_on
}

# systemd looks at all units and their cgroups anew.
service_is_reloaded() {
    systemctl daemon-reload
    session_went_on
}

# PROCESS: the service has another main process that is ready.
came_back() {
    [[ $(main_process) != "$1" && $(property sandhaus ActiveState) == active ]]
}

service_is_killed() {
    local before
    before=$(main_process)
    kill -9 "$before"
    until_true came_back "$before" || { journalctl --no-pager -n 40; return 1; }
    session_went_on
}

# A server that stands still gives no sign of life. The shipped patience is longer than a test should wait.
service_is_watched() {
    local before restarts
    mkdir -p /run/systemd/system/sandhaus.service.d
    printf '[Service]\nWatchdogSec=20\n' >/run/systemd/system/sandhaus.service.d/patience.conf
    systemctl daemon-reload
    systemctl restart sandhaus
    before=$(main_process)
    restarts=$(property sandhaus NRestarts)
    kill -STOP "$before"
    until_true came_back "$before" || { journalctl --no-pager -n 40; return 1; }
    (($(property sandhaus NRestarts) > restarts)) || { echo 'it was not restarted'; return 1; }
    journalctl --no-pager -u sandhaus | grep -q 'Watchdog timeout' || { echo 'it was not the watchdog'; return 1; }
    session_went_on
}

service_stops() {
    systemctl stop sandhaus
    states_are inactive sandhaus && states_are active sandhaus-sandboxes && kill -0 "$first"
}

service_starts_again() {
    systemctl start sandhaus
    session_went_on
}

all_sandboxes_end() {
    systemctl stop sandhaus-sandboxes
    states_are inactive sandhaus sandhaus-sandboxes || return
    same "$(others)" ''
}

service_knows_that_they_ended() {
    systemctl start sandhaus
    request GET "/v1/sessions/$id"
    same "$status $(field status)" '200 crashed' || { echo "$reply"; return 1; }
    session_is_made && session_gives 0 'fresh\n' 'echo fresh'
}

no_warnings() {
    ! journalctl --no-pager -u sandhaus -u sandhaus-sandboxes | grep -E ' (WARN|ERROR) '
}

# Everything in another pid namespace than ours.
others() {
    stat -L -c %i /proc/[0-9]*/ns/pid 2>/dev/null | sort -u | grep -vx "$(stat -L -c %i /proc/self/ns/pid)"
}

container() {
    podman --log-level error --cgroup-manager cgroupfs --storage-driver vfs --events-backend file "$@"
}

# With the options of the compose file, the image's entry point, and the key from a file. The network is the guest's: its
# ports are asked for below, and publishing them is the container engine's own business.
container_starts() {
    local options
    systemctl stop sandhaus-sandboxes
    mapfile -t options </usr/share/container-options
    printf '%s\n' "${options[@]}"
    mkdir -p /srv/data
    echo secret-of-the-container >/srv/key
    container run --detach --name one --network host "${options[@]}" \
        --volume /srv/data:/var/lib/sandhaus --volume /srv/key:/run/secrets/sandhaus_key:ro \
        --env SANDHAUS_LISTEN=0.0.0.0:8080 --env SANDHAUS_API_KEY_FILE=/run/secrets/sandhaus_key \
        --rootfs /srv/image /usr/local/lib/sandhaus/entrypoint sandhaus serve || return
    until_true healthy && return
    container logs one
    return 1
}

container_is_healthy() {
    container exec one /usr/local/lib/sandhaus/healthcheck
}

container_wants_its_key() {
    request GET /v1/sessions
    same "$status" 401 || return
    key=secret-of-the-container
    request GET /v1/sessions
    same "$status" 200
}

container_session_works() {
    session_is_made || { container logs one; return 1; }
    session_gives 0 '' 'cd /tmp; marker=kept' || return
    session_gives 0 'kept /tmp\n' 'echo $marker $PWD' || return
    session_gives 0 '1000\n0::/\n' 'id -u; cat /proc/self/cgroup' || return
    local group
    group=$(cgroup_of "$id")
    # Beneath the container's own cgroup, with the limits that are the default.
    [[ $group == "$cgroups$(sed -n 's,^0::\(.*\)/server$,\1,p' "/proc/$(container inspect --format '{{.State.Pid}}' one)/cgroup")"/* ]] ||
        { echo "the sandbox is in $group"; return 1; }
    limits_are "$group" memory.max=$((512 << 20)) 'cpu.max=100000 100000' pids.max=256
}

# Sandboxes are processes of the container, so they end with it; what is on the volume stays.
container_restarts() {
    container restart --time 15 one && until_true healthy || return
    request GET "/v1/sessions/$id"
    same "$status $(field status)" '200 crashed' && container_session_works
}

container_ends() {
    container rm --force --time 15 one >/dev/null
    same "$(others)" ''
}

check units-verify units_are_well_formed
check units-confined units_are_confined
check service-start service_starts
check service-create session_is_made
first=$(first_process)
check service-cgroups cgroups_are_apart
check service-exec session_gives 0 '' 'cd /tmp; marker=kept'
check service-limits session_is_limited
check service-memory-bomb memory_bomb_is_stopped
check service-many-processes many_processes_are_stopped
check service-restart service_restarts
check service-reload service_is_reloaded
check service-kill service_is_killed
check service-watchdog service_is_watched
check service-stop service_stops
check service-start-again service_starts_again
check service-log no_warnings
check service-end-all all_sandboxes_end
check service-after-end service_knows_that_they_ended
check container-start container_starts
check container-health container_is_healthy
check container-key container_wants_its_key
check container-session container_session_works
check container-restart container_restarts
check container-end container_ends
