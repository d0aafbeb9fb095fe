#!/bin/sh
# Link model.so from objects.tar with the Android NDK: NDK=/path/to/ndk ./build.sh
# A Linux cross compiler would link too, but against glibc, which Android does not have.
set -eu
: "${NDK:?set NDK to the folder of the Android NDK}"
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
set -- "$NDK"/toolchains/llvm/prebuilt/*/bin/aarch64-linux-android24-clang++
compiler=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tar -xf "$here/objects.tar" -C "$work"
"$compiler" -shared -o "$here/model.so" "$work"/*.o -lm
echo "$here/model.so"
