"""TVM functions to object code with a plain C ABI and no undefined symbol of TVM's.

The usual packed calling convention is left out: a kernel's parameters are pointers and integers, its result is 0,
and the C engine calls it like any C function. Work is split by the caller through begin/end arguments, so that no
kernel knows about threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tvm_schedules.targets import Variant

HVX_BYTES = 128
"""Bytes of a Hexagon vector."""


def build_object(functions: Mapping[str, Any], variant: Variant, path: Path) -> None:
    """Compiles `functions` (symbol → tirx PrimFunc with `T.ptr` parameters) for `variant` into the object file `path`.

    The suffix chooses the form: `.o` object, `.s` assembly, `.ll` LLVM IR.
    """
    import tvm
    from tvm import tirx

    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": variant.triple, "mcpu": variant.mcpu, "mattr": list(variant.mattr)}
    )
    named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
    module = tirx.transform.BindTarget(target.with_host(target))(tvm.IRModule(named))
    # LowerTVMBuiltin stays out: it would turn the register tiles into heap workspaces.
    passes = [
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        tirx.transform.LowerIntrin(),
    ]
    module = tvm.ir.transform.Sequential(passes)(module)
    plain = {}
    for global_var, function in module.functions_items():
        start = _aligned_stack() if variant.arch == "x86_64" else []
        body = tirx.SeqStmt([*start, function.body, tirx.Return(tirx.IntImm("int32", 0))])
        if variant.arch == "hexagon":
            body = _aligned_buffers(function.params, body)
        plain[global_var] = tirx.PrimFunc(function.params, body, tvm.ir.PrimType("int32"), attrs=function.attrs)
    lowered = tvm.IRModule(plain, attrs=module.attrs)
    tvm.get_global_func("target.build.llvm")(lowered, target).write_to_file(str(path))


def _aligned_buffers(parameters: Any, body: Any) -> Any:
    """`body` with the promise that every buffer begins at a multiple of HVX_BYTES: other vectors take two loads."""
    import tvm
    from tvm import tirx

    for parameter in parameters:
        if isinstance(parameter.ty, tvm.ir.PointerType):
            body = tirx.AttrStmt(parameter, "storage_alignment", tirx.IntImm("int32", HVX_BYTES), body)
    return body


def _aligned_stack() -> list[Any]:
    """Statements that make LLVM align a function's stack to 64 bytes.

    It decides so before it knows which registers it will spill, from the function's own variables; when they end up in
    registers, spilled vectors lie wherever the caller's stack happens to be, half of them across two cache lines
    (LOG.md, 2026-11-25). A vector on the stack whose address a prefetch takes stays there.
    """
    from tvm.script import tirx as T

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def start() -> None:
        anchor = T.alloc_buffer((1,), "float32x16")
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", T.address_of(anchor[0]), 0, 3, 1))

    return list(start.body.seq)
