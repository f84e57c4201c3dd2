"""ctypes bindings of libedgevlm: the C ABI of edgevlm/engine/edgevlm.h, with its errors as exceptions."""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.cancel import Cancelled
from edgevlm.errors import BackendError, ContextFullError, EdgeVLMError, PackageError, UsageError

ABI_VERSION = 5
LIBRARY_VARIABLE = "EDGEVLM_LIBRARY"
"""Environment variable that names another library file."""

_CANCELLED = 130
_ERRORS: dict[int, type[EdgeVLMError]] = {2: UsageError, 3: PackageError, 7: ContextFullError, 8: BackendError}


class ModelOptions(ctypes.Structure):
    """ev_model_options."""

    _fields_ = [("n_threads", ctypes.c_int32), ("variant", ctypes.c_char_p), ("fast_cores", ctypes.c_int32)]


class ModelInfo(ctypes.Structure):
    """ev_model_info."""

    _fields_ = [
        ("hidden_size", ctypes.c_int32),
        ("vocab_size", ctypes.c_int32),
        ("n_layers", ctypes.c_int32),
        ("max_positions", ctypes.c_int32),
        ("chunk_tokens", ctypes.c_int32),
        ("weights_bytes", ctypes.c_int64),
        ("n_threads", ctypes.c_int32),
        ("variant", ctypes.c_char_p),
    ]


class TowerInfo(ctypes.Structure):
    """ev_tower_info."""

    _fields_ = [
        ("tile_px", ctypes.c_int32),
        ("n_channels", ctypes.c_int32),
        ("tokens_per_tile", ctypes.c_int32),
        ("hidden_size", ctypes.c_int32),
        ("max_batch", ctypes.c_int32),
        ("weights_bytes", ctypes.c_int64),
        ("arena_bytes", ctypes.c_int64),
    ]


class ProfileEntry(ctypes.Structure):
    """ev_profile_entry."""

    _fields_ = [
        ("kernel", ctypes.c_char * 48),
        ("calls", ctypes.c_int64),
        ("seconds", ctypes.c_double),
        ("operations", ctypes.c_double),
        ("bytes", ctypes.c_double),
    ]


@dataclass(frozen=True)
class KernelTime:
    """One kernel's share of a stage; operations count a multiplication and an addition as two."""

    kernel: str
    calls: int
    seconds: float
    operations: float
    bytes: float


MAX_KERNELS = 64
"""More than a model uses: a handful of GEMM forms, attention forms and the small ones."""


class Limits(ctypes.Structure):
    """ev_limits."""

    _fields_ = [("giga_operations_per_s", ctypes.c_double), ("giga_bytes_per_s", ctypes.c_double)]


class Segment(ctypes.Structure):
    """ev_segment."""

    _fields_ = [("ids", ctypes.c_void_p), ("features", ctypes.c_void_p), ("n", ctypes.c_int32)]


_POINTER = ctypes.c_void_p
_INT = ctypes.c_int32
_LONG = ctypes.c_int64
# name: (result, arguments); a result of None means ev_status.
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ev_abi_version": (_INT, ()),
    "ev_last_error": (ctypes.c_char_p, ()),
    "ev_variants": (_INT, (_POINTER, _INT)),
    "ev_model_open": (None, (ctypes.c_char_p, _POINTER, _POINTER)),
    "ev_model_info_get": (_INT, (_POINTER, _POINTER)),
    "ev_model_close": (_INT, (_POINTER,)),
    "ev_context_new": (None, (_POINTER, _INT, _POINTER, _POINTER)),
    "ev_context_bytes": (ctypes.c_int64, (_POINTER,)),
    "ev_context_free": (_INT, (_POINTER,)),
    "ev_prefill": (None, (_POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER)),
    "ev_step": (None, (_POINTER, _INT, _INT, _POINTER, _POINTER)),
    "ev_score_tree": (None, (_POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER)),
    "ev_accept": (None, (_POINTER, _POINTER, _INT)),
    "ev_truncate": (None, (_POINTER, _INT)),
    "ev_n_past": (_INT, (_POINTER,)),
    "ev_snapshot_bytes": (ctypes.c_int64, (_POINTER,)),
    "ev_snapshot": (None, (_POINTER, _POINTER, ctypes.c_int64)),
    "ev_restore": (None, (_POINTER, _POINTER, ctypes.c_int64)),
    "ev_profile_start": (_INT, (_POINTER, _INT)),
    "ev_profile_get": (_INT, (_POINTER, _POINTER, _INT)),
    "ev_tower_profile_start": (_INT, (_POINTER, _INT)),
    "ev_tower_profile_get": (_INT, (_POINTER, _POINTER, _INT)),
    "ev_model_limits": (None, (_POINTER, _POINTER)),
    "ev_plan_tiles": (None, (_INT, _INT, _POINTER, _INT, _POINTER)),
    "ev_upright_size": (_INT, (_INT, _INT, _INT, _POINTER, _POINTER)),
    "ev_image_scratch_bytes": (None, (_POINTER, _POINTER, _POINTER)),
    "ev_prepare_tiles": (
        None,
        (_POINTER, _POINTER, _POINTER, _INT, _INT, _POINTER, _LONG, _POINTER, _LONG, _POINTER, _LONG),
    ),
    "ev_sampler_new": (None, (_INT, _POINTER)),
    "ev_sampler_begin": (None, (_POINTER, _POINTER)),
    "ev_sampler_next": (None, (_POINTER, _POINTER, _POINTER, _INT, _POINTER)),
    "ev_sampler_free": (_INT, (_POINTER,)),
    "ev_tower_new": (None, (_POINTER, _POINTER)),
    "ev_tower_info_get": (_INT, (_POINTER, _POINTER)),
    "ev_encode": (None, (_POINTER, _POINTER, _INT, _POINTER, _POINTER)),
    "ev_tower_free": (_INT, (_POINTER,)),
}


def host_arch() -> str:
    """The name of this machine's architecture in package paths: 'x86_64' or 'arm64'."""
    machine = platform.machine().lower()
    return "arm64" if machine in ("aarch64", "arm64") else machine.replace("amd64", "x86_64")


def library_path() -> Path:
    """The library for this machine: EDGEVLM_LIBRARY, else the one installed beside this module."""
    override = os.environ.get(LIBRARY_VARIABLE)
    return Path(override) if override else Path(__file__).with_name(f"libedgevlm-{host_arch()}.so")


class NativeLibrary:
    """The loaded library. `call` raises the exception that belongs to a failed call's status."""

    def __init__(self, path: Path) -> None:
        """Raises BackendError when the file is missing, cannot be loaded or has another ABI version."""
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise BackendError(f"cannot load the native library {path}: {error}") from error
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise BackendError(f"{path} has no function {name}; build the library again") from error
            function.argtypes = list(arguments)
            function.restype = _INT if result is None else result
        version = library.ev_abi_version()
        if version != ABI_VERSION:
            raise BackendError(f"{path} has ABI version {version}, this edgevlm expects {ABI_VERSION}")
        self._library: Any = library

    def kernel_times(self, function: str, owner: ctypes.c_void_p) -> tuple[KernelTime, ...]:
        """What ev_profile_get or ev_tower_profile_get tells of `owner`, the slowest kernel first."""
        entries = (ProfileEntry * MAX_KERNELS)()
        count = int(self.call(function, owner, entries, MAX_KERNELS))
        found = [
            KernelTime(e.kernel.decode(), e.calls, e.seconds, e.operations, e.bytes)
            for e in entries[: min(count, MAX_KERNELS)]
        ]
        return tuple(sorted(found, key=lambda kernel: -kernel.seconds))

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls `name`; a status other than 0 raises."""
        result = getattr(self._library, name)(*arguments)
        if _SIGNATURES[name][0] is None and result:
            message = self._library.ev_last_error().decode()
            if result == _CANCELLED:
                raise Cancelled(message)
            raise _ERRORS.get(result, BackendError)(message)
        return result

    def variants(self) -> list[str]:
        """Kernel variants that this CPU can run, best first."""
        names = (ctypes.c_char_p * 16)()
        count = self.call("ev_variants", names, len(names))
        return [name.decode() for name in names[:count] if name is not None]
