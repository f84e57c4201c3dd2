"""The process behind export.npu.htp: one job as JSON in, one answer as JSON in a file.

`compile` writes context binaries, on request one for all graphs of the job; `place` only asks where nodes run.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from edgevlm.backends.ort import ort_errors
from edgevlm.backends.qnn import PROVIDER, node_placement, session_options
from edgevlm.errors import EdgeVLMError
from edgevlm.telemetry import import_onnxruntime

VERBOSE = 0
FAILURES: tuple[type[Exception], ...] = (EdgeVLMError, *ort_errors())


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Does the job; returns the answer."""
    onnxruntime = import_onnxruntime()

    placements, sessions = [], []
    graphs = job["graphs"]
    for number, (name, path) in enumerate(graphs):
        options = session_options(job["soc"], allow_cpu=job["allow_cpu"])
        target = Path(job["directory"]) / f"{name}.onnx"
        if job["action"] == "compile":
            entries = {"ep.context_enable": "1", "ep.context_file_path": str(target), "ep.context_embed_mode": "0"}
            if job["share"]:
                entries["ep.share_ep_contexts"] = "1"
            if job["share"] and number == len(graphs) - 1:
                entries["ep.stop_share_ep_contexts"] = "1"
            for key, value in entries.items():
                options.add_session_config_entry(key, value)
        else:
            onnxruntime.set_default_logger_severity(VERBOSE)
            options.log_severity_level = VERBOSE
        start = time.perf_counter()
        session = onnxruntime.InferenceSession(path, options)
        seconds = time.perf_counter() - start
        sessions.append(session)
        placed = node_placement(session)
        binary = target.parent / f"{name}_qnn.bin"
        on_cpu = [node for provider, nodes in placed.items() if provider != PROVIDER for node in nodes]
        placements.append(
            {
                "graph": name,
                "npu": placed.get(PROVIDER, []),
                "cpu": on_cpu,
                "compile_s": seconds,
                "size_bytes": binary.stat().st_size if binary.exists() else 0,
            }
        )
    return {"placements": placements}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        found = main(given)
    except FAILURES as failure:
        found = {"error": " ".join(str(failure).split())[:2000]}
    Path(given["answer"]).write_text(json.dumps(found))
