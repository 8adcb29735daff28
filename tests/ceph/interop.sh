#!/bin/bash
# ferry and stock `rbd` on the same images of a real cluster: what one makes, the other reads, changes and hands back.
#
#   interop.sh FERRY [POOL]   the binary, and the pool to work in (`rbd`); needs a running cluster named by CEPH_CONF with that pool and
#                             `ecdata` (single-node.sh makes one)
#
# Prints a line per fact and ends with exit code 1 if one does not hold.
set -uo pipefail
FERRY=${1:?the ferry binary}
POOL=${2:-rbd}
: "${CEPH_CONF:?the cluster configuration}"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
P=interop$$
FAILED=0

ferry() { timeout 60 "$FERRY" -c "$CEPH_CONF" "$@" 2>>"$WORK/err"; }
rbd() { command timeout 60 rbd "$@" 2>>"$WORK/err"; }

# fact NAME command...: the command must succeed
fact() {
    local name=$1
    shift
    : >"$WORK/err"
    if "$@" >"$WORK/out" 2>&1; then
        echo "    ok  $name"
    else
        echo "FAILED  $name"
        sed 's/^/        /' "$WORK/out" "$WORK/err" | grep -v '% complete' | head -n 12
        FAILED=1
    fi
}

random() { head -c "$1" /dev/urandom; }
# Bytes with holes: 1 MiB of data, 5 MiB of nothing, 300000 bytes of data, to 12 MiB.
sparse() {
    random $((1 << 20)) >"$WORK/$1"
    truncate -s 6M "$WORK/$1"
    random 300000 >>"$WORK/$1"
    truncate -s 12M "$WORK/$1"
}
same() { cmp "$WORK/$1" "$WORK/$2"; }
# Fields that both must say alike.
infos() {
    diff <("$1" info "$2" --format json | python3 -m json.tool --sort-keys) \
        <("$3" info "$2" --format json | python3 -m json.tool --sort-keys)
}
check_map() { [ -z "$(rbd info "$1" | grep -E 'flags: .*invalid')" ] && rbd object-map check "$1"; }

sparse a; sparse b

ferry_makes() {
    ferry import "$WORK/a" "$POOL/$P.f" && rbd export "$POOL/$P.f" "$WORK/out.a" && same a out.a
}
ferry_reads() {
    rbd import "$WORK/b" "$POOL/$P.r" && ferry export "$POOL/$P.r" "$WORK/out.b" && same b out.b
}
snapshots() {
    ferry snap create "$POOL/$P.r@from-ferry" &&
        rbd bench "$POOL/$P.r" --io-type write --io-size 4K --io-total 1M --io-pattern rand &&
        rbd snap create "$POOL/$P.r@from-rbd" &&
        ferry export "$POOL/$P.r@from-ferry" "$WORK/out.s" && same b out.s &&
        rbd export "$POOL/$P.r@from-ferry" "$WORK/out.s2" && same b out.s2 &&
        rbd export "$POOL/$P.r" "$WORK/r.head" && ferry export "$POOL/$P.r" "$WORK/r.head2" && same r.head r.head2
}
snapshots_listed() { diff <(ferry snap ls "$POOL/$P.r") <(rbd snap ls "$POOL/$P.r"); }
# What changed is among what ferry names, and that among what rbd names (which also counts blocks rewritten as they were).
diffs() {
    rbd export "$POOL/$P.r@from-ferry" "$WORK/d.1" && rbd export "$POOL/$P.r@from-rbd" "$WORK/d.2" &&
        ferry diff --from-snap from-ferry "$POOL/$P.r@from-rbd" --format json >"$WORK/d.ferry" &&
        rbd diff --from-snap from-ferry "$POOL/$P.r@from-rbd" --format json >"$WORK/d.rbd" &&
        python3 - "$WORK" <<'PY'
import json, sys
work = sys.argv[1]
def blocks(name):
    ranges = json.load(open(f"{work}/{name}"))
    return {b for r in ranges for b in range(r["offset"] // 4096, (r["offset"] + r["length"] + 4095) // 4096)}
one, two = (open(f"{work}/d.{n}", "rb").read() for n in "12")
changed = {b for b in range(len(one) // 4096) if one[b * 4096:][:4096] != two[b * 4096:][:4096]}
ferry, rbd = blocks("d.ferry"), blocks("d.rbd")
print(f"missed by ferry: {sorted(changed - ferry)[:9]}, named by ferry alone: {sorted(ferry - rbd)[:9]}")
sys.exit(not changed <= ferry <= rbd)
PY
}
usage() {
    diff <(ferry du "$POOL/$P.r" --format json | python3 -m json.tool) <(rbd du "$POOL/$P.r" --format json | python3 -m json.tool)
}
rollback() {
    ferry snap rollback "$POOL/$P.r@from-ferry" && rbd export "$POOL/$P.r" "$WORK/out.rb" && same b out.rb
}
resizes() {
    ferry resize "$POOL/$P.r" --size 20M && rbd resize "$POOL/$P.r" --size 8M --allow-shrink &&
        ferry export "$POOL/$P.r" "$WORK/out.8" && cmp -n $((8 << 20)) "$WORK/b" "$WORK/out.8" &&
        rbd export "$POOL/$P.r" "$WORK/out.8r" && same out.8 out.8r
}
ferry_clones() {
    ferry clone "$POOL/$P.r@from-ferry" "$POOL/$P.cf" --rbd-default-clone-format 2 &&
        rbd export "$POOL/$P.cf" "$WORK/out.cf" && same b out.cf &&
        rbd children "$POOL/$P.r@from-ferry" | grep -q "$P.cf"
}
rbd_clones() {
    rbd clone "$POOL/$P.r@from-ferry" "$POOL/$P.cr" --rbd-default-clone-format 2 &&
        ferry export "$POOL/$P.cr" "$WORK/out.cr" && same b out.cr &&
        ferry children "$POOL/$P.r@from-ferry" | grep -q "$P.cr"
}
clone_written() {
    rbd bench "$POOL/$P.cf" --io-type write --io-size 4K --io-total 256K --io-pattern rand &&
        rbd export "$POOL/$P.cf" "$WORK/cf.1" && ferry export "$POOL/$P.cf" "$WORK/cf.2" && same cf.1 cf.2
}
# What `info` says of an image but for what no two images have alike.
shape() {
    "$1" info "$2" --format json | python3 -c '
import json, sys
info = json.load(sys.stdin)
own = ("name", "id", "block_name_prefix", "create_timestamp", "access_timestamp", "modify_timestamp")
print(json.dumps({k: v for k, v in info.items() if k not in own}, sort_keys=True, indent=1))'
}
# A clone with two snapshots, copied by both: the copies are alike, and read alike. (Where the clone loses a part of the parent in
# between, rbd's copy fills its snapshots; ferry's keeps their links.)
deep_copies() {
    local at
    rbd snap create "$POOL/$P.cf@x" &&
        rbd bench "$POOL/$P.cf" --io-type write --io-size 4K --io-total 64K --io-pattern seq &&
        rbd snap create "$POOL/$P.cf@y" &&
        rbd bench "$POOL/$P.cf" --io-type write --io-size 4K --io-total 128K --io-pattern seq &&
        ferry deep cp "$POOL/$P.cf" "$POOL/$P.df" --rbd-default-clone-format 2 &&
        rbd deep cp "$POOL/$P.cf" "$POOL/$P.dr" --rbd-default-clone-format 2 || return 1
    for at in @x @y ""; do
        diff <(shape rbd "$POOL/$P.df$at") <(shape rbd "$POOL/$P.dr$at") &&
            diff <(shape ferry "$POOL/$P.df$at") <(shape rbd "$POOL/$P.dr$at") &&
            rm -f "$WORK"/dc.* && rbd export "$POOL/$P.cf$at" "$WORK/dc.0" &&
            rbd export "$POOL/$P.df$at" "$WORK/dc.1" && ferry export "$POOL/$P.dr$at" "$WORK/dc.2" &&
            same dc.0 dc.1 && same dc.0 dc.2 || return 1
    done
    [ "$(rbd children "$POOL/$P.r@from-ferry" | grep -c "$P.d[fr]$")" = 2 ] &&
        diff <(rbd du "$POOL/$P.df" | sed "s/$P.df/X/") <(rbd du "$POOL/$P.dr" | sed "s/$P.dr/X/") &&
        rbd snap purge "$POOL/$P.df" && rbd snap purge "$POOL/$P.dr" && rbd snap purge "$POOL/$P.cf" &&
        rbd rm "$POOL/$P.df" && ferry rm "$POOL/$P.dr"
}
flattens() {
    ferry flatten "$POOL/$P.cr" && rbd export "$POOL/$P.cr" "$WORK/out.fl" && same b out.fl &&
        ! rbd children "$POOL/$P.r@from-ferry" | grep -q "$P.cr"
}
striped() {
    rbd create "$POOL/$P.st" --size 12M --stripe-unit 65536 --stripe-count 4 --data-pool ecdata &&
        ferry import-diff <(rbd export-diff "$POOL/$P.f" -) "$POOL/$P.st" &&
        rbd export "$POOL/$P.st" "$WORK/out.st" && same a out.st &&
        ferry export "$POOL/$P.st" "$WORK/out.st2" && same a out.st2
}
trash() {
    ferry create "$POOL/$P.t" --size 8M && ferry trash mv "$POOL/$P.t" &&
        id=$(rbd trash ls "$POOL" | awk -v n="$P.t" '$2 == n { print $1 }') && rbd trash restore "$id" -p "$POOL" &&
        rbd trash mv "$POOL/$P.t" && ferry trash restore "$POOL/$id" && rbd info "$POOL/$P.t"
}
renames() { ferry rename "$POOL/$P.t" "$POOL/$P.u" && rbd info "$POOL/$P.u" && rbd rename "$POOL/$P.u" "$POOL/$P.t" && ferry info "$POOL/$P.t"; }
metadata() {
    ferry image-meta set "$POOL/$P.t" key value && [ "$(rbd image-meta get "$POOL/$P.t" key)" = value ] &&
        rbd image-meta set "$POOL/$P.t" other thing && [ "$(ferry image-meta get "$POOL/$P.t" other)" = thing ]
}
migrates() {
    ferry migration prepare "$POOL/$P.f" "$POOL/$P.m" && rbd status "$POOL/$P.m" | grep -q 'state: prepared' &&
        rbd export "$POOL/$P.m" "$WORK/out.m" && same a out.m &&
        ferry migration execute "$POOL/$P.m" && ferry migration commit "$POOL/$P.m" &&
        rbd export "$POOL/$P.m" "$WORK/out.m2" && same a out.m2
}
rbd_migration_taken_over() {
    rbd migration prepare "$POOL/$P.m" "$POOL/$P.n" && ferry export "$POOL/$P.n" "$WORK/out.n" && same a out.n &&
        ferry migration abort "$POOL/$P.n" && rbd export "$POOL/$P.m" "$WORK/out.n2" && same a out.n2
}
# A writer that holds the lock hands it over when asked.
lock_is_handed_over() {
    command rbd bench "$POOL/$P.t" --io-type write --io-size 4K --io-threads 1 --io-total 1T >/dev/null 2>&1 &
    local holder=$!
    sleep 1
    ferry snap create "$POOL/$P.t@while-busy"
    local done=$?
    kill $holder
    wait $holder 2>/dev/null
    [ $done = 0 ] && rbd snap ls "$POOL/$P.t" | grep -q while-busy
}
removes() {
    ferry snap rm "$POOL/$P.t@while-busy" && ferry rm "$POOL/$P.t" && ferry rm "$POOL/$P.cf" && ferry rm "$POOL/$P.cr" &&
        ferry snap purge "$POOL/$P.r" && ferry rm "$POOL/$P.r" && ferry rm "$POOL/$P.st" && rbd rm "$POOL/$P.m"
}

fact "what ferry imports, rbd exports" ferry_makes
fact "rbd finds ferry's object map right" check_map "$POOL/$P.f"
fact "both describe ferry's image alike" infos ferry "$POOL/$P.f" rbd
fact "what rbd imports, ferry exports" ferry_reads
fact "both describe rbd's image alike" infos ferry "$POOL/$P.r" rbd
fact "snapshots of both keep their bytes" snapshots
fact "both list the snapshots alike" snapshots_listed
fact "both see what changed" diffs
fact "both count the same use" usage
fact "ferry rolls back, rbd reads" rollback
fact "both resize, and cut alike" resizes
fact "rbd finds the object map right after" check_map "$POOL/$P.r"
fact "rbd reads ferry's clone and knows it" ferry_clones
fact "ferry reads rbd's clone and knows it" rbd_clones
fact "a clone rbd wrote to reads alike" clone_written
fact "both copy a clone with its snapshots alike" deep_copies
fact "ferry flattens rbd's clone" flattens
fact "rbd finds its object map right after" check_map "$POOL/$P.cr"
fact "ferry writes a striped image in a data pool" striped
fact "images go to the trash and back" trash
fact "images are renamed both ways" renames
fact "metadata goes both ways" metadata
if ferry --help | grep -q 'migration prepare'; then
    fact "ferry migrates, rbd watches and reads" migrates
    fact "ferry aborts a migration rbd prepared" rbd_migration_taken_over
else
    echo "SKIPPED migrations: this ferry does not know them"
    rbd rename "$POOL/$P.f" "$POOL/$P.m"
fi
fact "a busy rbd hands the lock to ferry" lock_is_handed_over
fact "ferry removes it all" removes
exit $FAILED
