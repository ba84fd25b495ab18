#!/bin/sh
# Makes a bootable Debian guest from what fetch.sh fetched: the distribution's kernel, unchanged, and
# an initramfs with BusyBox, the kernel's virtio drivers and ./init.
#
#     build.sh CACHE VERSION OUT [--disk]
#
# VERSION is 6.1 or 6.12. Leaves OUT/vmlinuz, OUT/vmlinux (the same kernel, unpacked) and
# OUT/initrd.gz; with --disk also OUT/root.img, an ext4 image with the same programs (boot it with
# "root=/dev/vda" on the command line).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
. "$here/pack.sh"
cache=${1:?usage: build.sh CACHE VERSION OUT [--disk]} version=${2:?} out=${3:?} disk=${4:-}
kernel=$cache/$version
mkdir -p "$out"

start_tree "$cache/busybox" "$out/tree" "$here/init"
add_modules "$kernel" "$out/tree" \
    virtio_ring virtio virtio_mmio virtio_balloon virtio_blk virtio-rng
cp "$kernel"/boot/vmlinuz-* "$out/vmlinuz"
"$here/vmlinux.sh" "$out/vmlinuz" >"$out/vmlinux"
pack_tree "$out/tree" | gzip -n -9 >"$out/initrd.gz"

if [ "$disk" = --disk ]; then
    rm -f "$out/root.img"
    : >"$out/tree/on-disk"
    truncate -s 32M "$out/root.img"
    # Debian keeps it where only root looks.
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -d "$out/tree" "$out/root.img"
fi
