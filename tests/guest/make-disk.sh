#!/bin/sh
# Makes DIRECTORY/linux.qcow2: a disk from which a machine boots Linux, off a FAT file system, with SYSLINUX.
#
# usage: make-disk.sh DIRECTORY
#
# What it boots looks at the second disk (/dev/vdb). One that is empty gets an ext4 with files and their checksums; one with a
# file system is checked and its files are compared. It says "GUEST: ..." on the serial line and switches the machine off.
#
# Needs what kernel.sh needs, e2fsprogs, dosfstools, mtools, syslinux and qemu-img; neither root nor a mount.
set -eu
. "$(dirname "$0")/kernel.sh"
need mkfs.ext4 e2fsck mkfs.vfat mcopy syslinux qemu-img

mkdir -p "$1"
out=$(realpath "$1")
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
unpack_kernel "$out" "$work"

# What the guest runs: busybox and the tools of ext4, with their libraries.
root=$work/root
mkdir -p "$root/sbin" "$root/proc" "$root/sys" "$root/dev" "$root/mnt"
copy_program "$(command -v busybox)" "$root" /bin/busybox
for tool in mkfs.ext4 e2fsck; do
    copy_program "$(command -v "$tool")" "$root" "/sbin/$tool"
done
modules="virtio_pci virtio_blk"
# Not quoted: they are words.
copy_modules "$work" "$root" $modules
cat >"$root/init" <<EOF
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $modules; do modprobe \$module || echo "GUEST: no \$module"; done
test -b /dev/vdb || sleep 1
end() { echo "GUEST: \$1"; poweroff -f; }
e2fsck -V 2>&1 | head -n 1
if dd if=/dev/vdb bs=1k skip=1 count=1 2>/dev/null | cmp -s -n 1024 - /dev/zero; then
    mkfs.ext4 -q /dev/vdb || end "mkfs failed"
    mount -t ext4 /dev/vdb /mnt || end "mount failed"
    mkdir /mnt/few /mnt/many
    for i in 1 2 3 4; do dd if=/dev/urandom of=/mnt/few/\$i bs=1M count=6 2>/dev/null || end "write failed"; done
    for i in \$(seq 300); do head -c \$((i * 37)) /dev/urandom >/mnt/many/\$i || end "write failed"; done
    rm /mnt/many/1?? /mnt/few/2
    dd if=/dev/urandom of=/mnt/few/3 bs=4k seek=100 count=50 conv=notrunc 2>/dev/null || end "write failed"
    (cd /mnt && find few many -type f | sort | xargs sha256sum) >/tmp.sums
    cp /tmp.sums /mnt/sums
    sync
    umount /mnt || end "umount failed"
    end "written \$(wc -l </tmp.sums) files"
fi
e2fsck -f -n /dev/vdb || end "the file system is damaged"
mount -t ext4 /dev/vdb /mnt || end "mount failed"
(cd /mnt && sha256sum -c sums >/tmp.checked) || end "files differ"
umount /mnt || end "umount failed"
end "verified \$(wc -l </tmp.checked) files"
EOF
chmod +x "$root/init"
make_initrd "$root" | gzip -1 >"$work/initrd"

cat >"$work/syslinux.cfg" <<EOF
default linux
prompt 0
label linux
  kernel vmlinuz
  append initrd=initrd console=ttyS0 quiet panic=1
EOF
truncate -s 64M "$work/disk"
mkfs.vfat -F 32 "$work/disk" >/dev/null
syslinux --install "$work/disk"
mcopy -i "$work/disk" "$work"/kernel/boot/vmlinuz-* ::vmlinuz
mcopy -i "$work/disk" "$work/initrd" "$work/syslinux.cfg" ::
qemu-img convert -f raw -O qcow2 "$work/disk" "$work/linux.qcow2"
mv "$work/linux.qcow2" "$out/linux.qcow2"
