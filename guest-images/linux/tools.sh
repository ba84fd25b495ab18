# For scripts that need tools which the machine may lack, and Debian's package lists. To be sourced,
# with `sudo` set to the command that makes who is not root become it.

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else $sudo "$@"; fi
}

missing=
# need TOOL PACKAGE: notes the package if the tool is not there.
need() { command -v "$1" >/dev/null || [ -x "/sbin/$1" ] || missing="$missing $2"; }

# Installs what was noted.
install_missing() {
    [ -n "$missing" ] || return 0
    echo "$0: installing$missing"
    as_root apt-get -q update
    # shellcheck disable=SC2086 -- a list of words
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $missing
}

# fetch FOLDER CACHE [VERSION...]: FOLDER/fetch.sh, once more with fresh package lists if need be.
fetch() {
    script=$1/fetch.sh
    shift
    "$script" "$@" && return
    echo "$0: trying again with fresh package lists"
    as_root apt-get -q update
    "$script" "$@"
}
