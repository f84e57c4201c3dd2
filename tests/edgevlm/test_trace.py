"""Chrome traces: one row per kind of work, times in microseconds from the first event."""

from __future__ import annotations

import json
from pathlib import Path

from edgevlm.trace import trace_json, write_trace

EVENTS = [
    ("prefill 128 tokens", 10.5, 10.75),
    ("load language", 10.0, 10.25),
    ("encode 4 tiles", 10.3, 10.6),
    ("user types", 10.25, 10.5),
    ("something new", 10.9, 11.0),
]


def test_rows_and_times() -> None:
    trace = trace_json(EVENTS)["traceEvents"]
    rows = {record["tid"]: record["args"]["name"] for record in trace if record["ph"] == "M"}
    spans = {record["name"]: record for record in trace if record["ph"] == "X"}
    assert {name: rows[span["tid"]] for name, span in spans.items()} == {
        "prefill 128 tokens": "language",
        "load language": "language",
        "encode 4 tiles": "vision",
        "user types": "conversation",
        "something new": "other",
    }
    assert spans["load language"]["ts"] == 0 and spans["load language"]["dur"] == 250_000
    assert spans["prefill 128 tokens"]["ts"] == 500_000
    assert [record["ts"] for record in trace if record["ph"] == "X"] == sorted(span["ts"] for span in spans.values())


def test_an_empty_trace_is_a_trace(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", [])
    data = json.loads((tmp_path / "trace.json").read_text())
    assert {record["ph"] for record in data["traceEvents"]} == {"M"}
