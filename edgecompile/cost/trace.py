"""An estimate as a trace that Perfetto and chrome://tracing open: operators one after another, a track a unit."""

from __future__ import annotations

from typing import Any

from edgecompile.cost.result import Estimate


def events(model: str, found: Estimate) -> dict[str, Any]:
    """Trace events in the JSON format of Chrome's tracing; times in microseconds."""
    units = list(dict.fromkeys(row.unit for row in found.rows))
    said: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": f"{model} on {found.device} ({found.dtype})"}}
    ]
    said += [
        {"ph": "M", "pid": 1, "tid": units.index(unit), "name": "thread_name", "args": {"name": unit}} for unit in units
    ]
    now = 0.0
    for row in (found.rows[-1], *found.rows[:-1]):
        arguments = {
            "layer": row.layer,
            "dtype": row.dtype,
            "bound": row.bound,
            "MACs": row.macs,
            "bytes": row.bytes,
            "share of peak": round(row.share, 4),
            "interval us": [round(row.low_us, 3), round(row.high_us, 3)],
            "nodes": list(row.nodes),
        }
        said.append(
            {
                "ph": "X",
                "pid": 1,
                "tid": units.index(row.unit),
                "ts": round(now, 3),
                "dur": round(row.us, 3),
                "name": row.name,
                "cat": row.op,
                "args": arguments,
            }
        )
        now += row.us
    latency = found.latency_ms
    other = {"latency_ms": latency.value, "low": latency.low, "high": latency.high, "kind": latency.kind}
    return {"traceEvents": said, "displayTimeUnit": "ms", "otherData": other}
