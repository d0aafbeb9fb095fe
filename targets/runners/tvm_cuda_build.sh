#!/bin/sh
# Compile kernels.cu for @ARCH@ and put the machine code into built/model.so, a copy of model.so that held the source.
# Usage: sh build.sh     NVCC and CXX name other compilers than nvcc and g++ (JetPack: /usr/local/cuda/bin/nvcc).
# Exit code: 0 built, 1 a compiler failed, 2 one of them is missing.
set -eu
cd "$(dirname "$0")"
# Where model.so holds its weights and bytecode, and the kernels' arguments: offset and length in bytes.
head_at=@HEAD_AT@ head=@HEAD@ map_at=@MAP_AT@ map=@MAP@

nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
cxx=${CXX:-g++}
for tool in "$nvcc" "$cxx"; do
    command -v "$tool" >/dev/null 2>&1 || {
        printf 'build.sh: %s is not found: install it, or name another one in NVCC or CXX\n' "$tool" >&2
        exit 2
    }
done

le64() { # a number as eight bytes, the least first
    n=$1
    for _ in 1 2 3 4 5 6 7 8; do
        printf '%b' "\\0$(printf '%03o' $((n % 256)))"
        n=$((n / 256))
    done
}

slice() { # offset, length
    tail -c +$(($1 + 1)) model.so | head -c "$2"
}

mkdir -p built
"$nvcc" -w -O3 -arch=@ARCH@ -fatbin -o built/kernels.fatbin kernels.cu
code=$(($(wc -c <built/kernels.fatbin)))
module=$((8 + 5 + map + 8 + code))
{
    le64 $((head + 8 + module))
    slice "$head_at" "$head"
    le64 "$module"
    le64 5
    printf 'cubin'
    slice "$map_at" "$map"
    le64 "$code"
    cat built/kernels.fatbin
} >built/library.bin
cat >built/library.s <<'END'
    .section .rodata
    .global __tvm_ffi__library_bin
__tvm_ffi__library_bin:
    .incbin "built/library.bin"
    .section .note.GNU-stack,"",%progbits
END
"$cxx" -shared -fPIC -s -Wl,--build-id=none -o built/model.so host.o built/library.s
rm built/library.bin built/library.s built/kernels.fatbin
echo "built/model.so"
