#!/bin/sh
# Check this bundle on the device without Python: the hash of every file, then check.sh (golden outputs, latency).
# Usage: sh selftest.sh [arguments of check.sh]
# Exit code: 0 all is well, 4 outputs differ, 9 a file is not the one that was built, 2 it cannot run here.
set -u
cd "$(dirname "$0")" || exit 2

if command -v sha256sum >/dev/null 2>&1; then
    if ! found=$(LC_ALL=C sha256sum -c SHA256SUMS 2>/dev/null); then
        wrong=$(printf '%s\n' "$found" | sed -n 's/: FAILED.*$//p' | tr '\n' ' ')
        printf 'selftest.sh: not the files that were built: %s\n' "${wrong:-SHA256SUMS}" >&2
        exit 9
    fi
else
    echo "selftest.sh: no sha256sum here: hashes are not checked" >&2
fi
exec sh check.sh "$@"
