"""The page in a real browser without a network: what it shows, that nothing is amiss, that it fits."""

from __future__ import annotations

import dataclasses
import html
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgecompile.report import Model, Report, StepRow, render_html

Browse = Callable[..., str]


@pytest.fixture
def browse(apt_tool: Callable[[str, str], str], tmp_path: Path) -> Browse:
    """Open a file in headless Chromium; gives what it printed, fails if it complained of anything."""
    chromium = apt_tool("chromium", "chromium")

    def run(page: Path, *options: str) -> str:
        command = [
            chromium,
            *(
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--hide-scrollbars",
            ),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(
                "--enable-logging=stderr",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                "--virtual-time-budget=3000",
            ),
            f"--user-data-dir={tmp_path / 'profile'}",
            *options,
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        complaints = re.findall(r"^.*(?:CONSOLE|ERR_).*$", done.stderr, re.MULTILINE)
        assert complaints == []
        return done.stdout

    return run


@pytest.fixture
def page(report: Report, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_html(report), encoding="utf-8")
    return path


def test_the_browser_shows_the_verdict_and_every_step_without_loading_anything(browse: Browse, page: Path) -> None:
    shown = browse(page, "--dump-dom")
    assert '<span class="verdict pass">PASS</span>' in shown
    assert "<title>PASS: efficientnet_lite0 on host</title>" in shown
    assert shown.count('<th scope="row" class="name">') == 5


def test_the_browser_would_have_complained_of_a_page_that_loads_something(browse: Browse, page: Path) -> None:
    page.write_text(page.read_text().replace("</header>", '<img src="https://example.org/x.png" alt=""></header>'))
    with pytest.raises(AssertionError, match="Loading the image"):
        browse(page, "--dump-dom")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_is_neither_blank_nor_of_the_wrong_scheme(
    browse: Browse, page: Path, tmp_path: Path, scheme: str
) -> None:
    picture = tmp_path / "page.png"
    dark = ("--blink-settings=preferredColorScheme=0",) if scheme == "dark" else ()
    browse(page, f"--screenshot={picture}", "--window-size=1180,1400", *dark)
    with Image.open(picture) as image:
        pixels = image.convert("RGB")
    assert pixels.size == (1180, 1400)
    ground = {"light": (0xF7, 0xF8, 0xF8), "dark": (0x12, 0x15, 0x18)}[scheme]
    gain = {"light": (0x12, 0x80, 0x5F), "dark": (0x45, 0xB8, 0x93)}[scheme]
    counts = {colour: count for count, colour in pixels.getcolors(maxcolors=1 << 24) or []}
    assert pixels.getpixel((5, 700)) == ground
    assert counts.get(gain, 0) > 20, "no bar is drawn in the colour of a gain"
    assert len(counts) > 200


@pytest.mark.parametrize("width", [360, 400, 800, 1180])
def test_nothing_sticks_out_to_the_side(browse: Browse, report: Report, tmp_path: Path, width: int) -> None:
    long = "encoder.layer.11.attention.output.dense." * 6
    wide = dataclasses.replace(
        report,
        model=Model(long),
        pipeline=long,
        target=long,
        notes=(long,),
        steps=(*report.steps, StepRow(long)),
    )
    srcdoc = html.escape(render_html(wide))
    probe = tmp_path / "probe.html"
    probe.write_text(
        f'<iframe id="f" style="width:{width}px;height:900px;border:0" srcdoc="{srcdoc}"></iframe>'
        "<p id=p></p><script>addEventListener('load', () => { p.textContent = 'width '"
        " + f.contentDocument.documentElement.scrollWidth })</script>",
        encoding="utf-8",
    )
    assert f'<p id="p">width {width}</p>' in browse(probe, "--dump-dom", "--window-size=1300,1000")
