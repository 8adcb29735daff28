#!/bin/sh
# Uses an export of a node through the kernel's NBD client, over two connections, and looks at what came of it; run by run-tests.sh.
#
# usage: nbd-client.sh FERRY
set -eu

export FERRY_HOME=/tmp/home FERRY_LOG=error
ferry=$1
device=/dev/nbd5
at=/tmp/at
failed() { echo "failed: $1" >&2; exit 1; }
# until COMMAND...: waits for it to succeed.
until_it() {
    for _ in $(seq 300); do
        if "$@" 2>/dev/null; then return; fi
        sleep 0.1
    done
    failed "this never came: $*"
}

"$ferry" pool create rbd
"$ferry" create a --size 128M
"$ferry" serve &
node=$!
until_it test -S "$FERRY_HOME/nbd.sock"
"$ferry" export add a --name vm >/dev/null
mkdir "$at"

nbd-client -unix "$FERRY_HOME/nbd.sock" -N vm -C 2 "$device" >/dev/null
until_it test -b "$device"
test "$(blockdev --getsize64 "$device")" = $((128 << 20)) || failed "another size"
"$ferry" export ls | grep -q "^vm .* pid .* pid " || { "$ferry" export ls; failed "not two connections"; }
mkfs.ext4 -q "$device"
mount "$device" "$at"
mkdir "$at/files"
for i in $(seq 20); do head -c $((i * 100000)) /dev/urandom >"$at/files/$i"; done
(cd "$at/files" && sha256sum -- * >/tmp/sums)
head -c 30000000 /dev/zero | tr '\0' x >"$at/large"
sync -f "$at"
full=$("$ferry" du a --format json)
rm "$at/large"
# What was removed is free once that is written.
sync -f "$at"
fstrim "$at"
umount "$at"
less=$("$ferry" du a --format json)
test "$less" != "$full" || failed "nothing was given back: $less"
fsck.ext4 -f -n "$device" >/dev/null || failed "the file system is damaged"
nbd-client -d "$device" >/dev/null
kill "$node"
wait "$node" || failed "the node did not end well"

# What is in the image, without the kernel's client.
"$ferry" export --no-progress a /tmp/raw
mount -o loop,ro /tmp/raw "$at"
(cd "$at/files" && sha256sum -c /tmp/sums >/dev/null) || failed "files differ"
umount "$at"
"$ferry" check >/dev/null || failed "the store is damaged"
echo "all is there"
