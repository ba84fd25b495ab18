#!/bin/sh
# Unpacks the ELF kernel inside a bzImage to standard output.
#
#     vmlinux.sh VMLINUZ >VMLINUX
#
# Understands the compressions that Debian uses: LZ4 (6.1) and Zstandard (6.12). Where the payload
# lies: Documentation/arch/x86/boot.rst, setup_sects, payload_offset and payload_length.
set -eu
image=${1:?usage: vmlinux.sh VMLINUZ}
# Little-endian number of $2 bytes at offset $1.
number() { od -An -v -t "u$2" -j "$(($1))" -N "$2" "$image" | tr -d ' '; }
offset=$((($(number 0x1f1 1) + 1) * 512 + $(number 0x248 4)))
# The last four bytes are the unpacked length, which is not part of the stream.
length=$(($(number 0x24c 4) - 4))
case $(od -An -v -t x1 -j "$offset" -N 4 "$image" | tr -d ' ') in
    02214c18) unpack='lz4 -dc' ;;
    28b52ffd) unpack='zstd -dc' ;;
    *) echo "vmlinux.sh: $image is packed in an unknown way" >&2; exit 1 ;;
esac
tail -c "+$((offset + 1))" "$image" | head -c "$length" | $unpack
