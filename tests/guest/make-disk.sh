#!/bin/sh
# Makes DIRECTORY/linux.qcow2: a disk from which a machine boots Linux, off a FAT file system, with SYSLINUX.
#
# usage: make-disk.sh DIRECTORY
#
# What it boots looks at the second disk (/dev/vdb). One that is empty gets an ext4 with files and their checksums; one with a
# file system is checked and its files are compared. It says "GUEST: ..." on the serial line and switches the machine off.
#
# The kernel is Debian's for clouds, unpacked from its package and not installed. Needs apt-get, dpkg, busybox (static), e2fsprogs,
# dosfstools, mtools, syslinux and qemu-img; neither root nor a mount.
set -eu
PATH=$PATH:/usr/sbin:/sbin

mkdir -p "$1"
out=$(realpath "$1")
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

kernel() { apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -n 1; }
package=$(kernel)
if test -z "$package" && test "$(id -u)" = 0; then
    apt-get update -q >/dev/null
    package=$(kernel)
fi
test -n "$package" || { echo "no kernel package is known to apt: apt-get update" >&2; exit 1; }
if ! test -f "$out/$package.deb"; then
    (cd "$work" && apt-get download -q "$package" && mv "$package"_*.deb "$out/$package.deb")
fi
dpkg -x "$out/$package.deb" "$work/kernel"

# What the guest runs: busybox and the tools of ext4, with their libraries.
root=$work/root
mkdir -p "$root/bin" "$root/sbin" "$root/proc" "$root/sys" "$root/dev" "$root/mnt" "$root/modules"
cp "$(command -v busybox)" "$root/bin/busybox"
for tool in mkfs.ext4 e2fsck; do
    file=$(command -v "$tool")
    cp -L "$file" "$root/sbin/"
    for library in $(ldd "$file" | grep -o '/[^ ]*'); do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done
modules="virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk"
for module in $modules; do
    find "$work/kernel" -name "$module.ko" -exec cp {} "$root/modules/" \;
    test -f "$root/modules/$module.ko"
done
cat >"$root/init" <<EOF
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $modules; do insmod /modules/\$module.ko || echo "GUEST: no \$module"; done
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
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"

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
