"""CPUs and their quotas: trees of control groups of both versions, as Python and as the C engine count them."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

import pytest

from edgevlm.backends.native_library import ModelOptions, NativeLibrary, library_path
from edgevlm.backends.onnx import OnnxSession
from edgevlm.errors import UsageError
from edgevlm.machine_cpus import cpu_quota, default_threads, machine_cpus, threads_to_use
from edgevlm.machine_memory import available_bytes
from edgevlm.model import load
from edgevlm.package import open_package
from tests.edgevlm.engine_build import build_engine

V1_MOUNT = "30 25 0:26 {own} {root}/v1/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "31 25 0:27 {own} {root}/v1/memory rw - cgroup cgroup rw,memory\n"
V2_MOUNT = "40 25 0:28 {own} {root}/unified rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = "24 1 8:1 / / rw - ext4 /dev/sda1 rw\n29 25 0:25 / {root}/v1/freezer rw - cgroup cgroup rw,freezer\n"


def v1(directory: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {f"{directory}/cpu.cfs_quota_us": f"{quota}\n", f"{directory}/cpu.cfs_period_us": f"{period}\n"}


CASES: dict[str, tuple[dict[str, str], float | None]] = {
    "nothing known": ({}, None),
    "version 1 of one core": (
        {"proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n",
         "proc/self/mountinfo": OTHERS + V1_MOUNT.replace("{own}", "/"),
         **v1("v1/cpu,cpuacct/docker/x", 100_000)}, 1,
    ),
    "version 1 without a limit": (
        {"proc/self/cgroup": "4:cpu,cpuacct:/x\n", "proc/self/mountinfo": V1_MOUNT.replace("{own}", "/"),
         **v1("v1/cpu,cpuacct/x", -1)}, None,
    ),
    "version 1 in a container that sees its own group as the root": (
        {"proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n", "proc/self/mountinfo": V1_MOUNT.replace("{own}", "/docker/x"),
         **v1("v1/cpu,cpuacct", 150_000), **v1("v1/cpu,cpuacct/docker/x", 1_000)}, 1.5,
    ),
    "version 1 above the own group": (
        {"proc/self/cgroup": "4:cpuacct,cpu:/pod/c\n", "proc/self/mountinfo": V1_MOUNT.replace("{own}", "/"),
         **v1("v1/cpu,cpuacct/pod/c", 400_000), **v1("v1/cpu,cpuacct/pod", 50_000, 25_000)}, 2,
    ),
    "version 1 where mountinfo is not told": (
        {"proc/self/cgroup": "4:cpu,cpuacct:/x\n", **v1("cgroup/cpu/x", 250_000)}, 2.5,
    ),
    "cpuset is not cpu": (
        {"proc/self/cgroup": "3:cpuset:/x\n", **v1("cgroup/cpu/x", 100_000)}, None,
    ),
    "version 2 nested: the least of all levels": (
        {"proc/self/cgroup": "0::/a/b/c\n", "proc/self/mountinfo": OTHERS + V2_MOUNT.replace("{own}", "/"),
         "unified/a/b/c/cpu.max": "max 100000\n", "unified/a/b/cpu.max": "300000 100000\n",
         "unified/a/cpu.max": "50000 20000\n"}, 2.5,
    ),
    "version 2 at the root of a namespace": ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "20000 100000"}, 0.2),
    "version 2 outside what is mounted": (
        {"proc/self/cgroup": "0::/../other\n", "proc/self/mountinfo": V2_MOUNT.replace("{own}", "/"),
         "unified/cpu.max": "100000 100000\n"}, 1,
    ),
    "both versions": (
        {"proc/self/cgroup": "4:cpu,cpuacct:/x\n0::/y\n",
         "proc/self/mountinfo": V1_MOUNT.replace("{own}", "/") + V2_MOUNT.replace("{own}", "/"),
         **v1("v1/cpu,cpuacct/x", 300_000), "unified/y/cpu.max": "400000 100000"}, 3,
    ),
    "nonsense": (
        {"proc/self/cgroup": "::::\n\n4:cpu\n0::/a\n", "proc/self/mountinfo": "x - cgroup2\n - \n",
         "cgroup/a/cpu.max": "many", "cgroup/cpu.max": "0 0"}, None,
    ),
}  # fmt: skip


def tree(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.replace("{root}", str(root)))
    return root / "proc", root / "cgroup"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build_engine(tmp_path_factory.mktemp("engine"))))


@pytest.mark.parametrize("name", CASES)
def test_quotas(name: str, tmp_path: Path, engine: ctypes.CDLL) -> None:
    files, expected = CASES[name]
    proc, cgroup = tree(tmp_path, files)
    assert cpu_quota(proc, cgroup) == expected
    found = engine.ev_quota_cpus(str(proc).encode(), str(cgroup).encode())
    assert found == (0 if expected is None else math.ceil(expected))
    # the quota's CPUs rounded up, no more than there are and at least one
    n_cores = default_threads(tmp_path / "none", tmp_path / "none")
    assert default_threads(proc, cgroup) == (n_cores if expected is None else max(1, min(n_cores, math.ceil(expected))))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"proc/self/cgroup": "4:memory:/docker/x\n", "proc/self/mountinfo": V1_MEMORY.replace("{own}", "/docker/x"),
             "v1/memory/memory.limit_in_bytes": "1000", "v1/memory/memory.usage_in_bytes": "400"}, 600,
        ),
        (
            {"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2_MOUNT.replace("{own}", "/"),
             "unified/a/b/memory.max": "5000", "unified/a/b/memory.current": "1000",
             "unified/a/memory.max": "max", "unified/a/memory.high": "2000", "unified/a/memory.current": "1500"}, 500,
        ),
    ],
)  # fmt: skip
def test_memory_limits_of_nested_groups(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert available_bytes(*tree(tmp_path, files)) == expected


def test_this_machine(engine: ctypes.CDLL) -> None:
    """At least what the scheduler lets this process use, at most what the machine has."""
    assert engine.ev_machine_cpus() >= len(os.sched_getaffinity(0)) >= engine.ev_usable_cpus() >= 1
    assert 1 <= default_threads() <= machine_cpus()


# ---- more threads than the machine can use


def test_threads_beyond_the_cpus_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.machine_cpus.machine_cpus", lambda: 6)
    monkeypatch.setattr("edgevlm.machine_cpus.default_threads", lambda: 1)
    assert [threads_to_use(n) for n in (None, 1, 6)] == [1, 1, 6]  # beyond the quota, within the machine
    for threads in (7, 100_000, 0, -1):
        with pytest.raises(UsageError, match=f"threads is {threads}, expected 1 to 6, .* this process uses 1"):
            threads_to_use(threads)


def test_every_way_to_load_refuses(tiny: Path) -> None:
    for call in (
        lambda: load(tiny, threads=100_000),
        lambda: load(tiny, threads=machine_cpus() + 1, backend="onnx"),
        lambda: OnnxSession(open_package(tiny), threads=100_000),
    ):
        with pytest.raises(UsageError, match=f"expected 1 to {machine_cpus()}, the CPUs of this machine"):
            call()


@pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it")
@pytest.mark.parametrize("threads", [100_000, 2**31 - 1, -1])
def test_the_engine_refuses_by_itself(threads: int, tmp_path: Path) -> None:
    """Before it looks at the package, and without a thread or a byte for one."""
    model = ctypes.c_void_p()
    library = NativeLibrary(library_path())
    with pytest.raises(UsageError, match=rf"{threads} threads were asked for, this machine has \d+ CPUs"):
        library.call("ev_model_open", str(tmp_path).encode(), ctypes.byref(ModelOptions(threads)), ctypes.byref(model))
    assert not model
