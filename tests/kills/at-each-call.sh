#!/bin/sh
# Kills a command at each of its system calls that change files, and then a second time at each call of what follows, and
# looks at what is left: an image's data and its copy's, the store's check, and whether the command can be given again.
#
#   at-each-call.sh FERRY DIRECTORY CASE...
#
# needs strace. DIRECTORY is made anew. Each CASE takes a minute or two; all of them:
#   pool-first pool create import snap snap-rm resize clone flatten rm cp prepare execute commit abort
set -u
ferry=$1 directory=$2
shift 2
calls=openat,write,pwrite64,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync,sync_file_range,rename,renameat,renameat2,unlink
calls=$calls,unlinkat,link,linkat,mkdir,mkdirat,copy_file_range,fchmod,flock
# What a command may say that was done already.
done_already='exists|has this name|no such|not found|has no parent|not migrating|migration state is'
export FERRY_LOG=error

# The commands before, and the command. The image base keeps its bytes wherever it goes; where the command makes a second one with
# the same bytes, $copy names it.
prepare_case() {
    base() { "$ferry" pool create p && "$ferry" import "$directory/raw" p/base; }
    cloned() { base && "$ferry" snap create p/base@s && "$ferry" snap protect p/base@s && "$ferry" clone p/base@s p/new; }
    moving() { base && "$ferry" pool create q && "$ferry" migration prepare p/base q/base; }
    copy=
    case $1 in
        pool-first) command="pool create p" ;;
        pool) base && command="pool create q" ;;
        create) base && command="create p/new --size 1G" ;;
        import) base && copy=p/new && command="import $directory/raw p/new" ;;
        snap) base && command="snap create p/base@s" ;;
        snap-rm) base && "$ferry" snap create p/base@s && command="snap rm p/base@s" ;;
        resize) base && "$ferry" create p/new --size 3M && command="resize p/new --size 1G" ;;
        clone) base && "$ferry" snap create p/base@s && "$ferry" snap protect p/base@s && copy=p/new && command="clone p/base@s p/new" ;;
        flatten) cloned && copy=p/new && command="flatten p/new" ;;
        rm) cloned && command="rm p/new" ;;
        cp) base && copy=p/new && command="cp p/base p/new" ;;
        prepare) base && "$ferry" pool create q && command="migration prepare p/base q/base" ;;
        execute) moving && command="migration execute q/base" ;;
        commit) moving && "$ferry" migration execute q/base && command="migration commit q/base" ;;
        abort) moving && "$ferry" migration execute q/base && command="migration abort q/base" ;;
        *) echo "no such case" && return 1 ;;
    esac
}

# The sum of the first image of those named that is there.
sum_of() {
    for spec in "$@"; do
        if "$ferry" export "$spec" - >"$directory/bytes" 2>/dev/null; then
            sha256sum <"$directory/bytes"
            return
        fi
    done
    echo none
}

copy_home() {
    rm -rf "$2"
    if test -d "$1"; then cp -a --sparse=always "$1" "$2"; fi
    export FERRY_HOME="$2"
}

# Runs the command, killed at its call number $1; fails unless it was.
killed_at() {
    # shellcheck disable=SC2086
    sh -c 'exec strace -f -qq -o /dev/null -e trace="$1" -e inject="$1":signal=SIGKILL:when="$2" -- $3 $4' \
        - "$calls" "$1" "$ferry" "$command" >"$directory/said" 2>&1
    test $? = 137
}

complain() {
    bad=$((bad + 1))
    echo "$name: killed at call $first, then at $second: $1"
    cp -a "$FERRY_HOME" "$directory/bad.$name.$first.$second"
}

judge() {
    # shellcheck disable=SC2086
    if ! "$ferry" $command >"$directory/said" 2>&1 && ! grep -qE "$done_already" "$directory/said"; then
        complain "cannot be given again: $(tail -n 2 "$directory/said")"
    fi
    if test "$(sum_of p/base q/base)" != "$sum"; then complain "the data is another"; fi
    if test -n "$copy" && test "$(sum_of "$copy")" != "$sum"; then complain "the copy is another"; fi
    if ! "$ferry" check >"$directory/said" 2>&1; then complain "check: $(tail -n 2 "$directory/said")"; fi
}

failed=0
for name in "$@"; do
    rm -rf "$directory"
    mkdir -p "$directory"
    head -c 3000000 /dev/urandom >"$directory/raw"
    truncate -s 5M "$directory/raw"
    export FERRY_HOME="$directory/before"
    if ! prepare_case "$name" >"$directory/said" 2>&1; then
        cat "$directory/said"
        exit 2
    fi
    sum=none
    if test -d "$directory/before"; then sum=$(sum_of p/base q/base); fi
    pairs=0 bad=0 first=1
    while copy_home "$directory/before" "$directory/once" && killed_at "$first"; do
        second=1
        while copy_home "$directory/once" "$directory/twice" && killed_at "$second"; do
            pairs=$((pairs + 1))
            judge
            second=$((second + 1))
        done
        # The second was not killed: the first alone.
        copy_home "$directory/once" "$directory/twice"
        judge
        first=$((first + 1))
    done
    echo "$name: $((first - 1)) kills and $pairs pairs, $bad wrong"
    if test "$first" = 1 || test "$bad" != 0; then failed=1; fi
done
exit $failed
