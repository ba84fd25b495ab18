#!/usr/bin/env bash
# Fuzzes for FUZZ (10m) in all, divided among the targets; with FUZZ_TARGET one of them has it all.
# What was found to be new is kept in fuzz/corpus, an input that breaks something in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "$*" >&2
    exit 2
}

all=$(sed -n 's|^path = "targets/\(.*\)\.rs"|\1|p' Cargo.toml)
targets=${FUZZ_TARGET:-$all}
for target in $targets; do
    grep -qx "$target" <<< "$all" || fail "FUZZ_TARGET=$target: must be one of" $all
done

time=${FUZZ:-10m}
[[ $time =~ ^([0-9]{1,6})([smh]?)$ ]] || fail "FUZZ=$time: must be a time, as in 90s, 10m or 1h"
case ${BASH_REMATCH[2]} in
    m) unit=60 ;;
    h) unit=3600 ;;
    *) unit=1 ;;
esac
each=$((10#${BASH_REMATCH[1]} * unit / $(wc -w <<< "$targets")))
((each > 0)) || fail "FUZZ=$time: must be a second for each target at least"

# Sanitizers are unstable options: a nightly compiler's, or one that is told to take them.
if cargo +nightly --version > /dev/null 2>&1; then
    export RUSTUP_TOOLCHAIN=nightly
else
    export RUSTC_BOOTSTRAP=1
fi
if ! cargo fuzz --version > /dev/null 2>&1; then
    echo "cargo-fuzz is missing: installing it"
    cargo install --locked cargo-fuzz
fi
cargo fuzz build

failed=
for target in $targets; do
    # The first folder is the one that grows. It begins with bytes of a useful length.
    folders=("corpus/$target")
    if [ ! -d "corpus/$target" ]; then
        mkdir -p "corpus/$target"
        for number in {1..32}; do
            head -c "$((number * 16))" /dev/urandom > "corpus/$target/random-$number"
        done
    fi
    case $target in
        fleet) more=../examples ;;
        scenario) more=../examples/scenarios ;;
        *) more= ;;
    esac
    for folder in "seeds/$target" $more; do
        [ ! -d "$folder" ] || folders+=("$folder")
    done
    echo "== $target: $each s"
    cargo fuzz run "$target" "${folders[@]}" -- \
        -max_total_time="$each" -max_len=4096 -len_control=0 -timeout=20 -print_final_stats=1 \
        || failed+=" $target"
done
[ -z "$failed" ] || fail "broken:$failed; see fuzz/artifacts, and keep such an input in fuzz/seeds"
