"""Reading one of a package's ONNX graphs: nodes in order, and initialisers straight from the external data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError

_DTYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16}
"""onnx.TensorProto.DataType → numpy."""


@dataclass(frozen=True)
class Node:
    """One node; `attributes` holds plain ints, floats, strings and lists."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def input(self, index: int) -> str:
        """Name of an input, '' when it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""


class OnnxGraph:
    """A graph whose weights stay on disk until they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises PackageError when the file is not an ONNX graph."""
        import onnx

        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf raises types of its own
            raise PackageError(f"{path} cannot be read as an ONNX graph: {error}") from error
        self.path = path
        graph = model.graph
        self.nodes = [
            Node(
                node.name,
                node.op_type,
                tuple(node.input),
                tuple(node.output),
                {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute},
            )
            for node in graph.node
        ]
        self.inputs = [value.name for value in graph.input]
        self.input_shapes = {
            value.name: tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)
            for value in graph.input
        }
        """Sizes, or names of sizes that are free."""
        self.outputs = [value.name for value in graph.output]
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def has(self, name: str) -> bool:
        """Whether `name` is an initialiser."""
        return name in self._tensors

    def array(self, name: str) -> NDArray[Any]:
        """The initialiser `name`, memory-mapped where it is external.

        Raises PackageError when its bytes are not there.
        """
        import onnx

        tensor = self._tensors.get(name)
        if tensor is None:
            raise PackageError(f"{self.path}: there is no initialiser {name!r}")
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            inline: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
            return inline
        place = {entry.key: entry.value for entry in tensor.external_data}
        dtype = np.dtype(_DTYPES[tensor.data_type])
        shape = tuple(tensor.dims)
        data = self.path.parent / place["location"]
        try:
            return np.memmap(data, dtype, "r", int(place.get("offset", 0)), shape)
        except (OSError, ValueError) as error:
            raise PackageError(f"{data}: the bytes of {name!r} are missing: {error}") from error
