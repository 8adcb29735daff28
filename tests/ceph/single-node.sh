#!/bin/bash
# A Ceph cluster on this machine's loopback for tests: one monitor, one manager, three OSDs on sparse files, with
# authentication. Debian packages are installed where they are missing (as root).
#
#   single-node.sh check       whether a cluster could be started; says why not, exit code 1
#   single-node.sh start DIR   makes DIR and starts a cluster in it: DIR/ceph.conf, keyring inside; pool `rbd` (replicated)
#                              and `ecdata` (erasure-coded 2+1, for data pools)
#   single-node.sh stop DIR    ends the cluster's processes and removes DIR
#   single-node.sh osd-kill DIR N     kills OSD N of a running cluster, as a power cut of its process would
#   single-node.sh osd-start DIR N    starts it again
set -euo pipefail

PACKAGES=(ceph-mon ceph-osd ceph-mgr ceph-common ceph-base librados2)
OSDS=3
# What a monitor must see free: at 5 % it ends, with exit code 28 and no word of it.
ROOM_PERCENT=6

say() { echo "single-node: $*" >&2; }

missing() {
    local package
    for package in "${PACKAGES[@]}"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || echo "$package"
    done
}

check() {
    local absent
    command -v dpkg-query >/dev/null || { say "not a Debian system"; return 1; }
    absent=$(missing | xargs)
    if [ -n "$absent" ] && [ "$(id -u)" != 0 ]; then
        say "missing packages, and only root can install them: $absent"
        return 1
    fi
    if [ -n "$absent" ] && ! apt-cache show ceph-mon >/dev/null 2>&1; then
        say "missing packages, and no package source knows them (apt-get update?): $absent"
        return 1
    fi
}

install_missing() {
    local absent
    absent=$(missing | xargs)
    [ -z "$absent" ] && return
    say "installing $absent"
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $absent >/dev/null
}

# Two neighbouring ports nobody listens on, below the range the kernel gives out by itself.
free_port() {
    local port _
    for _ in $(seq 100); do
        port=$((20000 + RANDOM % 10000 / 2 * 2))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && ! (exec 3<>"/dev/tcp/127.0.0.1/$((port + 1))") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    say "no free port"
    return 1
}

check_room() {
    local used
    used=$(df --output=pcent "$1" | tail -n 1 | tr -dc 0-9)
    if [ $((100 - used)) -lt "$ROOM_PERCENT" ]; then
        say "the file system of $1 has $((100 - used)) % free: a monitor needs $ROOM_PERCENT %"
        return 1
    fi
}

write_conf() {
    local port=$1
    cat > "$DIR/ceph.conf" <<CONF
[global]
fsid = $FSID
mon host = [v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$port]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $DIR/keyring
# Two copies on three OSDs of one machine.
osd pool default size = 2
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool delete = true
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = false
run dir = $DIR/run
log file = $DIR/log/\$name.log
admin socket = $DIR/run/\$name.asok
pid file = $DIR/run/\$name.pid
mon data = $DIR/mon
mgr data = $DIR/mgr
osd data = $DIR/osd\$id
# Small and quiet: sparse files, little memory, watches that end soon.
bluestore block size = 4294967296
osd memory target = 939524096
bluestore cache autotune = false
bluestore cache size = 67108864
osd op num shards = 2
osd client watch timeout = 10
# What released snapshots held goes at once, so that tests can count what is left.
osd snap trim sleep hdd = 0
# Snapshot ids and pools come from the monitor, which otherwise gathers changes for a second.
paxos propose interval = 0.02
paxos min wait = 0.01
[client]
keyring = $DIR/keyring
# Several clients in one process would fight for one name.
admin socket =
CONF
}

start_osd() {
    local id=$1 uuid=$2
    ceph-osd -i "$id" --mkfs --osd-uuid "$uuid" --keyring "$DIR/osd$id/keyring"
    ceph-osd -i "$id" --keyring "$DIR/osd$id/keyring"
}

start() {
    local id uuid secret port jobs=()
    check
    [ -e "$DIR" ] && { say "$DIR exists"; exit 1; }
    install_missing
    mkdir -p "$DIR"
    check_room "$DIR" || { rmdir "$DIR"; exit 28; }
    mkdir -p "$DIR"/{mon,mgr,run,log}
    DIR=$(cd "$DIR" && pwd)
    trap 'say "starting failed; logs were in $DIR/log"; tail -n 20 "$DIR"/log/* >&2 || true; stop' ERR
    FSID=$(cat /proc/sys/kernel/random/uuid)
    port=$(free_port)
    write_conf "$port"
    export CEPH_CONF="$DIR/ceph.conf" CEPH_ARGS=
    {
        ceph-authtool --create-keyring "$DIR/keyring" --gen-key -n mon. --cap mon 'allow *'
        ceph-authtool "$DIR/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
        ceph-authtool "$DIR/keyring" --gen-key -n mgr.x --cap mon 'allow profile mgr' --cap osd 'allow *'
        monmaptool --create --fsid "$FSID" --addv a "[v2:127.0.0.1:$((port + 1)),v1:127.0.0.1:$port]" "$DIR/monmap"
        ceph-mon --mkfs -i a --monmap "$DIR/monmap" --keyring "$DIR/keyring"
        ceph-mon -i a
        ceph-mgr -i x
        for ((id = 0; id < OSDS; id++)); do
            mkdir -p "$DIR/osd$id"
            uuid=$(cat /proc/sys/kernel/random/uuid)
            secret=$(ceph-authtool --gen-print-key)
            echo "{\"cephx_secret\":\"$secret\"}" | ceph osd new "$uuid" -i -
            ceph-authtool --create-keyring "$DIR/osd$id/keyring" -n "osd.$id" --add-key "$secret"
            start_osd "$id" "$uuid" &
            jobs+=($!)
        done
        for id in "${jobs[@]}"; do wait "$id"; done
        ceph osd pool create rbd 8
        ceph osd erasure-code-profile set k2m1 k=2 m=1 crush-failure-domain=osd
        ceph osd pool create ecdata 8 8 erasure k2m1
        ceph osd pool set ecdata allow_ec_overwrites true
        ceph osd pool application enable ecdata rbd
        rbd pool init rbd
    } >"$DIR/log/start.log" 2>&1
    trap - ERR
    say "ready: $DIR/ceph.conf"
}

# Kills the daemon of a pid file.
kill_daemon() {
    local pid
    [ -e "$1" ] || return 1
    pid=$(cat "$1")
    # Only a process that was started on this directory's configuration; a number may have been used again.
    grep -qz "$DIR/ceph.conf" "/proc/$pid/environ" 2>/dev/null && kill -KILL "$pid" 2>/dev/null
}

stop() {
    local file _
    DIR=$(cd "$DIR" 2>/dev/null && pwd) || return 0
    for file in "$DIR"/run/*.pid; do
        kill_daemon "$file" || true
    done
    for _ in $(seq 50); do
        rm -rf "$DIR" 2>/dev/null && return
        sleep 0.1
    done
}

case "${1:-}" in
    check) check ;;
    start | stop)
        DIR=${2:?a directory}
        "$1"
        ;;
    osd-kill)
        DIR=$(cd "${2:?a directory}" && pwd)
        kill_daemon "$DIR/run/osd.${3:?a number}.pid"
        ;;
    osd-start)
        DIR=$(cd "${2:?a directory}" && pwd)
        export CEPH_CONF="$DIR/ceph.conf" CEPH_ARGS=
        ceph-osd -i "${3:?a number}" --keyring "$DIR/osd$3/keyring" >>"$DIR/log/start.log" 2>&1
        ;;
    *)
        sed -n '2,11p' "$0"
        exit 2
        ;;
esac
