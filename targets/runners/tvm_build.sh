#!/bin/sh
# Build tvm_run, which runs model.so on the golden inputs without Python: TVM=/path/to/unpacked/wheels ./build.sh
# TVM holds tvm/lib and tvm_ffi/{lib,include} out of the aarch64 wheels of apache-tvm and apache-tvm-ffi:
#   pip download --no-deps --only-binary :all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
#     --platform manylinux_2_24_aarch64 --python-version 3.11 apache-tvm==0.27.0.post1 apache-tvm-ffi==0.1.14.post0
# CXX may name a cross compiler.
set -eu
: "${TVM:?set TVM to the folder of the unpacked wheels}"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
"${CXX:-g++}" -std=c++17 -O2 "$here/tvm_run.cc" -o "$here/tvm_run" \
  -I"$TVM/tvm_ffi/include" -L"$TVM/tvm_ffi/lib" -ltvm_ffi -ldl
echo "LD_LIBRARY_PATH=$TVM/tvm/lib:$TVM/tvm_ffi/lib $here/tvm_run $here"
