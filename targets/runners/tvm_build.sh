#!/bin/sh
# Build tvm_run again from its source: TVM=/path/to/unpacked/wheels sh build_runner.sh
# The bundle has one for glibc 2.34 and later; this is for older systems, and for whoever wants no foreign program.
# TVM holds tvm_ffi/{lib,include} out of the wheel of apache-tvm-ffi for this machine:
#   pip download --no-deps --only-binary :all: @PACKAGES@
# CXX may name a cross compiler.
set -eu
: "${TVM:?set TVM to the folder of the unpacked wheels}"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
"${CXX:-g++}" -std=c++17 -O2 "$here/tvm_run.cc" -o "$here/tvm_run" \
  -I"$TVM/tvm_ffi/include" -L"$TVM/tvm_ffi/lib" -ltvm_ffi -ldl
