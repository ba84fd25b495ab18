#!/bin/sh
# Installs the tools that lab.sh needs and this machine lacks, and fetches the guests' packages, all
# from the distribution's mirror that the machine is set up to use. Needs root, or sudo without a
# password, only when a tool is missing or the package lists are too old.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
sudo='sudo -n'
. "$top/guest-images/linux/tools.sh"
command -v apt-get >/dev/null || { echo "setup.sh: there is no apt-get" >&2; exit 1; }

need qemu-system-x86_64 qemu-system-x86
need cpio cpio
need xz xz-utils
need lz4 lz4
need zstd zstd
need mke2fs e2fsprogs
need flock util-linux
need strip binutils
install_missing
fetch "$top/guest-images/linux" "$top/target/linux"
