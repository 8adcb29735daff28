#!/bin/bash
# ferry and stock `rbd` on the same images of a real cluster: what one makes, the other reads, changes and hands back.
#
#   interop.sh FERRY      the binary; needs a running cluster named by CEPH_CONF with pools `rbd` and `ecdata`
#                         (single-node.sh makes one)
#
# Prints a line per fact and ends with exit code 1 if one does not hold.
set -uo pipefail
FERRY=${1:?the ferry binary}
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
    ferry import "$WORK/a" "rbd/$P.f" && rbd export "rbd/$P.f" "$WORK/out.a" && same a out.a
}
ferry_reads() {
    rbd import "$WORK/b" "rbd/$P.r" && ferry export "rbd/$P.r" "$WORK/out.b" && same b out.b
}
snapshots() {
    ferry snap create "rbd/$P.r@from-ferry" &&
        rbd bench "rbd/$P.r" --io-type write --io-size 4K --io-total 1M --io-pattern rand &&
        rbd snap create "rbd/$P.r@from-rbd" &&
        ferry export "rbd/$P.r@from-ferry" "$WORK/out.s" && same b out.s &&
        rbd export "rbd/$P.r@from-ferry" "$WORK/out.s2" && same b out.s2 &&
        rbd export "rbd/$P.r" "$WORK/r.head" && ferry export "rbd/$P.r" "$WORK/r.head2" && same r.head r.head2
}
snapshots_listed() { diff <(ferry snap ls "rbd/$P.r") <(rbd snap ls "rbd/$P.r"); }
# What changed is among what ferry names, and that among what rbd names (which also counts blocks rewritten as they were).
diffs() {
    rbd export "rbd/$P.r@from-ferry" "$WORK/d.1" && rbd export "rbd/$P.r@from-rbd" "$WORK/d.2" &&
        ferry diff --from-snap from-ferry "rbd/$P.r@from-rbd" --format json >"$WORK/d.ferry" &&
        rbd diff --from-snap from-ferry "rbd/$P.r@from-rbd" --format json >"$WORK/d.rbd" &&
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
    diff <(ferry du "rbd/$P.r" --format json | python3 -m json.tool) <(rbd du "rbd/$P.r" --format json | python3 -m json.tool)
}
rollback() {
    ferry snap rollback "rbd/$P.r@from-ferry" && rbd export "rbd/$P.r" "$WORK/out.rb" && same b out.rb
}
resizes() {
    ferry resize "rbd/$P.r" --size 20M && rbd resize "rbd/$P.r" --size 8M --allow-shrink &&
        ferry export "rbd/$P.r" "$WORK/out.8" && cmp -n $((8 << 20)) "$WORK/b" "$WORK/out.8" &&
        rbd export "rbd/$P.r" "$WORK/out.8r" && same out.8 out.8r
}
ferry_clones() {
    ferry clone "rbd/$P.r@from-ferry" "rbd/$P.cf" --rbd-default-clone-format 2 &&
        rbd export "rbd/$P.cf" "$WORK/out.cf" && same b out.cf &&
        rbd children "rbd/$P.r@from-ferry" | grep -q "$P.cf"
}
rbd_clones() {
    rbd clone "rbd/$P.r@from-ferry" "rbd/$P.cr" --rbd-default-clone-format 2 &&
        ferry export "rbd/$P.cr" "$WORK/out.cr" && same b out.cr &&
        ferry children "rbd/$P.r@from-ferry" | grep -q "$P.cr"
}
clone_written() {
    rbd bench "rbd/$P.cf" --io-type write --io-size 4K --io-total 256K --io-pattern rand &&
        rbd export "rbd/$P.cf" "$WORK/cf.1" && ferry export "rbd/$P.cf" "$WORK/cf.2" && same cf.1 cf.2
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
    rbd snap create "rbd/$P.cf@x" &&
        rbd bench "rbd/$P.cf" --io-type write --io-size 4K --io-total 64K --io-pattern rand &&
        rbd snap create "rbd/$P.cf@y" &&
        rbd bench "rbd/$P.cf" --io-type write --io-size 4K --io-total 128K --io-pattern rand &&
        ferry deep cp "rbd/$P.cf" "rbd/$P.df" --rbd-default-clone-format 2 &&
        rbd deep cp "rbd/$P.cf" "rbd/$P.dr" --rbd-default-clone-format 2 || return 1
    for at in @x @y ""; do
        diff <(shape rbd "rbd/$P.df$at") <(shape rbd "rbd/$P.dr$at") &&
            diff <(shape ferry "rbd/$P.df$at") <(shape rbd "rbd/$P.dr$at") &&
            rm -f "$WORK"/dc.* && rbd export "rbd/$P.cf$at" "$WORK/dc.0" &&
            rbd export "rbd/$P.df$at" "$WORK/dc.1" && ferry export "rbd/$P.dr$at" "$WORK/dc.2" &&
            same dc.0 dc.1 && same dc.0 dc.2 || return 1
    done
    [ "$(rbd children "rbd/$P.r@from-ferry" | grep -c "$P.d[fr]$")" = 2 ] &&
        diff <(rbd du "rbd/$P.df" | sed "s/$P.df/X/") <(rbd du "rbd/$P.dr" | sed "s/$P.dr/X/") &&
        rbd snap purge "rbd/$P.df" && rbd snap purge "rbd/$P.dr" && rbd snap purge "rbd/$P.cf" &&
        rbd rm "rbd/$P.df" && ferry rm "rbd/$P.dr"
}
flattens() {
    ferry flatten "rbd/$P.cr" && rbd export "rbd/$P.cr" "$WORK/out.fl" && same b out.fl &&
        ! rbd children "rbd/$P.r@from-ferry" | grep -q "$P.cr"
}
striped() {
    rbd create "rbd/$P.st" --size 12M --stripe-unit 65536 --stripe-count 4 --data-pool ecdata &&
        ferry import-diff <(rbd export-diff "rbd/$P.f" -) "rbd/$P.st" &&
        rbd export "rbd/$P.st" "$WORK/out.st" && same a out.st &&
        ferry export "rbd/$P.st" "$WORK/out.st2" && same a out.st2
}
trash() {
    ferry create "rbd/$P.t" --size 8M && ferry trash mv "rbd/$P.t" &&
        id=$(rbd trash ls rbd | awk -v n="$P.t" '$2 == n { print $1 }') && rbd trash restore "$id" -p rbd &&
        rbd trash mv "rbd/$P.t" && ferry trash restore "rbd/$id" && rbd info "rbd/$P.t"
}
renames() { ferry rename "rbd/$P.t" "rbd/$P.u" && rbd info "rbd/$P.u" && rbd rename "rbd/$P.u" "rbd/$P.t" && ferry info "rbd/$P.t"; }
metadata() {
    ferry image-meta set "rbd/$P.t" key value && [ "$(rbd image-meta get "rbd/$P.t" key)" = value ] &&
        rbd image-meta set "rbd/$P.t" other thing && [ "$(ferry image-meta get "rbd/$P.t" other)" = thing ]
}
migrates() {
    ferry migration prepare "rbd/$P.f" "rbd/$P.m" && rbd status "rbd/$P.m" | grep -q 'state: prepared' &&
        rbd export "rbd/$P.m" "$WORK/out.m" && same a out.m &&
        ferry migration execute "rbd/$P.m" && ferry migration commit "rbd/$P.m" &&
        rbd export "rbd/$P.m" "$WORK/out.m2" && same a out.m2
}
rbd_migration_taken_over() {
    rbd migration prepare "rbd/$P.m" "rbd/$P.n" && ferry export "rbd/$P.n" "$WORK/out.n" && same a out.n &&
        ferry migration abort "rbd/$P.n" && rbd export "rbd/$P.m" "$WORK/out.n2" && same a out.n2
}
# A writer that holds the lock hands it over when asked.
lock_is_handed_over() {
    command rbd bench "rbd/$P.t" --io-type write --io-size 4K --io-threads 1 --io-total 1T >/dev/null 2>&1 &
    local holder=$!
    sleep 1
    ferry snap create "rbd/$P.t@while-busy"
    local done=$?
    kill $holder
    wait $holder 2>/dev/null
    [ $done = 0 ] && rbd snap ls "rbd/$P.t" | grep -q while-busy
}
removes() {
    ferry snap rm "rbd/$P.t@while-busy" && ferry rm "rbd/$P.t" && ferry rm "rbd/$P.cf" && ferry rm "rbd/$P.cr" &&
        ferry snap purge "rbd/$P.r" && ferry rm "rbd/$P.r" && ferry rm "rbd/$P.st" && rbd rm "rbd/$P.m"
}

fact "what ferry imports, rbd exports" ferry_makes
fact "rbd finds ferry's object map right" check_map "rbd/$P.f"
fact "both describe ferry's image alike" infos ferry "rbd/$P.f" rbd
fact "what rbd imports, ferry exports" ferry_reads
fact "both describe rbd's image alike" infos ferry "rbd/$P.r" rbd
fact "snapshots of both keep their bytes" snapshots
fact "both list the snapshots alike" snapshots_listed
fact "both see what changed" diffs
fact "both count the same use" usage
fact "ferry rolls back, rbd reads" rollback
fact "both resize, and cut alike" resizes
fact "rbd finds the object map right after" check_map "rbd/$P.r"
fact "rbd reads ferry's clone and knows it" ferry_clones
fact "ferry reads rbd's clone and knows it" rbd_clones
fact "a clone rbd wrote to reads alike" clone_written
fact "both copy a clone with its snapshots alike" deep_copies
fact "ferry flattens rbd's clone" flattens
fact "rbd finds its object map right after" check_map "rbd/$P.cr"
fact "ferry writes a striped image in a data pool" striped
fact "images go to the trash and back" trash
fact "images are renamed both ways" renames
fact "metadata goes both ways" metadata
if ferry --help | grep -q 'migration prepare'; then
    fact "ferry migrates, rbd watches and reads" migrates
    fact "ferry aborts a migration rbd prepared" rbd_migration_taken_over
else
    echo "SKIPPED migrations: this ferry does not know them"
    rbd rename "rbd/$P.f" "rbd/$P.m"
fi
fact "a busy rbd hands the lock to ferry" lock_is_handed_over
fact "ferry removes it all" removes
exit $FAILED
