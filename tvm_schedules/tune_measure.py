"""Builds candidates and times them through TVM: in this process, or on boards that a TVM RPC tracker hands out.

A candidate is the object code that the product would carry, linked with one packed function per kernel that calls it
`count` times. TVM's time evaluator runs that function and gives the wall time; the function itself reads the thread's
CPU clock before and after, which does not count what other programs take from a shared machine.
"""

from __future__ import annotations

import math
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.errors import BackendError
from tvm_schedules.targets import VARIANTS, Variant
from tvm_schedules.toolchains import toolchain
from tvm_schedules.tune_work import Array, Operand, Pool, Work, copies, pools

THREAD_CPU_CLOCK = 3
"""CLOCK_THREAD_CPUTIME_ID of Linux and Android."""
SHORTEST_S = 0.003
"""A run is repeated until it takes so long: a thousand times the clock's grain."""
CONNECT_S = 10
"""How long a tracker may take to answer."""
_CPUINFO_NAMES = {"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni"}
"""Features that /proc/cpuinfo spells differently."""


def host_variants() -> list[Variant]:
    """Returns the variants that this machine can run."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return [v for v in VARIANTS if all(_CPUINFO_NAMES.get(feature, feature) in flags for feature in v.features)]


@dataclass(frozen=True)
class Built:
    """A shared library with the kernels of one candidate."""

    path: Path
    variant: Variant


@dataclass(frozen=True)
class Timing:
    """Seconds of one call of a kernel."""

    thread_cpu_s: float
    wall_s: float


@dataclass
class Board:
    """A place that runs candidates: `load` takes a library there, `device` is TVM's device there."""

    name: str
    device: Any
    load: Callable[[Path], Any]
    tensor: Callable[[Array], Any]
    _pools: dict[Pool, Any] = field(default_factory=dict)
    _modules: dict[Path, Any] = field(default_factory=dict)

    def module(self, built: Built) -> Any:
        """Returns the loaded library."""
        if built.path not in self._modules:
            self._modules[built.path] = self.load(built.path)
        return self._modules[built.path]

    def forget(self, built: Built) -> None:
        """Drops a library that will not be asked for again."""
        self._modules.pop(built.path, None)

    def pool_tensors(self, operands: Sequence[Operand]) -> list[Any]:
        """Returns the shared operands, brought there at the first call."""
        if not self._pools:
            self._pools = {pool: self.tensor(array) for pool, array in pools().items()}
        return [self._pools[operand.pool] for operand in operands]

    def error(self, built: Built, work: Work) -> float:
        """Returns the error of the candidate's result on the small problem, over the bound: above 1 is wrong."""
        check = work.check(built.variant)
        tensors = [self.tensor(array.reshape(-1)) for array in check.arrays]
        function = self.module(built)[work.kernel_name(built.variant)]
        function(*tensors, self.tensor(np.zeros(4, np.int64)), 1, 1, *[0] * len(tensors), *check.numbers)
        pairs = zip(tensors, check.arrays, strict=True)
        after = tuple(tensor.numpy().reshape(array.shape) for tensor, array in pairs)
        error = check.error(after) / check.bound
        return error if math.isfinite(error) else math.inf

    def time(self, built: Built, work: Work, count: int) -> Timing:
        """Runs the work once to warm up and once for its time."""
        operands = work.operands()
        ticks = self.tensor(np.zeros(4, np.int64))
        evaluator = self.module(built).time_evaluator(work.kernel_name(built.variant), self.device, number=1, repeat=1)
        strides = [operand.stride for operand in operands]
        numbers = work.numbers(built.variant)
        result = evaluator(*self.pool_tensors(operands), ticks, count, copies(work), *strides, *numbers)
        begin_s, begin_ns, end_s, end_ns = (int(value) for value in ticks.numpy())
        return Timing((end_s - begin_s + (end_ns - begin_ns) * 1e-9) / count, result.results[0] / count)


def calls_of(board: Board, built: Built, work: Work) -> int:
    """Returns how many calls a measured run of `work` should make."""
    least = copies(work) if work.cold else 1
    one = board.time(built, work, least).thread_cpu_s
    return least * max(1, math.ceil(SHORTEST_S / max(one * least, 1e-9)))


def compare(
    board: Board, default: Built, candidate: Built, works: Sequence[Work], samples: int
) -> list[tuple[float, float]]:
    """Returns per work the medians (default, candidate) of the thread's CPU seconds a call, run in turn."""
    medians = []
    for work in works:
        count = calls_of(board, default, work)
        times: tuple[list[float], list[float]] = ([], [])
        for sample in range(samples):
            # A B, B A: neither always runs on what the other left in the caches.
            for side in (0, 1) if sample % 2 == 0 else (1, 0):
                times[side].append(board.time((default, candidate)[side], work, count).thread_cpu_s)
        medians.append((statistics.median(times[0]), statistics.median(times[1])))
    return medians


def build(works: Sequence[Work], variant: Variant, path: Path) -> Built:
    """Compiles the kernels that `works` need into the shared library `path`.

    Raises BackendError when TVM or the linker refuses.
    """
    kernels = {work.kernel_name(variant): work for work in works}
    return build_kernels({name: work.kernel(variant) for name, work in kernels.items()}, variant, path)


def build_kernels(kernels: Mapping[str, Any], variant: Variant, path: Path) -> Built:
    """The same for kernels by name."""
    import tvm

    from tvm_schedules.codegen import build_object

    target = tvm.target.Target({"kind": "llvm", "mtriple": variant.triple, "mcpu": variant.mcpu})
    callers = {name: _caller(name, function).with_attr("global_symbol", name) for name, function in kernels.items()}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        build_object({f"ev_{name}": function for name, function in kernels.items()}, variant, scratch / "kernels.o")
        tvm.compile(tvm.IRModule(callers), target=target).mod.write_to_file(str(scratch / "callers.o"))
        tools = toolchain(variant.arch, "linux", scratch)
        command = [tools.compiler, *tools.flags, "-shared", "-fPIC", "kernels.o", "callers.o", *tools.link_flags]
        done = subprocess.run([*command, "-o", str(path.resolve())], cwd=scratch, capture_output=True, text=True)
    if done.returncode:
        raise BackendError(f"{tools.compiler} could not link {path.name}: {done.stderr.strip()}")
    return Built(path, variant)


def _caller(name: str, kernel: Any) -> Any:
    """The packed function: operands, the clock's buffer, count, copies, a stride per pointer, the kernel's integers."""
    from tvm.ir import PointerType
    from tvm.script import from_source
    from tvm.script import tirx as T

    types = [param.ty for param in kernel.params]
    pointers = [str(ty.element_type) for ty in types if isinstance(ty, PointerType)]
    numbers = [f"a{i}" for i in range(len(types) - len(pointers))]
    strides = [f"s{i}" for i in range(len(pointers))]
    handles = [*(f"p{i}" for i in range(len(pointers))), "ticks"]
    scalars = ["count", "copies", *strides, *numbers]
    parameters = [f"{handle}: T.handle" for handle in handles] + [f"{scalar}: T.int32" for scalar in scalars]
    buffers = [
        line
        for i, dtype in enumerate(pointers)
        for line in (f"m{i} = T.int32()", f'P{i} = T.match_buffer(p{i}, (m{i},), "{dtype}")')
    ]
    places = ", ".join(f"T.address_of(P{i}[i % copies * s{i}])" for i in range(len(pointers)))
    clock = f'T.evaluate(T.call_extern("int32", "clock_gettime", {THREAD_CPU_CLOCK}, T.address_of(TICKS[{{}}])))'
    lines = [
        *buffers,
        'TICKS = T.match_buffer(ticks, (4,), "int64")',
        clock.format(0),
        "for i in T.serial(count):",
        f'    T.evaluate(T.call_extern("int32", "ev_{name}", {places}, {", ".join(numbers)}))',
        clock.format(2),
    ]
    head = f"@T.prim_func(s_tir=True)\ndef main({', '.join(parameters)}):\n"
    return from_source(head + "".join(f"    {line}\n" for line in lines), {"T": T})


def local_board() -> Board:
    """This machine, in this process."""
    import tvm

    device = tvm.cpu()
    return Board("this machine", device, lambda path: tvm.runtime.load_module(str(path)),
                 lambda array: tvm.runtime.tensor(array, device))  # fmt: skip


def fleet(host: str, port: int, key: str, n_boards: int) -> list[Board]:
    """Asks the tracker at host:port for `n_boards` servers of `key`; a board is held until its session ends.

    Raises BackendError when the tracker or a board does not answer.
    """
    import tvm
    from tvm import rpc

    try:
        # TVM itself tries for a minute.
        socket.create_connection((host, port), timeout=CONNECT_S).close()
        tracker = rpc.connect_tracker(host, port)
        known = [server for server in tracker.summary()["server_info"] if server["key"] == f"server:{key}"]
        if len(known) < n_boards:
            raise BackendError(
                f"the tracker at {host}:{port} has {len(known)} boards of {key!r}, {n_boards} were asked for"
            )
        sessions = [tracker.request(key, max_retry=1) for _ in range(n_boards)]
    except (RuntimeError, OSError) as error:
        raise BackendError(
            f"the tracker at {host}:{port} gave no {n_boards} boards of {key!r}: {str(error).splitlines()[-1]}"
        ) from error

    def board(index: int, session: Any) -> Board:
        device = session.cpu(0)

        def load(path: Path) -> Any:
            session.upload(str(path))
            return session.load_module(path.name)

        return Board(f"{key} {index}", device, load, lambda array: tvm.runtime.tensor(array, device))

    return [board(index, session) for index, session in enumerate(sessions)]
