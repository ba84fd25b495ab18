#!/bin/sh
# Makes the Debian guest of examples/linux.toml, from nothing: installs the tools that this machine
# lacks, fetches the packages and builds the guest. What is there already is not fetched again. Needs
# root, or sudo, only when a tool is missing or there are no package lists.
#
#     setup.sh          leaves target/linux/guest-6.12/vmlinuz and initrd.gz
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=$here/../../target/linux version=6.12
sudo=sudo
. "$here/tools.sh"
for tool in apt-get apt-cache dpkg-deb; do
    command -v "$tool" >/dev/null ||
        { echo "setup.sh: $tool is missing: the guest is made from Debian packages" >&2; exit 1; }
done

need cpio cpio
need xz xz-utils
need zstd zstd
install_missing
fetch "$here" "$cache" "$version"
"$here/build.sh" "$cache" "$version" "$cache/guest-$version"
