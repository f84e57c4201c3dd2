"""Qualcomm's NPU through onnxruntime's QNN provider: the context binaries of a package, or an x86-64 emulation of them.

The provider is a package of its own (`pip install 'edgevlm[qnn]'`) under Qualcomm's licence; nothing of it is shipped
with this one. Falling back to the CPU is switched off: a graph runs on the NPU or does not load.
"""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from edgevlm.backends.npu import NpuSession, npu_entry
from edgevlm.backends.npu_graphs import Feeds, NpuGraphs
from edgevlm.backends.ort import Running, ort_errors
from edgevlm.cache import cache_directory
from edgevlm.errors import BackendError
from edgevlm.package import Package
from edgevlm.spec import NpuTarget
from edgevlm.telemetry import import_onnxruntime

PROVIDER = "QNN"
SOCS: dict[str, tuple[str, str, str]] = {
    "SM8550": ("43", "73", "v73"),
    "SM8650": ("57", "75", "v75"),
    "SM8750": ("69", "79", "v79"),
    "SM8850": ("87", "81", "v81"),
}
"""Chip → (soc_model, htp_arch, name). Source: QNN SDK's table of chips as quoted by onnxruntime's users; the compiler
accepts each pair and makes a different binary of it (docs/npu.md says what was not checked)."""
INSTALL = "pip install 'edgevlm[qnn]'"
LICENCE = (
    "onnxruntime-qnn is under Qualcomm's own licence (the PDF beside the installed package): it may be used, measured "
    "and shipped inside an application, not apart from one"
)
_devices: list[Any] = []


def provider_device() -> Any:
    """Returns the provider's device, registering the library at the first call. Raises BackendError without it."""
    if not _devices:
        onnxruntime = import_onnxruntime()

        try:
            import onnxruntime_qnn
        except ImportError:
            raise BackendError(f"the NPU needs onnxruntime's QNN provider: {INSTALL}") from None
        try:
            onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
            found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
        except ort_errors() as error:
            raise BackendError(f"the QNN provider cannot be loaded ({' '.join(str(error).split())[:300]})") from None
        if not found:
            raise BackendError("the QNN provider found no device here; it needs a Snapdragon chip or x86-64 Linux")
        _devices.append(found[0])
    return _devices[0]


def provider_version() -> str:
    """Returns the name and version of the provider's package."""
    from importlib import metadata

    return f"onnxruntime-qnn {metadata.version('onnxruntime-qnn')}"


def licence_notice() -> str | None:
    """Returns LICENCE, but once per machine and version of the provider; None after that.

    Where the cache cannot be written it is returned every time.
    """
    shown = cache_directory() / f"{provider_version().replace(' ', '-')}-licence-shown"
    try:
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.touch(exist_ok=False)
    except FileExistsError:
        return LICENCE if not shown.is_file() else None
    except OSError:
        return LICENCE
    return LICENCE


def session_options(soc: str | None, *, allow_cpu: bool = False, **provider: str) -> Any:
    """Returns options that put a graph on the HTP of `soc` (None: of this machine), `provider` being more of QNN's."""
    onnxruntime = import_onnxruntime()

    device = provider_device()
    import onnxruntime_qnn

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    chosen = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "offload_graph_io_quantization": "0",
        "htp_performance_mode": "burst",
        "htp_graph_finalization_optimization_mode": "3",
        **provider,
    }
    if soc is not None:
        model, arch, _ = SOCS[soc]
        chosen |= {"soc_model": model, "htp_arch": arch}
    options.add_provider_for_devices([device], chosen)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not allow_cpu:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


class QnnGraphs(NpuGraphs):
    """The context binaries of one target, loaded graph by graph at their first use."""

    def __init__(self, package: Package, target: NpuTarget) -> None:
        """Raises BackendError without the provider, and for binaries that only a phone can load."""
        provider_device()
        if target.shared_weights and platform.machine() == "x86_64":
            raise BackendError(
                f"{package.path}: the binaries for {target.soc} share their weights, which the x86-64 emulator cannot "
                "load; compile without --share-weights to run them here"
            )
        super().__init__(package, target.graphs)
        self._target = target

    def run(self, name: str, feeds: Feeds, running: Running) -> list[NDArray[Any]]:
        """Runs one graph on the NPU. Raises Cancelled, and BackendError when it fails or does not fit the NPU."""
        with quiet_stdout():
            return super().run(name, feeds, running)

    def _open(self, path: str) -> Any:
        onnxruntime = import_onnxruntime()

        options = session_options(self._target.soc, allow_cpu=bool(self._target.on_cpu))
        try:
            return onnxruntime.InferenceSession(path, options)
        except ort_errors() as error:
            raise BackendError(
                f"{path}: the NPU refuses the graph compiled for {self._target.soc} with {self._target.sdk} "
                f"({' '.join(str(error).split())[:300]}); compile it for this chip and provider"
            ) from None


def qnn_session(package: Package, *, context: int | None = None, soc: str | None = None) -> NpuSession:
    """Returns a session on the NPU. Raises BackendError when the package was not compiled for it."""
    targets = npu_entry(package).targets
    target = next((t for t in targets if soc in (None, t.soc)), None)
    if target is None:
        held = ", ".join(t.soc for t in targets) or "none"
        raise BackendError(f"{package.path}: not compiled for {soc or 'any chip'} (there is: {held}); compile it")
    return NpuSession(package, QnnGraphs(package, target), context=context)


def node_placement(session: Any) -> dict[str, list[str]]:
    """Returns node names and operators ('name (Op)') by provider, as onnxruntime recorded them."""
    placed: dict[str, list[str]] = {}
    for group in session.get_provider_graph_assignment_info():
        placed.setdefault(group.ep_name, []).extend(f"{node.name} ({node.op_type})" for node in group.get_nodes())
    return placed


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Sends what the provider's C++ prints to stdout to stderr: stdout is the answer's."""
    import os

    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
