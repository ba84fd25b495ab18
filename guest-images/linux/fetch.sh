#!/bin/sh
# Fetches Debian's cloud kernels and BusyBox, as packages from the mirror that this machine uses, and
# unpacks them without installing anything. What is in the cache already is not fetched again.
#
#     fetch.sh CACHE [VERSION...]    leaves CACHE/6.1/, CACHE/6.12/ (kernel and modules), CACHE/busybox
#
# Without a VERSION it fetches both. Needs the package lists (apt-get update).
#
# Kernel packages carry their ABI number in the name; old ones leave the archive soon. So the
# meta-package is asked which one is current.
set -eu
cache=${1:?usage: fetch.sh CACHE [VERSION...]}
shift
[ $# -gt 0 ] || set -- 6.1 6.12
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

for version; do
    folder=$cache/$version
    [ -d "$folder" ] && continue
    # Each release of Debian has another kernel behind the name without a version.
    package=$(apt-cache depends "linux-image-$version-cloud-amd64" linux-image-cloud-amd64 2>/dev/null |
        sed -n "s/^ *Depends: \(linux-image-$version\.[0-9].*\)\$/\1/p" | head -n 1)
    [ -n "$package" ] || { echo "fetch.sh: there is no cloud kernel $version (apt-get update?)" >&2; exit 1; }
    unpack "$package" "$folder"
done

if [ ! -x "$cache/busybox" ]; then
    unpack busybox-static "$cache/busybox-package"
    cp "$cache/busybox-package/bin/busybox" "$cache/busybox"
fi
