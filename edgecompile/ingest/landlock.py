"""Confine the writes of this process to some folders, with Linux's Landlock; reads stay as they are.

A parser that has been taken over can then change nothing outside its own folder. Landlock needs Linux 5.13
and no rights; see `man 7 landlock`. The numbers of its system calls are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION_FLAG = 1
_PATH_BENEATH = 1
_WRITE_FILE = 1 << 1
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_FIRST = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
_REFER, _TRUNCATE = 1 << 13, 1 << 14


def confine_writes(folders: Sequence[Path]) -> bool:
    """Allow writes below `folders` (and to /dev/null) only, for good; False when the kernel cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION_FLAG)
    if version < 1:
        return False
    handled = _FIRST | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = libc.syscall(_CREATE, ctypes.c_char_p(struct.pack("<Q", handled)), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    try:
        inside = handled & ~(_MAKE_CHAR | _MAKE_BLOCK)
        rules = [(str(folder), inside) for folder in folders]
        rules.append((os.devnull, handled & (_WRITE_FILE | _TRUNCATE)))
        if not all(_allow(libc, ruleset, path, rights) for path, rights in rules):
            return False
        return bool(libc.syscall(_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> bool:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = ctypes.c_char_p(struct.pack("<Qi", rights, descriptor))
        return bool(libc.syscall(_ADD, ruleset, _PATH_BENEATH, rule, 0) == 0)
    finally:
        os.close(descriptor)
