"""`edgecompile estimate` in a process: what it prints, the files it writes, and mistakes as one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import warm

RECURRENT = """

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(16, 8, batch_first=True)

    def forward(self, text):
        return self.rnn(text)[0]


def reader():
    return Reader().eval(), {"text": torch.zeros(2, 6, 16)}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("estimate")
    warm.write_user_files(made)
    with (made / "net.py").open("a") as file:
        file.write(RECURRENT)
    return made


def test_the_verb_prints_json_and_writes_its_files(folder: Path) -> None:
    out = ("--html", "page.html", "--trace", "trace.json", "--json")
    ended = warm.cli(folder, "estimate", "net.py:net", "--device", "agx-orin-64gb:30W", *out).wait()
    assert (ended.code, ended.err) == (0, "")
    body = json.loads(ended.out)
    assert (body["device"], body["dtype"], body["latency_ms"]["kind"]) == ("agx-orin-64gb:30W", "fp16", "unvalidated")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    lengths = [event["dur"] for event in events if event["ph"] == "X"]
    assert sum(lengths) == pytest.approx(1e3 * body["latency_ms"]["value"], rel=0.01)
    ends = [event["ts"] + event["dur"] for event in events if event["ph"] == "X"]
    starts = [event["ts"] for event in events if event["ph"] == "X"]
    assert starts[1:] == pytest.approx(ends[:-1], abs=0.01)
    assert "agx-orin-64gb:30W" in (folder / "page.html").read_text()


def test_the_verb_prints_a_table(folder: Path) -> None:
    ended = warm.cli(
        folder, "estimate", "net.py:net", "--device", "galaxy-s24", "--dtype", "int8", "--batch", "4"
    ).wait()
    assert (ended.code, ended.err) == (0, "")
    assert "on galaxy-s24 in int8, batch 4: " in ended.out
    assert "90 % interval" in ended.out
    assert "Traceback" not in ended.out
    assert sum(line.startswith("conv2d") for line in ended.out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("net.py:net", "--device", "galaxy-s42"), 2, "unknown device 'galaxy-s42'; did you mean galaxy-s2"),
        (("net.py:net", "--device", "galaxy-s24", "--dtype", "int7"), 2, "--dtype int7: not a dtype"),
        (("net.py:net", "--device", "galaxy-s24", "--unit", "GPU"), 2, "galaxy-s24 has no unit 'GPU'"),
        (("net.py:net", "--device", "galaxy-s24", "--sparse"), 2, "has no 2:4 rate in fp16"),
        (("net.py:net", "--device", "gone.toml"), 2, "--device gone.toml: no such file"),
        (("net.py:net", "--device", "galaxy-s24", "--batch", "0"), 2, "Invalid value for '--batch'"),
        (("net.py:net",), 2, "Missing option '--device'"),
        (("digit", "--device", "galaxy-s24"), 2, "unknown model 'digit'; did you mean digits?"),
        (("net.py:reader", "--device", "iphone-14-pro", "--no-fallback"), 5, "iphone-14-pro, ANE: recurrent (lstm, "),
        (("net.py:net", "--device", "galaxy-s24", "--html", "net.py/page.html"), 2, "net.py"),
    ],
)
def test_a_mistake_of_the_verb_is_one_line(folder: Path, arguments: tuple[str, ...], code: int, text: str) -> None:
    ended = warm.cli(folder, "estimate", *arguments).wait()
    assert len(ended.err.splitlines()) == 1, ended.err
    assert ended.err.startswith("edgecompile: ")
    assert text in ended.err
    assert ended.code == code
