"""Safetensors files made by hand, so that tests can write what the library would refuse to write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "F64": "<f8", "I8": "|i1", "F8_E4M3": "|u1", "BOOL": "|b1"}


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """The values' bytes; BF16 keeps the upper half of a float32 (values are chosen so that nothing is rounded)."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype(DTYPES[dtype]).tobytes()


def header_of(tensors: Mapping[str, tuple[str, NDArray[np.float32]]]) -> tuple[dict[str, Any], bytes]:
    """The header (name → dtype, shape, data_offsets) and the data of sound files."""
    header, data = {}, b""
    for name, (dtype, values) in tensors.items():
        content = encode(values, dtype)
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += content
    return header, data


def pack(header: Any, data: bytes) -> bytes:
    """The file; `header` may be anything that JSON can hold, or bytes."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


def file_of(tensors: Mapping[str, NDArray[np.float32]], dtype: str = "F32") -> bytes:
    """A sound file with all tensors in one type."""
    return pack(*header_of({name: (dtype, values) for name, values in tensors.items()}))
