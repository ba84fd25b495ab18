#!/bin/sh
# Runs the Linux tests on an emulated host: QEMU's TCG plays an AMD machine with SVM, Debian's cloud
# kernel runs on it and boots stock Debian guests with tidemark. Needs no /dev/kvm.
#
#     lab.sh VERSION [TEST...]         VERSION of the host's and the guests' kernel: 6.1 or 6.12
#     lab.sh --here VERSION [TEST...]  guests with this kernel on this very machine, by its own KVM
#     lab.sh --bench VERSION [FLAG...] `tidemark bench balloon` instead of tests, beside a QEMU in that host
#
# Everything made lies under target/. The serial console of the host, which carries the results, goes
# to standard output. Exit status 0: every test passed. See guest-images/linux/README.md for the
# variables LAB_ECHO, LAB_CMDLINE, LAB_NAME, LAB_CPUS and LAB_LIMIT.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
. "$top/guest-images/linux/pack.sh"
here= bench=
case ${1:-} in
    --here) here=yes ;;
    --bench) bench=yes ;;
esac
[ -z "$here$bench" ] || shift
version=${1:?usage: lab.sh [--here|--bench] VERSION [TEST...]}
shift
cache=$top/target/linux
guest=$cache/guest-$version
lab=$top/target/lab/${LAB_NAME:-${bench:+bench-}$version}
mkdir -p "$lab"

for tool in qemu-system-x86_64 cpio xz lz4 zstd cargo apt-get; do
    command -v "$tool" >/dev/null || { echo "lab.sh: $tool is missing: run setup.sh" >&2; exit 2; }
done
# Two labs may run at once, but they share the cache and the build.
exec 9>"$top/target/lab/lock"
flock 9
"$top/guest-images/linux/fetch.sh" "$cache"
"$top/guest-images/linux/build.sh" "$cache" "$version" "$guest" --disk
# Static, because the host has no libraries; a target directory of its own, because of the flags.
# Everything is some twenty times slower in the emulator, so it pays to optimise.
(cd "$top" && RUSTFLAGS='-C target-feature=+crt-static' CARGO_PROFILE_DEV_OPT_LEVEL=2 cargo build --quiet --locked --bins \
    --example lab_runner --target x86_64-unknown-linux-gnu --target-dir target/static 9>&-)
flock -u 9
built=$top/target/static/x86_64-unknown-linux-gnu/debug

if [ -n "$here" ]; then
    "$built/examples/lab_runner" "$guest" "$@" 9>&- | tee "$lab/console.log"
    grep -q '^LAB DONE failures=0' "$lab/console.log"
    exit
fi

start_tree "$cache/busybox" "$lab/tree" "$top/tests/lab/init"
add_modules "$cache/$version" "$lab/tree" irqbypass kvm kvm-amd
strip -o "$lab/tree/lab_runner" "$built/examples/lab_runner"
strip -o "$lab/tree/tidemark" "$built/tidemark"
mkdir "$lab/tree/guest"
for file in vmlinuz vmlinux initrd.gz root.img; do
    cp "$guest/$file" "$lab/tree/guest/"
done
if [ -n "$bench" ]; then
    # Its libraries lie where the linker looks for them; microvm needs no firmware but these.
    qemu=$(command -v qemu-system-x86_64)
    for file in "$qemu" $(ldd "$qemu" | grep -o '/[^ ]*') \
        /usr/share/qemu/bios-microvm.bin /usr/share/qemu/linuxboot_dma.bin /usr/share/qemu/kvmvapic.bin; do
        mkdir -p "$lab/tree${file%/*}"
        cp -L "$file" "$lab/tree$file"
    done
fi
{
    [ -n "$bench" ] && echo "LAB_BENCH='$*'" || echo "LAB_TESTS='$*'"
    [ -z "${LAB_ECHO:-}" ] || echo "export LAB_ECHO=1"
    echo "export LAB_CMDLINE='${LAB_CMDLINE:-}'"
    echo "export RUST_LOG=${RUST_LOG:-warn}"
    [ -z "${TIDEMARK_TAKE:-}" ] || echo "export TIDEMARK_TAKE=$TIDEMARK_TAKE"
} >"$lab/tree/lab.env"
pack_tree "$lab/tree" >"$lab/initramfs"

# One emulated CPU: where several patch and run the same code, as kernels do when a VM starts, QEMU
# 7.2 runs stale translations now and then, and host or guest dies (tests/README.md, Traps). -cx16:
# it mishandles cmpxchg16b with several CPUs too. The limit is far above what a slow machine needs.
# Two nodes, so that pages can move from one to the other, and a disk to swap to.
rm -f "$lab/swap.img"
truncate -s 256M "$lab/swap.img"
timeout "${LAB_LIMIT:-1500}" qemu-system-x86_64 -machine q35 -accel tcg \
    -cpu max,+svm,+npt,-cx16 -smp "${LAB_CPUS:-1}" -m 2560M \
    -object memory-backend-ram,id=ram0,size=1280M -object memory-backend-ram,id=ram1,size=1280M \
    -numa node,nodeid=0,memdev=ram0 -numa node,nodeid=1,memdev=ram1 \
    -drive "file=$lab/swap.img,format=raw,if=none,id=swap" -device nvme,drive=swap,serial=swap \
    -nodefaults -no-user-config -display none -no-reboot -serial stdio \
    -kernel "$cache/$version"/boot/vmlinuz-* -initrd "$lab/initramfs" \
    -append "console=ttyS0 quiet panic=-1 preempt=full" </dev/null 9>&- | tee "$lab/console.log"
grep -q '^LAB DONE failures=0' "$lab/console.log"
