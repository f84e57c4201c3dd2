"""edgevlm's side of the comparison: `python -m tests.benchmarks.peers.own PACKAGE BACKEND THREADS [VARIANT]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np

from edgevlm.backends.native import NativeSession
from edgevlm.backends.onnx import OnnxSession
from edgevlm.package import open_package
from tests.benchmarks.peers.runner import CONTEXT, Generate, serve


def edgevlm_session(package: str, backend: str, n_threads: int, variant: str | None) -> Generate:
    """The package on one backend."""
    opened = open_package(package)
    session: NativeSession | OnnxSession
    if backend == "native":
        session = NativeSession(opened, context=CONTEXT, threads=n_threads, variant=variant)
    else:
        session = OnnxSession(opened, context=CONTEXT, threads=n_threads)

    def generate(ids: list[int]) -> Iterator[int]:
        session.truncate(0)
        logits = session.prefill([np.array(ids, np.int64)], np.arange(len(ids)))
        for position in range(len(ids), CONTEXT):
            token = int(logits.argmax())
            yield token
            logits = session.step(token, position)

    return generate


if __name__ == "__main__":
    path, backend_name, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    forced = sys.argv[4] if len(sys.argv) > 4 else None
    serve(lambda: edgevlm_session(path, backend_name, threads, forced))
