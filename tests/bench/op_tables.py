"""Write the fused operators of the reference networks, and name the network of each measured latency.

`python -m tests.bench.op_tables` captures every network of `tests/networks` (five minutes), fuses it as `estimate` does
and writes `device_profiles/networks.csv`; it fills the columns network, family and architecture of
`device_profiles/latency.csv`. The predictor is fitted on these two tables.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from pathlib import Path

from edgecompile.cost.fuse import workload
from edgecompile.cost.reference import COLUMNS
from edgecompile.program import Program
from tests.networks import NETWORKS, find

FOLDER = Path(__file__).parents[2] / "device_profiles"


def main() -> None:
    rows: list[tuple[object, ...]] = []
    for network in NETWORKS.values():
        program = Program.capture(*network.build())
        load = workload(program)
        if load.unknown:
            sys.exit(f"{network.name}: no rule for {dict(load.unknown)}")
        counts = Counter(tuple(getattr(w, name) for name in COLUMNS[1:-1]) for w in load.works)
        rows += [(network.name, *values, count) for values, count in counts.items()]
        print(f"{network.name:24} {len(load.works):4} operators {load.macs / 1e9:8.3f} GMACs", flush=True)
    with (FOLDER / "networks.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    name_networks()


def name_networks() -> None:
    """Fill in which network each row of `latency.csv` measured."""
    path = FOLDER / "latency.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        network = find(row["model"], row["input_shape"])
        row["network"] = network.name if network else ""
        row["family"] = network.family if network else ""
        row["architecture"] = re.sub(r"_\d{3}$", "", network.name) if network else ""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
