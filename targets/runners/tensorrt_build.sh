#!/bin/sh
# Builds model.plan with TensorRT's trtexec on the device that will run it, times it, and writes build_result.json.
# Usage: sh build.sh [--no-timing]     TRTEXEC=/path/to/trtexec overrides the search.
# Exit code: 0 built, 1 trtexec failed (see build.log), 2 no trtexec or wrong usage, 5 this TensorRT is refused.
set -eu
cd "$(dirname "$0")"

DTYPE=@DTYPE@
QUANTIZED=@QUANTIZED@
OPSET=@OPSET@
DLA=@DLA@
FALLBACK=@FALLBACK@
SPARSE=@SPARSE@

tool=none
version=unknown
flags=

plain() { # one line that is safe inside a JSON string
    printf '%s' "$1" | tr -d '"\134' | tr '\n\t\r' '   ' | tr -cd '[:print:]' | cut -c1-400
}

result() { # status, reason, timing
    printf '{"status": "%s", "reason": "%s", "trtexec": "%s", "tensorrt": "%s", "flags": "%s", "latency_ms": %s}\n' \
        "$1" "$(plain "$2")" "$(plain "$tool")" "$version" "$(plain "$flags")" "$3" >build_result.json.part
    mv build_result.json.part build_result.json
}

stop() { # exit code, status, reason
    result "$2" "$3" null
    printf 'build.sh: %s\n' "$3" >&2
    exit "$1"
}

timing=yes
case "${1-}" in
"") ;;
--no-timing) timing=no ;;
*) stop 2 failed "unknown argument $1; usage: sh build.sh [--no-timing]" ;;
esac

find_tool() {
    for candidate in "${TRTEXEC-}" "$(command -v trtexec || true)" /usr/src/tensorrt/bin/trtexec \
        /usr/local/tensorrt/bin/trtexec /opt/tensorrt/bin/trtexec; do
        if [ -n "$candidate" ] && [ -x "$candidate" ]; then
            printf '%s' "$candidate"
            return
        fi
    done
}

tool=$(find_tool)
if [ -z "$tool" ]; then
    tool=none
    stop 2 failed "trtexec is not found: install TensorRT (on JetPack: sudo apt install nvidia-tensorrt), or set TRTEXEC"
fi

help=$("$tool" --help 2>&1 || true)
digits=$(printf '%s\n' "$help" | sed -n 's/.*\[TensorRT v\([0-9]*\)\].*/\1/p' | head -n 1)
case ${#digits} in # 8601 is 8.6.1, 100300 is 10.3.0
4) major=$((digits / 1000)) minor=$((digits / 100 % 10)) patch=$((digits % 100)) ;;
5 | 6) major=$((digits / 10000)) minor=$((digits / 100 % 100)) patch=$((digits % 100)) ;;
*) stop 5 refused "$tool prints no version of TensorRT that is known" ;;
esac
version=$major.$minor.$patch
number=$((major * 100 + minor))

if [ "$number" -lt 806 ]; then
    stop 5 refused "TensorRT $version (JetPack 5 and older) reads ONNX up to opset 17 and no LayerNormalization, and torch \
exports opset 18 and up: install JetPack 6 (TensorRT 8.6) or later"
fi
if [ "$number" -lt 1000 ] && [ "$OPSET" -gt 17 ]; then
    stop 5 refused "TensorRT $version reads ONNX up to opset 17 and this model needs opset $OPSET: install JetPack 6.1 or later"
fi
if [ "$number" -lt 900 ] && [ "$DTYPE" = bf16 ]; then
    stop 5 refused "TensorRT $version has no BF16: install JetPack 6.1 (TensorRT 10.3) or later, or build with dtype=fp16"
fi

if [ "$DLA" != none ]; then
    if [ "$number" -gt 1007 ]; then
        stop 5 refused "TensorRT $version does not support the DLA (10.7 was the last): build without dla="
    fi
    flags="--fp16 --useDLACore=$DLA"
    if [ "$QUANTIZED" = yes ]; then # the scales are ours, the first line is what this version expects
        { printf 'TRT-%s-EntropyCalibration2\n' "$digits" && cat scales.txt; } >calibration.cache
        flags="$flags --int8 --calib=calibration.cache"
    fi
    if [ "$FALLBACK" = yes ]; then
        flags="$flags --allowGPUFallback"
    fi
elif [ "$number" -ge 1100 ]; then
    flags= # strongly typed is the only kind of network
elif case "$help" in *--stronglyTyped*) true ;; *) false ;; esac; then
    flags=--stronglyTyped
else # precisions are permissions: TensorRT may still choose wider ones
    case $DTYPE in
    fp16) flags=--fp16 ;;
    *) flags= ;;
    esac
    if [ "$QUANTIZED" = yes ]; then
        flags="$flags --int8"
    fi
    if [ "$DTYPE" = fp16 ] && [ -s fp32_layers.txt ]; then
        layers=$(sed 's/$/:fp32/' fp32_layers.txt | tr '\n' ',' | sed 's/,$//')
        flags="$flags --precisionConstraints=prefer --layerPrecisions=$layers"
    fi
fi

if [ "$SPARSE" = yes ]; then # weights with two zeros in every four: permission for kernels that skip them
    case "$help" in
    *--sparsity*) flags="${flags:+$flags }--sparsity=enable" ;;
    esac
fi

# shellcheck disable=SC2086 # the flags are words
if ! "$tool" --onnx=model.onnx --saveEngine=model.plan.part --skipInference --timingCacheFile=timing.cache \
    $flags >build.log 2>&1 || [ ! -s model.plan.part ]; then
    rm -f model.plan.part
    stop 1 failed "trtexec $version did not build the plan: $(grep '\[E\]' build.log | head -n 1 || true) (all of it: build.log)"
fi
mv model.plan.part model.plan # an older plan stays until its successor is there

if [ "$timing" = no ]; then
    result built "" null
    exit 0
fi
core=
if [ "$DLA" != none ]; then
    core=--useDLACore=$DLA
fi
rm -f times.json
# shellcheck disable=SC2086 # no word when there is no DLA
if ! "$tool" --loadEngine=model.plan --warmUp=1000 --duration=10 --iterations=100 --exportTimes=times.json $core \
    >timing.log 2>&1 || [ ! -s times.json ]; then
    stop 1 failed "trtexec $version built the plan and did not run it: $(grep '\[E\]' timing.log | head -n 1 || true) (timing.log)"
fi
numbers=$(tr '{' '\n' <times.json | sed -n 's/.*"latencyMs" *: *\([0-9.][0-9.eE+-]*\).*/\1/p' | sort -g)
count=$(printf '%s\n' "$numbers" | grep -c . || true)
if [ "$count" -eq 0 ]; then
    stop 1 failed "trtexec $version wrote times in a format that is not known: latencyMs was looked for"
fi
rank() { printf '%s\n' "$numbers" | sed -n "$(((count * $1 + 99) / 100))p"; }
result built "" "{\"median\": $(rank 50), \"p90\": $(rank 90), \"p99\": $(rank 99), \"count\": $count}"
printf 'build.sh: model.plan is built by TensorRT %s, median %s ms over %s runs\n' "$version" "$(rank 50)" "$count"
