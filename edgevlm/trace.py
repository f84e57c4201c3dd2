"""Chrome trace JSON (chrome://tracing, Perfetto) from what the stages recorded: one row per kind of work."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgevlm.whole_file import write_whole

Event = tuple[str, float, float]
"""(name, start_s, end_s) on the time.perf_counter clock."""

ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("conversation", ("user", "attach", "answer", "cancel")),
    ("pictures", ("prepare",)),
    ("vision", ("load vision", "encode", "release vision")),
    ("language", ("load language", "prefill", "decode", "score", "accept", "release kv")),
)
"""Row name and what the names of its events begin with; the rest goes to a row 'other'."""


def trace_json(events: Iterable[Event]) -> dict[str, Any]:
    """Returns the trace as plain JSON data; times are microseconds since the first event."""
    ordered = sorted(events, key=lambda event: (event[1], -event[2]))
    origin = ordered[0][1] if ordered else 0.0
    names = [name for name, _ in ROWS] + ["other"]
    records: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}
        for tid, name in enumerate(names, start=1)
    ]
    records += [
        {
            "ph": "X",
            "pid": 1,
            "tid": _row(name) + 1,
            "name": name,
            "ts": round((start - origin) * 1e6, 1),
            "dur": round((end - start) * 1e6, 1),
        }
        for name, start, end in ordered
    ]
    return {"displayTimeUnit": "ms", "traceEvents": records}


def write_trace(path: str | Path, events: Iterable[Event]) -> None:
    """Writes the trace file. Raises UsageError when it cannot be written."""
    write_whole(Path(path), (json.dumps(trace_json(events)) + "\n").encode("utf-8"), "the trace")


def _row(name: str) -> int:
    for index, (_, prefixes) in enumerate(ROWS):
        if name.startswith(prefixes):
            return index
    return len(ROWS)
