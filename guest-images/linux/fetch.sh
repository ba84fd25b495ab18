#!/bin/sh
# Fetches Debian's cloud kernels and BusyBox, as packages from the mirror that this machine uses, and
# unpacks them without installing anything. What is in the cache already is not fetched again.
#
#     fetch.sh CACHE          leaves CACHE/6.1/, CACHE/6.12/ (kernel and modules), CACHE/busybox
#
# Needs the package lists (apt-get update).
#
# Kernel packages carry their ABI number in the name; old ones leave the archive soon. So the
# meta-package is asked which one is current.
set -eu
cache=${1:?usage: fetch.sh CACHE}
mkdir -p "$cache/packages"
cache=$(cd "$cache" && pwd)

# Unpacks package $1 into folder $2.
unpack() {
    # As root, apt-get would try to download as its own user, who may not write here.
    (cd "$cache/packages" && apt-get -q -o APT::Sandbox::User=root download "$1" >&2)
    rm -rf "$2.part"
    dpkg-deb -x "$(ls -t "$cache/packages/$1"_*.deb | head -n 1)" "$2.part"
    rm -rf "$2"
    mv "$2.part" "$2"
}

for flavour in 6.1:linux-image-cloud-amd64 6.12:linux-image-6.12-cloud-amd64; do
    version=${flavour%%:*} folder=$cache/${flavour%%:*}
    [ -d "$folder" ] && continue
    # Other releases of Debian have other kernels behind the same names.
    package=$(apt-cache depends "${flavour#*:}" |
        sed -n "s/^ *Depends: \(linux-image-$version\.[0-9].*\)\$/\1/p" | head -n 1)
    [ -n "$package" ] || { echo "fetch.sh: no $version kernel behind ${flavour#*:}" >&2; exit 1; }
    unpack "$package" "$folder"
done

if [ ! -x "$cache/busybox" ]; then
    unpack busybox-static "$cache/busybox-package"
    cp "$cache/busybox-package/bin/busybox" "$cache/busybox"
fi
