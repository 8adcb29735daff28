#!/bin/sh
# Runs a program in an emulated machine, whose kernel has devices that the one of this computer may lack: nbd, loop, fuse, xfs.
#
# usage: run-tests.sh CACHE-DIRECTORY [--with FILE]... PROGRAM [ARGUMENT ...]
#
# The program is run as root, in /, under the path it has here, with the environment variables whose names begin with FERRY_TEST_.
# What it writes is written to stdout, and its exit status is that of this script. Where it fails, the last of what the kernel said
# follows on stderr. Where the machine ends before the program does, or cannot be made, the status is 125.
#
# CACHE-DIRECTORY keeps the package of the kernel. The guest has the tools below, busybox for everything else, a loopback interface,
# and nothing of this computer's files but the program, each FILE under the path it has here, and the libraries they are linked with.
#
# Needs what kernel.sh needs, QEMU's machine, e2fsprogs, xfsprogs, nbd-client, mount and util-linux; neither root nor a mount.
set -eu
. "$(dirname "$0")/kernel.sh"

# A machine that takes longer hangs. Emulated, it boots in some seconds; the tests of devices take a minute or two.
hang=600

# Those of this computer, as tests use options that busybox's do not have. What starts other programs is among them, the shell too:
# busybox's start busybox's own, whatever the path says.
tools="nbd-client mkfs.ext4 fsck.ext4 e2fsck resize2fs mkfs.xfs xfs_repair mount umount blockdev losetup fstrim sync sleep timeout env"
modules="nbd loop fuse xfs"

usage() { echo "usage: $0 CACHE-DIRECTORY [--with FILE]... PROGRAM [ARGUMENT ...]" >&2; exit 125; }
test $# -ge 2 || usage
# Not quoted, here and below: they are words.
need qemu-system-x86_64 $tools || exit 125
mkdir -p "$1"
out=$(realpath "$1")
shift
# One a line.
with=
while test $# -ge 2 && test "$1" = --with; do
    test -f "$2" || { echo "$0: not a file: $2" >&2; exit 125; }
    with="$with$(realpath "$2")
"
    shift 2
done
test $# -ge 1 || usage
test -f "$1" && test -x "$1" || { echo "$0: not a program: $1" >&2; exit 125; }
program=$(realpath "$1")
shift

# Whatever ends this script before the program has ended is not the program's status.
status=125
machine=
work=$(mktemp -d "$out/work.XXXXXX")
trap 'test -z "$machine" || kill "$machine" 2>/dev/null || :; rm -rf "$work"; exit "$status"' EXIT
trap 'exit' HUP INT TERM

unpack_kernel "$out" "$work"

# All of the guest is in memory: there is no disk that it has to wait for.
root=$work/root
mkdir -p "$root/bin" "$root/sbin" "$root/etc/modprobe.d" "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/root" "$root/mnt"
copy_program "$(command -v busybox)" "$root" /bin/busybox
for tool in $tools; do
    copy_program "$(command -v "$tool")" "$root" "/sbin/$tool"
done
copy_program "$(command -v sh)" "$root" /bin/sh
ln -s ../bin/busybox "$root/sbin/modprobe"
copy_modules "$work" "$root" $modules
# Devices are made when they are asked for.
echo "options nbd nbds_max=0" >"$root/etc/modprobe.d/nbd.conf"
echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
echo "root:x:0:" >"$root/etc/group"
echo "127.0.0.1 localhost" >"$root/etc/hosts"
ln -s /proc/self/mounts "$root/etc/mtab"
if test -f /etc/mke2fs.conf; then cp /etc/mke2fs.conf "$root/etc/"; fi

# is_elf FILE: whether it is a program, and no script.
is_elf() { test "$(head -c 4 "$1" | tail -c 3)" = ELF; }

# place FILE PATH: puts a file of this computer at PATH of the guest. Half of a program, and more, is there for debuggers.
place() {
    if is_elf "$1"; then
        copy_program "$1" "$root" "$2"
        if command -v strip >/dev/null; then strip --strip-debug "$root$2"; fi
    else
        mkdir -p "$(dirname "$root$2")"
        cp -L "$1" "$root$2"
    fi
}

place "$program" /program
# Not where they belong: the guest mounts a /tmp of its own.
mkdir "$root/with"
printf %s "$with" | while read -r file; do place "$file" "/with$file"; done

# quote TEXT: as a word for a shell.
quote() { printf '%s\n' "$1" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/"; }

{
    # A line that looks like a variable may be part of the value of another.
    for name in $(env | sed -n 's/^\(FERRY_TEST_[A-Za-z0-9_]*\)=.*/\1/p'); do
        if eval "test -n \"\${$name+set}\""; then
            eval "value=\$$name"
            echo "export $name=$(quote "$value")"
        fi
    done
    echo "set --"
    for word in "$program" "$@"; do
        echo "set -- \"\$@\" $(quote "$word")"
    done
} >"$root/run"

# The first serial line has what the kernel says, and what this says: the kernel writes that at once, and whole. A machine that stops
# with the message on its way to a terminal would lose it. The second line is the program's.
cat >"$root/init" <<EOF
#!/bin/busybox sh
/bin/busybox --install -s /bin
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/null >/dev/kmsg 2>&1
mkdir /dev/shm
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777,size=75% tmp /tmp
ln -s /proc/self/fd /dev/fd
ip link set lo up
for module in $modules; do modprobe \$module || echo "GUEST: no \$module"; done
. /run
mkdir -p "\$(dirname "\$1")"
mv /program "\$1"
cp -a /with/. /
# Through a pipe: to a terminal a program may write in another way.
mkfifo /output
(stty raw -echo; exec cat /output) </dev/ttyS1 >/dev/ttyS1 &
written=\$!
status=0
echo "GUEST: ready"
(exec "\$@") </dev/null >/output 2>&1 || status=\$?
# What the program left running may have the pipe open.
(sleep 10; kill \$written) &
wait \$written || :
echo "GUEST: exit \$status"
poweroff -f
EOF
chmod +x "$root/init"
make_initrd "$root" >"$work/initrd"

# With pipes of its own, since QEMU changes what it is given; and in the background, so that a signal to this script ends it.
mkfifo "$work/output"
cat "$work/output" &
said=$!
timeout "$hang" qemu-system-x86_64 -accel tcg -smp 2 -m 2048 -display none -vga none -monitor none -no-reboot -nic none \
    -kernel "$work"/kernel/boot/vmlinuz-* -initrd "$work/initrd" -append "console=ttyS0 panic=-1 printk.devkmsg=on" \
    -serial "file:$work/console" -serial stdio </dev/null >"$work/output" 2>"$work/machine" &
machine=$!
ended=0
wait "$machine" || ended=$?
machine=
wait "$said"

touch "$work/console"
found=$(tr -d '\r' <"$work/console" | sed -n 's/.*GUEST: exit \([0-9][0-9]*\)$/\1/p' | tail -n 1)
if test -n "$found"; then
    status=$found
elif test "$ended" = 124; then
    echo "$0: the machine was ended after $hang s" >&2
else
    echo "$0: the machine ended before the program did, with status $ended" >&2
    cat "$work/machine" >&2
fi
if test "$status" != 0; then
    echo "$0: the last that the kernel said:" >&2
    tr -d '\r' <"$work/console" | tail -n 50 >&2
fi
