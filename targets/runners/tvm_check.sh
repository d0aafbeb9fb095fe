#!/bin/sh
# Run tvm_run on the golden inputs: on the CPU and, where the bundle has GPU code and the machine a GPU, on that.
# Usage: sh check.sh [cpu|cuda [ROUNDS]]
# TVM_LIBRARY_PATH: the folders of libtvm_runtime.so and libtvm_ffi.so, with a colon between them; without it those of
# python3's apache-tvm and apache-tvm-ffi. EDGECOMPILE_RUN: what tvm_run is run by, `qemu-aarch64-static -L ROOT` say.
# Exit code: 0 outputs are equal, 4 they are not, 2 it cannot run here; result.json says the rest.
set -u
cd "$(dirname "$0")" || exit 2
machine=@MACHINE@

stop() {
    printf 'check.sh: %s\n' "$1" >&2
    exit 2
}

packaged() {
    python3 -c 'import importlib.util as u, os
print(":".join(os.path.join(os.path.dirname(u.find_spec(n).origin), "lib") for n in ("tvm", "tvm_ffi")))' 2>/dev/null
}

here=$(uname -m)
if [ -z "${EDGECOMPILE_RUN:-}" ] && [ "$here" != "$machine" ]; then
    stop "this is $here and the bundle is for $machine: copy it there, or name an emulator in EDGECOMPILE_RUN"
fi
libraries=${TVM_LIBRARY_PATH:-$(packaged)}
[ -n "$libraries" ] || stop "no TVM runtime: pip install @PACKAGES@, or set TVM_LIBRARY_PATH to the folders of its libraries"
[ -x tvm_run ] || chmod +x tvm_run || stop "tvm_run is not executable"

run() { # device
    # EDGECOMPILE_RUN is a command with arguments
    # shellcheck disable=SC2086
    LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" TVM_NUM_THREADS="${TVM_NUM_THREADS:-1}" \
        ${EDGECOMPILE_RUN:-} ./tvm_run . "$@"
    code=$?
    case $code in
    0) ;;
    4) exit 4 ;;
    *) stop "tvm_run did not run on $1 (it ended with $code)" ;;
    esac
}

if [ $# -gt 0 ]; then
    run "$@"
    exit
fi
run cpu
library=$(sed -n 's/^library cuda //p' interface.txt)
if [ -n "$library" ]; then
    if [ -e /dev/nvidia0 ] || [ -e /dev/nvhost-gpu ] || [ -e /dev/nvgpu/igpu0 ]; then
        [ -f "$library" ] || stop "$library is not built yet: run sh build.sh first"
        run cuda
    else
        echo "NOT RUN: cuda: no GPU here"
    fi
fi
