"""Decide what a foreign file is, by its content, and vet it: without torch, onnx or numpy, in a second."""

from __future__ import annotations

from pathlib import Path

from edgecompile.errors import InputError
from edgecompile.ingest.limits import Gate, Limits, Vetted
from edgecompile.ingest.rules import corrupt
from edgecompile.ingest.source import Source, opened
from edgecompile.ingest.vet_arrays import MAGIC, vet_npy, vet_npz
from edgecompile.ingest.vet_onnx import vet_onnx
from edgecompile.ingest.vet_pt import is_program_archive, root_of, vet_embedded, vet_torch_zip
from edgecompile.ingest.vet_pt2 import is_pt2, vet_pt2
from edgecompile.ingest.vet_safetensors import vet_safetensors
from edgecompile.ingest.vet_zip import members

_READS = "edgecompile reads .onnx, .pt2, .pt/.pth state dicts, .safetensors, .npz and .npy"
_ZIP_SUFFIXES = frozenset({".pt", ".pth", ".pt2", ".bin", ".ckpt", ".npz"})
_FOREIGN = {
    b"\x89HDF": "an HDF5 (Keras) file; export it to ONNX with tf2onnx",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"7z\xbc\xaf": "a 7z file; unpack it first",
    b"BZh": "a bzip2 file; unpack it first",
    b"\xfd7zX": "an xz file; unpack it first",
    b"\x7fELF": "a program, not a model",
}


def vet(path: Path, limits: Limits = Limits(), trust: bool = False) -> Vetted:  # noqa: B008
    """Vet a model, weights or array file; what passes may be parsed in the child (`parse_in_child`).

    Raises `InputError` (exit 2) for what is damaged or unknown and `Refused` (exit 8, with a rule of `RULES`)
    for what could harm. `trust` lifts the rules about pickles and code in torch files, and says so in
    `notes`; it lifts no limit and nothing about paths.
    """
    gate = Gate(path, limits, trust)
    with opened(path) as source:
        gate.at_most("EC-IN-001", "bytes", "file_bytes", source.size)
        return _by_content(source, gate)


def _by_content(source: Source, gate: Gate) -> Vetted:
    head = source.read(0, min(source.size, 512))
    suffix = gate.path.suffix.lower()
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"{source.where}: {what} ({_READS})")
    if head[4:8] == b"ORTM":
        raise InputError(f"{source.where}: an ONNX Runtime .ort file; give the .onnx file that it was made from")
    if head.startswith(b"PK"):
        return _zip(source, gate)
    if head.startswith(MAGIC[: len(head)]) and (len(head) >= len(MAGIC) or suffix == ".npy"):
        return vet_npy(source, gate)
    if head[257:262] == b"ustar" or (head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        vet_embedded(head, "", gate)
        return gate.vetted("torch_weights", source.size)
    if _like_safetensors(head, source.size) or suffix == ".safetensors":
        return vet_safetensors(source, gate)
    if suffix == ".npy" or suffix in _ZIP_SUFFIXES:
        raise corrupt(source.where, f"not a {suffix} file")
    return vet_onnx(source, gate)


def _like_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length <= size - 8


def _zip(source: Source, gate: Gate) -> Vetted:
    npz = gate.path.suffix.lower() == ".npz"
    found = members(source, gate, deflate=npz)
    names = frozenset(found)
    if names and all(name.endswith(".npy") for name in names):
        return vet_npz(source, found, gate)
    root = root_of(found) or ""
    inner = frozenset(name.removeprefix(root) for name in names)
    if is_pt2(inner):
        return vet_pt2(source, found, root, gate)
    if "data.pkl" in inner or is_program_archive(inner):
        return vet_torch_zip(source, found, root, gate)
    raise InputError(f"{source.where}: a zip file of another kind ({_READS})")
