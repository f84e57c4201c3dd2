"""Compiles fixed graphs to HTP context binaries in a process of its own, and says where every node runs.

A process apart, because the compiler keeps its memory, prints to stdout and may take the interpreter down with it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevlm.errors import BackendError, UnsupportedModelError
from export.npu.parts import MAX_BINARY_BYTES

ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_NODE = re.compile(r"(.*) \((\w+)\)")


@dataclass(frozen=True)
class Placement:
    """Where the nodes of one graph run: names with operators, 'name (Op)'."""

    graph: str
    on_npu: tuple[str, ...]
    on_cpu: tuple[str, ...]
    compile_s: float
    size_bytes: int


def compile_graphs(
    graphs: list[tuple[str, Path]], directory: Path, soc: str, allow_cpu: tuple[str, ...], *, share: bool = False
) -> list[Placement]:
    """Writes <name>.onnx and its context binary for each graph into `directory`.

    With `share` the graphs lie in one binary with one copy of their weights. Raises UnsupportedModelError naming the
    first node that does not fit the NPU, with its shapes and the compiler's reason, unless its operator is in
    `allow_cpu`, and for a binary that is too large.
    """
    job = {
        "graphs": [[name, str(path)] for name, path in graphs],
        "directory": str(directory),
        "soc": soc,
        "share": share and len(graphs) > 1,
        "allow_cpu": bool(allow_cpu),
    }
    result = _in_process({**job, "action": "compile"}) if not allow_cpu else None
    if result is None or "error" in result:
        _refuse(graphs, job, allow_cpu, result)
        result = _in_process({**job, "action": "compile"})
        if "error" in result:
            raise BackendError(f"the HTP compiler failed: {result['error']}")
    placements = [
        Placement(item["graph"], tuple(item["npu"]), tuple(item["cpu"]), item["compile_s"], item["size_bytes"])
        for item in result["placements"]
    ]
    for item in placements:
        if item.size_bytes >= MAX_BINARY_BYTES:
            raise UnsupportedModelError(
                f"the binary of graph {item.graph!r} for {soc} has {item.size_bytes / 1e9:.2f} GB, one holds less than "
                f"{MAX_BINARY_BYTES / 1e9:.2f} GB: this chip stores weights wider; --part-mb makes smaller parts"
            )
    return placements


def sdk_version(wrapper: Path) -> str:
    """Returns the QNN SDK that made a context binary, as the ONNX file around it says."""
    import onnx

    for node in onnx.load(wrapper, load_external_data=False).graph.node:
        for attribute in node.attribute:
            if attribute.name == "ep_sdk_version":
                return str(attribute.s.decode())
    return "unknown"


def _refuse(
    graphs: list[tuple[str, Path]], job: dict[str, Any], allow_cpu: tuple[str, ...], first: dict[str, Any] | None
) -> None:
    """Raises for the first node that stays on the CPU against the user's will."""
    found = _in_process({**job, "allow_cpu": True, "action": "place"})
    if "error" in found:
        raise BackendError(f"the HTP compiler failed: {found['error']}")
    for item, (_, path) in zip(found["placements"], graphs, strict=True):
        for text in item["cpu"]:
            name, operator = split_node(text)
            if operator in ROUNDING or operator in allow_cpu:
                continue
            reason = _reason(found["log"], name, operator)
            raise UnsupportedModelError(
                f"the NPU cannot run {name} ({operator}) of graph {item['graph']!r}, {node_shapes(path, name)}: "
                f"{reason}; --allow-cpu {operator} lets it run on the CPU"
            )
    if first is not None and "error" in first:
        raise BackendError(f"the HTP compiler failed, though every node fits: {first['error']}")


def split_node(text: str) -> tuple[str, str]:
    """'name (Op)' → (name, Op)."""
    match = _NODE.fullmatch(text)
    return (match[1], match[2]) if match else (text, "")


def node_shapes(path: Path, name: str) -> str:
    """Returns 'inputs (…), (…), outputs (…)' of a node, as shape inference finds them."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    node = next((node for node in model.graph.node if node.name == name), None)
    if node is None:
        return "shapes unknown"
    wanted = (list(node.input), list(node.output))
    for other in model.graph.node:
        _as_standard(model.graph, other)
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: tuple(dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}

    def listed(values: Any) -> str:
        return ", ".join(str(shapes.get(value, "?")) for value in values if value)

    return f"inputs {listed(wanted[0])}, outputs {listed(wanted[1])}"


def _as_standard(graph: Any, node: Any) -> None:
    """Puts an operator of the same shapes in the place of one that shape inference does not know."""
    import onnx

    if node.op_type == "MatMulNBits":
        number = {attribute.name: attribute.i for attribute in node.attribute}
        weight = f"{node.name}/weight"
        shape = [number["K"], number["N"]]
        graph.value_info.append(onnx.helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, shape))
        node.CopyFrom(onnx.helper.make_node("MatMul", [node.input[0], weight], node.output, name=node.name))
    elif node.op_type == "SimplifiedLayerNormalization":
        node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output, name=node.name))


def _reason(log: str, name: str, operator: str) -> str:
    """The compiler's line about the node, or about its operator."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in log.splitlines()]
    for wanted in (name, f"{operator} ", operator):
        for line in lines:
            if wanted in line and re.search(r"not support|unsupported|fail|invalid|no support", line, re.IGNORECASE):
                return line.rsplit("] ", 1)[-1].strip()[:300]
    return "the provider knows no form of this operator with these types"


def _in_process(job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        done = subprocess.run(
            [sys.executable, "-m", "export.npu.htp_process", json.dumps({**job, "answer": str(answer)})],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).resolve().parents[2],
        )
        log = done.stdout + done.stderr
        if not answer.exists():
            last = [line for line in log.splitlines() if line.strip()][-1:] or ["no message"]
            return {"error": f"the process ended with code {done.returncode} ({last[0][:300]})"}
        result: dict[str, Any] = json.loads(answer.read_text())
        return {**result, "log": log}
