#!/bin/bash
# Makes images with stock `rbd` and writes every metadata object it left as a text file.
#
#   make-golden.sh DIR     DIR is replaced; needs a running cluster named by CEPH_CONF whose pools `rbd` and `ecdata`
#                          are empty (single-node.sh makes one), and python3 to turn hex dumps into lines
#
# One file per object, DIR/POOL/OBJECT.golden, or DIR/POOL/NAMESPACE/OBJECT.golden, lines in this order:
#   data HEX               the object's bytes, where it has any
#   xattr NAME HEX
#   omap HEXKEY HEXVALUE   in key order
# and DIR/expected/*.json, *.txt: what stock `rbd` says about the same state.
set -euo pipefail
OUT=${1:?a directory}
: "${CEPH_CONF:?the cluster configuration}"
WORK=$(mktemp -d)
HOLDER=
trap '[ -z "$HOLDER" ] || kill -KILL "$HOLDER" 2>/dev/null; rm -rf "$WORK"' EXIT

quiet() { "$@" >/dev/null 2>"$WORK/err" || { cat "$WORK/err" >&2; echo "failed: $*" >&2; exit 1; }; }
images() {
    quiet rbd create rbd/plain --size 10M
    quiet rbd create rbd/layering --size 1G --image-feature layering --object-size 64K
    quiet rbd create rbd/striped --size 64M --stripe-unit 65536 --stripe-count 4 --data-pool ecdata
    quiet rbd create rbd/odd --size 5000001B --order 20
    quiet rbd bench rbd/plain --io-type write --io-size 4K --io-threads 1 --io-total 16K --io-pattern seq
    quiet rbd image-meta set rbd/plain description 'a plain image'
    quiet rbd image-meta set rbd/plain conf_rbd_cache false
    quiet rbd lock add rbd/layering manual-cookie
    quiet rbd lock add rbd/odd one --shared shared-tag
    quiet rbd lock add rbd/odd two --shared shared-tag
}

snapshots() {
    quiet rbd create rbd/snapped --size 20M
    quiet rbd bench rbd/snapped --io-type write --io-size 4K --io-threads 1 --io-total 8K --io-pattern seq
    quiet rbd snap create rbd/snapped@first
    quiet rbd resize rbd/snapped --size 30M
    quiet rbd snap create rbd/snapped@protected
    quiet rbd snap protect rbd/snapped@protected
    quiet rbd snap create rbd/snapped@doomed
    quiet rbd bench rbd/snapped --io-type write --io-size 4K --io-threads 1 --io-total 8M --io-pattern seq
    quiet rbd snap create rbd/snapped@renamed-from
    quiet rbd snap rename rbd/snapped@renamed-from rbd/snapped@renamed-to
    quiet rbd snap limit set rbd/snapped --limit 10
}

clones() {
    quiet rbd clone rbd/snapped@protected rbd/clone-v1 --rbd-default-clone-format 1
    quiet rbd clone rbd/snapped@protected other/clone-v1-elsewhere --rbd-default-clone-format 1
    quiet rbd clone rbd/snapped@first rbd/clone-v2 --rbd-default-clone-format 2
    quiet rbd clone rbd/snapped@doomed other/clone-v2-elsewhere --rbd-default-clone-format 2
    quiet rbd clone rbd/snapped@doomed rbd/clone-striped --rbd-default-clone-format 2 --data-pool ecdata \
        --stripe-unit 8192 --stripe-count 3
    quiet rbd clone rbd/snapped@first rbd/flattened --rbd-default-clone-format 2
    quiet rbd snap create rbd/flattened@before
    quiet rbd flatten rbd/flattened
    quiet rbd resize rbd/clone-v2 --size 4M --allow-shrink
    # The parent's snapshot goes to the trash; its clones keep it alive.
    quiet rbd snap rm rbd/snapped@doomed
}

namespaces() {
    quiet rbd namespace create rbd/tenant
    quiet rbd namespace create rbd/empty
    quiet rbd create rbd/tenant/inside --size 8M
    quiet rbd clone rbd/snapped@first rbd/tenant/clone --rbd-default-clone-format 2
}

trash() {
    quiet rbd create rbd/trashed --size 8M
    quiet rbd trash mv rbd/trashed
    quiet rbd create rbd/deferred --size 8M
    quiet rbd snap create rbd/deferred@kept
    quiet rbd trash mv rbd/deferred --expires-at '2030-01-01 00:00:00'
}

migrations() {
    quiet rbd create rbd/moving --size 12M
    quiet rbd bench rbd/moving --io-type write --io-size 4K --io-threads 1 --io-total 8K --io-pattern seq
    quiet rbd snap create rbd/moving@s1
    quiet rbd resize rbd/moving --size 16M
    quiet rbd snap create rbd/moving@s2
    quiet rbd migration prepare rbd/moving other/moved
    quiet rbd create rbd/ready --size 8M
    quiet rbd migration prepare rbd/ready rbd/ready --data-pool ecdata
    quiet rbd migration execute rbd/ready
    quiet rbd clone rbd/snapped@first rbd/moving-clone --rbd-default-clone-format 2
    quiet rbd migration prepare rbd/moving-clone other/moved-clone --rbd-default-clone-format 2
    dd if=/dev/zero of="$WORK/source.raw" bs=1M count=4 status=none
    SPEC='{"type":"raw","stream":{"type":"file","file_path":"/nonexistent/source.raw"}}'
    quiet rbd migration prepare --import-only --source-spec "${SPEC/\/nonexistent/$WORK}" other/imported
}

groups() {
    quiet rbd group create rbd/group
    quiet rbd create rbd/member --size 8M
    quiet rbd group image add rbd/group rbd/member
    quiet rbd group snap create rbd/group@together
}

# A client that holds the exclusive lock while its objects are written down.
locked() {
    quiet rbd create rbd/locked --size 16M
    rbd bench rbd/locked --io-type write --io-size 4K --io-threads 1 --io-total 1T >/dev/null 2>&1 &
    HOLDER=$!
    for _ in $(seq 100); do
        rbd lock ls rbd/locked | grep -q auto && return
        sleep 0.1
    done
    echo "nobody took the lock" >&2
    exit 1
}

# One object as text: dump POOL NAMESPACE OBJECT
dump() {
    local r=(rados -p "$1" -N "$2") name
    "${r[@]}" get "$3" "$WORK/data"
    [ -s "$WORK/data" ] && { printf 'data '; od -An -v -tx1 "$WORK/data" | tr -d ' \n'; echo; }
    "${r[@]}" listxattr "$3" | sort | while read -r name; do
        printf 'xattr %s ' "$name"
        "${r[@]}" getxattr "$3" "$name" | od -An -v -tx1 | tr -d ' \n'
        echo
    done
    "${r[@]}" listomapvals "$3" >"$WORK/omap"
    python3 - "$WORK/omap" <<'PY'
# `rados listomapvals`: a key as text, or a hex dump of it; then "value (N bytes) :" and a hex dump; a blank line.
import re, sys
lines = open(sys.argv[1], "rb").read().decode("latin-1").split("\n")
at = 0
def dump(n):
    global at
    out, squeezed = b"", False
    while len(out) < n:
        line = lines[at]; at += 1
        if line == "*":
            squeezed = True
            continue
        offset, hexes = int(line[:8], 16), line[8:60].split("|")[0].split()
        if squeezed:
            out += out[-16:] * ((offset - len(out)) // 16)
            squeezed = False
        out += bytes.fromhex("".join(hexes))
    if lines[at:at + 1] and re.fullmatch("[0-9a-f]{8}", lines[at]): at += 1
    return out[:n]
entries = {}
def skip_blank():
    global at
    while at < len(lines) and lines[at] == "":
        at += 1
while skip_blank() or at < len(lines):
    m = re.fullmatch(r"key \((\d+) bytes\):", lines[at])
    at += 1
    key = dump(int(m[1])) if m else lines[at - 1].encode("latin-1")
    skip_blank()
    m = re.fullmatch(r"value \((\d+) bytes\) :", lines[at]); at += 1
    entries[key] = dump(int(m[1]))
for key in sorted(entries):
    print(f"omap {key.hex()} {entries[key].hex()}".rstrip())
PY
}

dump_pool() {
    local pool=$1 line namespace object dir
    rados -p "$pool" ls --all | while IFS= read -r line; do
        namespace=${line%%$'\t'*} object=${line#*$'\t'}
        case "$object" in rbd_data.*) continue ;; esac
        dir="$OUT/$pool${namespace:+/$namespace}"
        mkdir -p "$dir"
        dump "$pool" "$namespace" "$object" >"$dir/$object.golden" </dev/null
    done
}

expect() { # expect NAME rbd-arguments...
    local name=$1
    shift
    rbd "$@" >"$OUT/expected/$name" 2>/dev/null
}

expectations() {
    local spec name
    mkdir -p "$OUT/expected"
    ceph osd pool ls detail --format json | python3 -c 'import json,sys
print(json.dumps({p["pool_name"]: p["pool_id"] for p in json.load(sys.stdin)}))' >"$OUT/expected/pools.json"
    for spec in plain layering striped odd snapped clone-v1 clone-v2 clone-striped flattened tenant/inside tenant/clone \
        member locked; do
        name=${spec//\//.}
        expect "$name.info.json" info "rbd/$spec" --format json
        expect "$name.snaps.json" snap ls "rbd/$spec" --all --format json
        expect "$name.status.json" status "rbd/$spec" --format json
        expect "$name.locks.json" lock ls "rbd/$spec" --format json
    done
    for name in clone-v1-elsewhere clone-v2-elsewhere moved moved-clone imported; do
        expect "other.$name.info.json" info "other/$name" --format json
        expect "other.$name.snaps.json" snap ls "other/$name" --all --format json
        expect "other.$name.status.json" status "other/$name" --format json
    done
    expect ready.info.json info rbd/ready --format json
    expect ready.status.json status rbd/ready --format json
    expect plain.metadata.json image-meta ls rbd/plain --format json
    expect snapped.children.json children rbd/snapped --all --format json
    expect rbd.ls.json ls rbd --long --format json
    expect other.ls.json ls other --long --format json
    expect trash.json trash ls rbd --all --long --format json
    expect namespaces.json namespace ls rbd --format json
    expect plain.du.json du rbd/plain --format json
    expect snapped.du.json du rbd/snapped --format json
    rbd --version >"$OUT/expected/version.txt"
}

ceph osd pool create other 8 >/dev/null 2>&1
rbd pool init other
images
snapshots
clones
namespaces
trash
migrations
groups
locked
rm -rf "$OUT"
mkdir -p "$OUT"
expectations
# The holder stands still while its objects are written down; stopped, it also keeps its lock.
kill -STOP "$HOLDER"
dump_pool rbd
dump_pool other
