#!/bin/sh
# Installs the tools that lab.sh needs and this machine lacks, and fetches the guests' packages, all
# from the distribution's mirror that the machine is set up to use. Needs root, or sudo, only when a
# tool is missing or the package lists are too old.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
as_root=
if [ "$(id -u)" != 0 ]; then
    as_root='sudo -n'
fi
command -v apt-get >/dev/null || { echo "setup.sh: there is no apt-get" >&2; exit 1; }

missing=
need() { command -v "$1" >/dev/null || [ -x "/sbin/$1" ] || missing="$missing $2"; }
need qemu-system-x86_64 qemu-system-x86
need cpio cpio
need xz xz-utils
need lz4 lz4
need zstd zstd
need mke2fs e2fsprogs
need flock util-linux
need strip binutils
if [ -n "$missing" ]; then
    echo "setup.sh: installing$missing"
    $as_root apt-get -q update
    # shellcheck disable=SC2086 -- a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y --no-install-recommends install $missing
fi

fetch="$top/guest-images/linux/fetch.sh"
"$fetch" "$top/target/linux" && exit 0
echo "setup.sh: trying again with fresh package lists"
$as_root apt-get -q update
"$fetch" "$top/target/linux"
