"""Which backend runs a package, and its session: one row of a table per backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import host_arch, library_path
from edgevlm.backends.npu import simulated_session
from edgevlm.backends.onnx import OnnxSession
from edgevlm.backends.session import Session
from edgevlm.errors import BackendError, UsageError
from edgevlm.package import Package

KvBits = tuple[int, int] | list[tuple[int, int]]
"""(bits of keys, bits of values) of every layer, or a list with one pair per layer."""


@dataclass(frozen=True)
class SessionOptions:
    """What a caller may choose about a session; None takes the package's or the machine's own."""

    context: int | None = None
    threads: int | None = None
    kv_bits: list[tuple[int, int]] | None = None
    """Per layer; the native backend's cache alone."""


def open_session(package: Package, backend: str, options: SessionOptions) -> Session:
    """Opens `package` on `backend`, a name that `choose_backend` returned. Raises what the backend raises."""
    return _OPENERS[backend](package, options)


def choose_backend(package: Package, backend: str) -> str:
    """Returns `backend`, or for "auto" the native engine where the package is compiled for this machine and the library
    is there, else onnxruntime; an NPU's answers differ in the last digits, so it is asked for by name.

    Raises UsageError for an unknown name.
    """
    if backend == "auto":
        return "native" if package.compiled(host_arch()) and library_path().exists() else "onnx"
    if backend not in _OPENERS:
        raise UsageError(f"backend is {backend!r}, expected one of: {', '.join(('auto', *_OPENERS))}")
    return backend


def kv_bits_per_layer(package: Package, backend: str, kv_bits: KvBits | None) -> list[tuple[int, int]] | None:
    """Returns one pair per layer. Raises UsageError for a backend that keeps its cache in one form."""
    if kv_bits is None:
        return None
    if backend != "native":
        raise UsageError(f"kv_bits is for the native backend; {backend} has one form of cache")
    return kv_bits if isinstance(kv_bits, list) else [kv_bits] * package.manifest.decoder.num_hidden_layers


def _onnx(package: Package, options: SessionOptions) -> Session:
    if not package.manifest.graphs:
        archs = ", ".join(entry.arch for entry in package.manifest.compiled)
        raise BackendError(
            f"{package.path}: the package holds no ONNX graphs, only what the native engine of {archs} needs; load "
            "it there, or load the package that it was compiled from"
        )
    return OnnxSession(package, context=options.context, threads=options.threads)


def _native(package: Package, options: SessionOptions) -> Session:
    context = package.manifest.decoder.default_context if options.context is None else options.context
    return NativeSession(package, context=context, threads=options.threads, kv_bits=options.kv_bits)


def _qnn(package: Package, options: SessionOptions) -> Session:
    from edgevlm.backends.qnn import qnn_session

    return qnn_session(package, context=options.context)


def _qnn_simulation(package: Package, options: SessionOptions) -> Session:
    return simulated_session(package, context=options.context, threads=options.threads)


_OPENERS: dict[str, Callable[[Package, SessionOptions], Session]] = {
    "native": _native,
    "onnx": _onnx,
    "qnn": _qnn,
    "qnn-sim": _qnn_simulation,
}
