#!/bin/sh
# Makes the Debian guest of examples/linux.toml, from nothing: installs the tools that this machine
# lacks, fetches the packages and builds the guest. What is there already is not fetched again. Needs
# root, or sudo, only when a tool is missing or there are no package lists.
#
#     setup.sh          leaves target/linux/guest-6.12/vmlinuz and initrd.gz
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=$here/../../target/linux version=6.12
as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null ||
        { echo "setup.sh: $tool is missing: the guest is made from Debian packages" >&2; exit 1; }
done

missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need cpio cpio
need xz xz-utils
need zstd zstd
if [ -n "$missing" ]; then
    echo "setup.sh: installing$missing"
    $as_root apt-get -q update
    # shellcheck disable=SC2086 -- a list of words
    $as_root apt-get -q -y --no-install-recommends install $missing
fi

if ! "$here/fetch.sh" "$cache" "$version"; then
    echo "setup.sh: trying again with fresh package lists"
    $as_root apt-get -q update
    "$here/fetch.sh" "$cache" "$version"
fi
"$here/build.sh" "$cache" "$version" "$cache/guest-$version"
