"""The process behind export.npu.htp: one job as JSON in, one answer as JSON in a file.

`compile` writes context binaries, the graphs of one job into one shared context; `place` only asks where nodes run.
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

VERBOSE = 0


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Does the job; returns the answer."""
    import onnxruntime

    placements, sessions = [], []
    graphs = job["graphs"]
    for number, (name, path) in enumerate(graphs):
        options = session_options(job["soc"], allow_cpu=job["allow_cpu"])
        target = Path(job["directory"]) / f"{name}.onnx"
        if job["action"] == "compile":
            entries = {"ep.context_enable": "1", "ep.context_file_path": str(target), "ep.context_embed_mode": "0"}
            if len(graphs) > 1:
                entries["ep.share_ep_contexts"] = "1"
            if len(graphs) > 1 and number == len(graphs) - 1:
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
        binaries = sum(file.stat().st_size for file in target.parent.glob("*.bin"))
        on_cpu = [node for provider, nodes in placed.items() if provider != PROVIDER for node in nodes]
        placements.append(
            {
                "graph": name,
                "npu": placed.get(PROVIDER, []),
                "cpu": on_cpu,
                "compile_s": seconds,
                "size_bytes": binaries,
            }
        )
    return {"placements": placements}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        found = main(given)
    except (EdgeVLMError, *ort_errors()) as failure:
        found = {"error": " ".join(str(failure).split())[:2000]}
    Path(given["answer"]).write_text(json.dumps(found))
