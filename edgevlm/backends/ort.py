"""Opens one ONNX graph with onnxruntime: session options, thread count, names and types checked, errors translated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgevlm.cancel import CancelToken
from edgevlm.errors import BackendError, PackageError
from edgevlm.telemetry import import_onnxruntime


@dataclass(eq=False)
class Running:
    """One call in progress: its token ends it between two operators of a graph, `check` between two runs."""

    options: Any
    token: CancelToken

    def stop(self) -> None:
        """Stops the graph that is running now, and those that would run after it."""
        self.options.terminate = True

    def check(self) -> None:
        """Raises Cancelled when the token is set."""
        self.token.check()


@contextmanager
def cancellable(cancel: CancelToken | None) -> Iterator[Running]:
    """A call that `cancel` ends while the block lasts. Raises Cancelled when it is set already."""
    call = Running(import_onnxruntime().RunOptions(), CancelToken() if cancel is None else cancel)
    with call.token.stopping(call.stop):
        yield call


class Binding:
    """What a graph reads and writes: numpy memory, without a copy. Binding the same memory again costs nothing."""

    def __init__(self, io_binding: Any) -> None:
        self.io = io_binding
        self._bound: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {}

    def input(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Binds the first elements of `array`, seen as `shape`, and keeps it alive."""
        if self._is_new(name, array, shape):
            self.io.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def output(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
        """Binds `array`, seen as `shape`, as where the output is written."""
        if self._is_new(name, array, shape):
            self.io.bind_output(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def clear(self) -> None:
        """Forgets everything bound."""
        self._bound.clear()
        self.io.clear_binding_inputs()
        self.io.clear_binding_outputs()

    def _is_new(self, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> bool:
        bound = self._bound.get(name)
        if bound is not None and bound[0] is array and bound[1] == shape:
            return False
        self._bound[name] = (array, shape)
        return True


class Graph:
    """One graph, loaded; inputs and outputs are bound once and run without copies."""

    def __init__(self, path: Path, n_threads: int, *, keep_buffers: bool) -> None:
        """Loads `path`. Raises PackageError when onnxruntime refuses it.

        `keep_buffers` keeps activations' memory between runs: right for a graph that runs for every token, wrong for a
        tower, whose activations are many times larger and needed once.
        """
        onnxruntime = import_onnxruntime()

        self.path = path
        self._runtime = onnxruntime
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), _session_options(onnxruntime, n_threads, keep_buffers), providers=["CPUExecutionProvider"]
            )
        except ort_errors() as error:
            raise PackageError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot open the graph ({_first_line(error)}); "
                "export the package again"
            ) from None
        self.inputs = {item.name: item for item in self._session.get_inputs()}
        self.outputs = {item.name: item for item in self._session.get_outputs()}

    def require(self, inputs: dict[str, str], outputs: dict[str, str]) -> None:
        """Compares the graph's names and element types with the contract; extra outputs are allowed.

        Raises PackageError naming what is missing, unknown or of another type.
        """
        for kind, wanted, found in (("input", inputs, self.inputs), ("output", outputs, self.outputs)):
            missing = sorted(set(wanted) - set(found))
            unknown = sorted(set(found) - set(wanted)) if kind == "input" else []
            if missing or unknown:
                what = f"no {kind} {missing[0]!r}" if missing else f"an unknown {kind} {unknown[0]!r}"
                raise PackageError(f"{self.path}: the graph has {what}; the package was not written for this edgevlm")
            for name, element in wanted.items():
                if found[name].type != f"tensor({element})":
                    raise PackageError(
                        f"{self.path}: {kind} {name!r} is {found[name].type}, expected tensor({element}); "
                        "export the package again"
                    )

    def require_axis(self, name: str, axis: int, size: int) -> None:
        """Raises PackageError when a fixed axis of an input or output is not `size`."""
        shape = (self.inputs.get(name) or self.outputs[name]).shape
        if not -len(shape) <= axis < len(shape) or (isinstance(shape[axis], int) and shape[axis] != size):
            raise PackageError(
                f"{self.path}: axis {axis} of {name!r} with shape {shape} should be {size}, as edgevlm.json says; "
                "export the package again"
            )

    def binding(self) -> Binding:
        """Returns a new binding, empty."""
        return Binding(self._session.io_binding())

    def run(self, binding: Binding, running: Running) -> None:
        """Runs with what is bound. Raises Cancelled once the call's token is set, BackendError when the run fails."""
        running.check()
        try:
            self._session.run_with_iobinding(binding.io, running.options)
        except ort_errors() as error:
            running.check()
            raise BackendError(f"{self.path}: onnxruntime failed ({_first_line(error)})") from None


def return_free_memory() -> None:
    """Gives freed heap pages back to the system where the C library can (glibc); elsewhere does nothing."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _session_options(onnxruntime: Any, n_threads: int, keep_buffers: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # SmolLM2-135M, 2026-11-24: with the arena decoding is 0-10 % faster at the same peak
    options.enable_cpu_mem_arena = keep_buffers
    options.enable_mem_pattern = False
    # threads spin while a run lasts (decode needs it) and sleep between runs
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def ort_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that onnxruntime raises."""
    state = import_onnxruntime().capi.onnxruntime_pybind11_state
    declared = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (RuntimeError, *declared)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
