#!/bin/sh
# Kills the process that serves a device under a mounted ext4, so many times, and looks at what was synced; run by run-tests.sh.
#
# usage: kills.sh FERRY ROUNDS [OPTION of device map]
set -eu

export FERRY_HOME=/tmp/home FERRY_LOG=error
ferry=$1
rounds=$2
shift 2
at=/tmp/at
failed() { echo "failed: $1" >&2; exit 1; }
same() { (cd "$at" && sha256sum -c /tmp/sums >/tmp/checked); }

mkdir "$at"
"$ferry" pool create rbd
"$ferry" create a --size 512M
began=$(date +%s)
for round in $(seq "$rounds"); do
    device=$("$ferry" device map a "$@")
    if test "$round" = 1; then mkfs.ext4 -q "$device"; fi
    mount "$device" "$at"
    test "$round" = 1 || same || failed "round $round: files differ"
    for i in 1 2 3; do
        dd if=/dev/urandom of="$at/$round-$i" bs=1k count=$((50 + round * 7 % 90)) conv=fsync 2>/dev/null
    done
    sync -f "$at"
    (cd "$at" && sha256sum "$round-1" "$round-2" "$round-3" >>/tmp/sums)
    # Under way when the process dies.
    (
        dd if=/dev/zero of="$at/unsynced" bs=64k count=400
        rm -f "$at/unsynced"
        dd if=/dev/zero of="$at/unsynced-too" bs=64k count=400 conv=fsync
    ) 2>/dev/null &
    writer=$!
    sleep "0.$((round * 37 % 80 + 10))"
    kill -9 "$(cat "$FERRY_HOME/store/owner")"
    wait "$writer" || :
    umount "$at" 2>/dev/null || { sleep 1; umount "$at"; }
done
device=$("$ferry" device map a "$@")
mount "$device" "$at"
same || failed "files differ at the end"
umount "$at"
fsck.ext4 -f -n "$device" >/dev/null || failed "the file system is damaged"
"$ferry" device unmap a
"$ferry" check >/dev/null || failed "the store is damaged"
echo "$rounds rounds on $device, $(wc -l </tmp/checked) files there, $(($(date +%s) - began)) s"
