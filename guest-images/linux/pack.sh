# Functions for making initramfs trees; sourced by build.sh and by the lab.

# Copies the modules $3.. of the unpacked kernel package $1 to the tree $2 in the order given, which
# must be that of their dependencies. What the kernel has built in is skipped.
add_modules() {
    modules_kernel=$1 modules_tree=$2
    shift 2
    mkdir -p "$modules_tree/modules"
    for module; do
        file=$(find "$modules_kernel/lib/modules" -name "$module.ko*" | head -n 1)
        case $file in
            '') continue ;;
            *.xz) xz -dc "$file" >"$modules_tree/modules/$module.ko" ;;
            *) cp "$file" "$modules_tree/modules/$module.ko" ;;
        esac
        echo "$module" >>"$modules_tree/modules/order"
    done
}

# Starts the tree $2 with the BusyBox $1 and the init program $3.
start_tree() {
    rm -rf "$2"
    mkdir -p "$2/bin" "$2/dev" "$2/proc" "$2/sys" "$2/tmp" "$2/mnt"
    cp "$1" "$2/bin/busybox"
    cp "$3" "$2/init"
    chmod 755 "$2/bin/busybox" "$2/init"
    # Not `busybox --install` at boot: a root file system may be read-only.
    for applet in $("$1" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$2/bin/$applet"
    done
}

# Packs the tree $1 into a cpio archive on standard output: the same bytes from the same files.
pack_tree() {
    (cd "$1" && find . -exec touch -h -d @0 {} + &&
        find . -print0 | LC_ALL=C sort -z |
        cpio --quiet -0 -o -H newc -R 0:0 --reproducible)
}
