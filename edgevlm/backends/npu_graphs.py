"""Fixed graphs of one package, held by name: loaded at their first use, run with a cancel, freed by prefix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from edgevlm.backends.ort import Running, ort_errors, return_free_memory
from edgevlm.errors import BackendError, PackageError
from edgevlm.package import Package
from edgevlm.spec import NpuEntry, NpuGraph
from edgevlm.telemetry import import_onnxruntime

Feeds = dict[str, NDArray[Any]]


class NpuGraphs(ABC):
    """onnxruntime sessions of fixed graphs, or of their parts; a subclass says on which device they are opened."""

    def __init__(self, package: Package, graphs: Iterable[NpuGraph]) -> None:
        self._package = package
        self._paths: dict[str, list[str]] = {}
        for graph in graphs:
            self._paths.setdefault(graph.name, []).append(graph.path)
        self._sessions: dict[str, list[Any]] = {}

    def run(self, name: str, feeds: Feeds, running: Running) -> list[NDArray[Any]]:
        """Returns the outputs in the graph's order; of parts, the last one's first output before the rows of all.

        Raises Cancelled after a cancel, between parts too, and BackendError when it fails.
        """
        known = dict(feeds)
        rows: list[NDArray[Any]] = []
        for session in self._held(name):
            running.check()
            names = [item.name for item in session.get_inputs()]
            if unknown := [item for item in names if item not in known]:
                raise PackageError(
                    f"{self._package.path}: a part of the NPU graph {name!r} takes {unknown[0]!r}, which no part "
                    "before it returns; compile the package again"
                )
            try:
                first, *others = session.run(None, {item: known[item] for item in names}, running.options)
            except ort_errors() as error:
                running.check()
                raise BackendError(f"the NPU graph {name!r} failed: {' '.join(str(error).split())[:300]}") from None
            known[session.get_outputs()[0].name] = first
            rows += others
        return [first, *rows]

    def release(self, prefix: str) -> None:
        """Frees graphs whose name starts with `prefix`."""
        self._sessions = {name: held for name, held in self._sessions.items() if not name.startswith(prefix)}
        return_free_memory()

    def loaded(self, prefix: str) -> bool:
        """Whether such a graph is held."""
        return any(name.startswith(prefix) for name in self._sessions)

    def _held(self, name: str) -> list[Any]:
        """The sessions of a graph's parts. Raises PackageError when the package has none of this name."""
        if name not in self._paths:
            known = ", ".join(sorted(self._paths))
            raise PackageError(f"{self._package.path}: there is no NPU graph {name!r} (there are: {known})")
        if name not in self._sessions:
            self._sessions[name] = [self._open(str(self._package.file(path))) for path in self._paths[name]]
        return self._sessions[name]

    @abstractmethod
    def _open(self, path: str) -> Any:
        """Returns a session of the file at `path`. Raises an error that says what to do when it cannot be opened."""


class SimulatedGraphs(NpuGraphs):
    """The quantised graphs on onnxruntime's CPU, as written: no operator is fused, each rounding takes place."""

    def __init__(self, package: Package, entry: NpuEntry, n_threads: int) -> None:
        super().__init__(package, entry.graphs)
        self._n_threads = n_threads

    def _open(self, path: str) -> Any:
        onnxruntime = import_onnxruntime()

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self._n_threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except ort_errors() as error:
            raise PackageError(
                f"{path}: onnxruntime cannot open the graph ({error}); compile the package again"
            ) from None
