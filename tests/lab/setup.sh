#!/bin/sh
# Installs what lab.sh needs and this machine lacks, from the distribution's mirror that it is set up
# to use. Needs root only when something is missing.
set -eu
missing=
need() { command -v "$1" >/dev/null || [ -x "/sbin/$1" ] || missing="$missing $2"; }
need qemu-system-x86_64 qemu-system-x86
need cpio cpio
need xz xz-utils
need mke2fs e2fsprogs
need flock util-linux
need strip binutils
[ -z "$missing" ] && exit 0
echo "setup.sh: installing$missing"
apt-get -q update
# shellcheck disable=SC2086 -- a list of words
DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
