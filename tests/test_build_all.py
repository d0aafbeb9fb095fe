"""One command for every device: each bundle says what ran, and verifies; slow, for it runs every toolchain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgecompile
from edgecompile.building.check import check
from edgecompile.store import Cache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # TVM's GPU schedules take minutes on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("all")
    report = edgecompile.build(
        "digits", target="all", max_drop="1pp", out=str(made / "out"), cache=Cache(made / "cache")
    )
    assert report.exit_code == 0, [b for b in report.builds if b.exit_code]
    return made / "out"


def test_every_bundle_verifies(folder: Path) -> None:
    bundles = sorted(p.parent for p in folder.glob("*/manifest.json"))
    body = json.loads((folder / "report.json").read_text())
    assert sorted(row["deployment"] for row in body["builds"]) == [b.name for b in bundles]
    for bundle in bundles:
        found = check(bundle, rounds=8)
        assert found.exit_code == 0, (bundle.name, found.findings)
        states = {f.what: f.state for f in found.findings}
        ran = not found.facts["not_run_here"] or states["outputs"] == "ok"
        assert ran or states["outputs"] == "not run"


def test_each_says_what_it_is_for_and_how_fast(folder: Path) -> None:
    for path in folder.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        blind = path.parent.name in ("tvm@a100-sxm-80gb", "tvm@agx-orin-64gb", "tvm@galaxy-s24")
        assert ("score" not in manifest) == blind, "what cannot run here has no score"
        assert blind or manifest["score"]["metric"] == "top1"
        kind = manifest["latency"]["kind"]
        assert (kind == "measured") == (manifest["device"] == "host")
        assert kind == "measured" or manifest["latency"]["ms"] > 0
        gpu = manifest["facts"].get("arch", "").startswith("sm_")
        assert manifest["pipeline"].endswith("merge_linear" if gpu else "quantize")


def test_a_flipped_byte_is_found_by_name(folder: Path) -> None:
    for bundle in sorted(p.parent for p in folder.glob("*/manifest.json")):
        manifest = json.loads((bundle / "manifest.json").read_text())
        name = max(manifest["files"], key=lambda n: manifest["files"][n]["bytes"])
        whole = (bundle / name).read_bytes()
        (bundle / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        found = check(bundle)
        (bundle / name).write_bytes(whole)
        assert found.exit_code == 9
        assert f"{name} is not the file that was built" in found.findings[0].said
