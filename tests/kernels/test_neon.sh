#!/usr/bin/env bash
# Cross-compiles kernels/ and its tests for 64-bit ARM and runs them under qemu: the NEON table and the portable one against the scalar
# reference. OpenBLAS, cmocka and utf8proc are seldom there for another processor: neon/ has stand-ins.
#   tests/kernels/test_neon.sh        (Debian: apt-get install gcc-aarch64-linux-gnu qemu-user)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cc=${AARCH64_CC:-aarch64-linux-gnu-gcc}
qemu=${AARCH64_QEMU:-qemu-aarch64}
for tool in "$cc" "$qemu"; do
    if ! command -v "$tool" > /dev/null; then
        echo "skipped: $tool is not installed (gcc-aarch64-linux-gnu, qemu-user)"
        exit 77
    fi
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags=(-std=gnu11 -O3 -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Werror -fno-math-errno -D_GNU_SOURCE
    -I "$root/tests/kernels/neon" -iquote "$root/kernels" -iquote "$root/src/base"
    # jansson.h is the same for every processor; only its types are used
    -idirafter "$(pkg-config --variable=includedir jansson)")
base=("$root"/src/base/{error,memory,rng,job}.c)
(cd "$work" && "$cc" "${flags[@]}" -c "$root"/kernels/*.c "${base[@]}" "$root/tests/kernels/neon/standins.c")
for test in ops pool; do
    "$cc" "${flags[@]}" -static -o "$work/$test" "$root/tests/kernels/test_$test.c" "$work"/*.o -lpthread -lm
done
export ESPALIER_TEST_DIR="$root/tests"
for test in ops pool; do
    echo "== $test, $("$cc" -dumpmachine) under $qemu"
    "$qemu" "$work/$test"
done
