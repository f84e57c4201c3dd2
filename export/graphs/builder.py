"""GraphBuilder: writes one ONNX graph node by node and streams its weights to the external data file as they come.

A weight is on disk as soon as `weight()` returns, so that building needs memory for one tensor, not for the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

OPSET = 21
IR_VERSION = 10
MICROSOFT_OPSET = 1

PAGE_BYTES = 4096
PAGE_ALIGNED_FROM_BYTES = 1 << 20
SMALL_ALIGNMENT_BYTES = 64
INLINE_BELOW_BYTES = 256
"""Smaller initialisers stand in the .onnx itself."""

INT64_MAX = (1 << 63) - 1

Dim = int | str

ELEMENT_TYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


@dataclass(frozen=True)
class StoredBytes:
    """Where a tensor lies: `file` is the data file's name, beside the graphs."""

    file: str
    offset: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]


class GraphBuilder:
    """One graph under construction. Use as a context manager, or call `finish`; both close the data file.

    `overridable` lists the names of float weights that also become graph inputs, so that a session may be run with
    other values for them.
    """

    def __init__(self, name: str, data_path: Path, *, overridable: Callable[[str], bool] | None = None) -> None:
        self.name = name
        self.data_path = Path(data_path)
        self._data = self.data_path.open("wb")
        self._data_files: set[str] = set()
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scope: list[str] = []
        self._names: set[str] = set()
        self._overridable = overridable or (lambda name: False)
        self.boundaries: list[str] = []
        """Values at which the graph may be cut in two: besides inputs, nothing else is used behind them."""

    def __enter__(self) -> GraphBuilder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    @contextmanager
    def scope(self, *parts: str) -> Iterator[None]:
        """Node names made inside start with these path parts."""
        self._scope.extend(parts)
        try:
            yield
        finally:
            del self._scope[-len(parts) :]

    def input(self, name: str, dtype: str, shape: Sequence[Dim]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape)))
        return name

    def output(self, name: str, value: str, dtype: str, shape: Sequence[Dim]) -> None:
        """Declares `name` an output; the node that makes `value` is changed to make `name`."""
        if value != name:
            self.rename(value, name)
        self._outputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape)))

    def rename(self, value: str, name: str) -> None:
        """Gives a value another name, where it is made and where it is read."""
        for node in self._nodes:
            for values in (node.input, node.output):
                for i, existing in enumerate(values):
                    if existing == value:
                        values[i] = name

    def node(self, op: str, inputs: Sequence[str], *, name: str = "", domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output and returns that value's name. `name` is the last part(s) of the node's path."""
        return self.nodes(op, inputs, 1, name=name, domain=domain, **attributes)[0]

    def nodes(
        self,
        op: str,
        inputs: Sequence[str],
        n_outputs: int,
        *,
        name: str = "",
        domain: str = "",
        unused: Sequence[int] = (),
        **attributes: Any,
    ) -> list[str]:
        """Adds a node with several outputs; those of index `unused` are optional ones that are not produced ('')."""
        path = self._unique("/" + "/".join([*self._scope, name or op]))
        outputs = ["" if i in unused else f"{path}/output_{i}" for i in range(n_outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self._nodes.append(helper.make_node(op, list(inputs), outputs, name=path, domain=domain, **attributes))
        return outputs

    def constant(self, value: NDArray[Any] | Sequence[int] | int) -> str:
        """An initialiser without a name of its own; int64 for Python integers. Equal constants are one."""
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.int64)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._unique(f"constant_{len(self._constants)}")
            self._initializers[name] = helper.make_tensor(
                name, ELEMENT_TYPES[array.dtype.name], array.shape, array.tobytes(), raw=True
            )
            self._constants[key] = name
        return self._constants[key]

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Writes the array and returns its value name; tiny arrays stay in the graph."""
        if array.nbytes < INLINE_BELOW_BYTES:
            self._add_initializer(
                name,
                helper.make_tensor(
                    name, ELEMENT_TYPES[array.dtype.name], array.shape, np.ascontiguousarray(array).tobytes(), raw=True
                ),
            )
            return name
        return self.shared_weight(name, self.store(array.dtype.name, array.shape, [array]))

    def store(self, dtype: str, shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]) -> StoredBytes:
        """Writes a tensor that arrives in pieces along its first axis, without adding it to the graph."""
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        alignment = PAGE_BYTES if size_bytes >= PAGE_ALIGNED_FROM_BYTES else SMALL_ALIGNMENT_BYTES
        offset = self._data.tell()
        padding = -offset % alignment
        self._data.write(b"\0" * padding)
        offset += padding
        for piece in pieces:
            if piece.dtype.name != dtype:
                raise ValueError(f"{self.name}: a piece is {piece.dtype.name}, expected {dtype}")
            self._data.write(np.ascontiguousarray(piece).data)
        written = self._data.tell() - offset
        if written != size_bytes:
            raise ValueError(f"{self.name}: {written} bytes written, shape {shape} of {dtype} needs {size_bytes}")
        return StoredBytes(self.data_path.name, offset, size_bytes, dtype, shape)

    def shared_weight(self, name: str, stored: StoredBytes, shape: tuple[int, ...] | None = None) -> str:
        """Adds an initialiser that reads bytes written before, here or by another graph beside this one."""
        shape = stored.shape if shape is None else shape
        if math.prod(shape) != math.prod(stored.shape):
            raise ValueError(f"{name}: shape {shape} has other elements than the stored {stored.shape}")
        tensor = TensorProto(name=name, data_type=ELEMENT_TYPES[stored.dtype], dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", stored.file), ("offset", stored.offset), ("length", stored.size_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._data_files.add(stored.file)
        self._add_initializer(name, tensor)
        return name

    def finish(self, path: Path) -> tuple[str, ...]:
        """Writes the .onnx and closes the data file; returns the data files' names, without an empty one of its own."""
        self._data.close()
        if self.data_path.name not in self._data_files:
            self.data_path.unlink()
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, initializer=list(self._initializers.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", MICROSOFT_OPSET)],
            ir_version=IR_VERSION,
            producer_name="edgevlm",
        )
        onnx.save_model(model, path)
        return tuple(sorted(self._data_files))

    def _add_initializer(self, name: str, tensor: Any) -> None:
        if name in self._initializers:
            raise ValueError(f"initialiser {name!r} was already added to {self.name}")
        self._initializers[name] = tensor
        if self._overridable(name):
            self._inputs.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))

    def _unique(self, name: str) -> str:
        candidate, n = name, 1
        while candidate in self._names:
            candidate, n = f"{name}_{n}", n + 1
        self._names.add(candidate)
        return candidate
