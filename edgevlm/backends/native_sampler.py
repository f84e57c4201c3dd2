"""The C engine's sampler, the twin of edgevlm/sampling.py: what a phone samples with."""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Sequence
from types import TracebackType

import numpy as np

from edgevlm.backends.native_library import NativeLibrary
from edgevlm.backends.session import Float32, Int64
from edgevlm.errors import UsageError
from edgevlm.sampling import SEED_BITS, SamplingParams


class SamplingParamsStruct(ctypes.Structure):
    """ev_sampling_params."""

    _fields_ = [
        ("temperature", ctypes.c_double),
        ("top_k", ctypes.c_int32),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("repetition_penalty", ctypes.c_double),
        ("seed", ctypes.c_uint64),
    ]


class NativeSampler:
    """Chooses tokens as sampling.Sampler does. Close it, or use it in a `with`."""

    def __init__(self, library: NativeLibrary, vocab_size: int, params: SamplingParams) -> None:
        """Raises UsageError for a vocabulary that the engine does not take."""
        self._library, self._vocab_size = library, vocab_size
        self._handle = ctypes.c_void_p()
        library.call("ev_sampler_new", vocab_size, ctypes.byref(self._handle))
        self.begin(params)

    def begin(self, params: SamplingParams) -> None:
        """Takes new parameters and begins the random numbers of their seed."""
        seed = secrets.randbits(SEED_BITS) if params.seed is None else params.seed
        struct = SamplingParamsStruct(
            params.temperature, params.top_k, params.top_p, params.min_p, params.repetition_penalty, seed
        )
        self._library.call("ev_sampler_begin", self._handle, ctypes.byref(struct))

    def __call__(self, logits: Float32, history: Int64 | Sequence[int]) -> int:
        """Returns the next id. `logits` (vocab,); `history` holds every id so far, the prompt's text included.

        Raises BackendError when the logits are not finite.
        """
        if logits.shape != (self._vocab_size,):
            raise UsageError(f"the logits have the shape {logits.shape}, expected ({self._vocab_size},)")
        row = np.ascontiguousarray(logits, dtype=np.float32)
        ids = np.asarray(history, dtype=np.int32)
        token = ctypes.c_int32()
        self._library.call(
            "ev_sampler_next", self._handle, row.ctypes.data, ids.ctypes.data, ids.size, ctypes.byref(token)
        )
        return token.value

    def close(self) -> None:
        """Frees the engine's sampler."""
        self._library.call("ev_sampler_free", self._handle)
        self._handle = ctypes.c_void_p()

    def __enter__(self) -> NativeSampler:
        """Returns itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes."""
        self.close()
