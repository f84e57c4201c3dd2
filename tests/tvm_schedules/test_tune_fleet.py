"""Tuning over TVM's RPC: a tracker and two servers on this machine share the candidates and agree on their order."""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgevlm.errors import BackendError
from tvm_schedules import tune
from tvm_schedules.targets import Variant
from tvm_schedules.tune_measure import Board, build, compare, fleet, host_variants
from tvm_schedules.tune_models import GemmWork
from tvm_schedules.tune_record import read_record
from tvm_schedules.tune_space import point_of, points, with_point
from tvm_schedules.tune_work import Work

KEY = "here"


def works(rows: int) -> list[Work]:
    """A product that is computed with the prefill tile."""
    return [GemmWork("m", "product", 192, 1024, rows, 1)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def variant() -> Variant:
    for name in ("tvm", "tornado", "cloudpickle", "psutil"):
        pytest.importorskip(name, reason=f"{name} is not installed; the extra [rpc] brings it")
    runnable = [variant for variant in host_variants() if variant.arch == "x86_64"]
    if not runnable:
        pytest.skip("no x86-64 variant runs here")
    return runnable[0]


@pytest.fixture(scope="module")
def tracker(variant: Variant, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A tracker's port; two servers have reported to it."""
    port = free_port()
    log = tmp_path_factory.mktemp("fleet") / "log"
    commands = [["rpc_tracker", "--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]]
    for _ in range(2):
        own = free_port()
        words = ["rpc_server", "--host", "127.0.0.1", "--port", str(own), "--port-end", str(own + 1), "--key", KEY]
        commands.append([*words, "--tracker", f"127.0.0.1:{port}"])
    processes = []
    with log.open("w") as sink:
        try:
            for name, *words in commands:
                module = [sys.executable, "-m", f"tvm.exec.{name}", *words]
                processes.append(subprocess.Popen(module, stdout=sink, stderr=subprocess.STDOUT))
            wait_for_servers(port, 2, log)
            yield port
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait()


def wait_for_servers(port: int, n: int, log: Path) -> None:
    from tvm import rpc

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            summary = rpc.connect_tracker("127.0.0.1", port).summary()
            if len([server for server in summary["server_info"] if server["key"] == f"server:{KEY}"]) == n:
                return
        except (RuntimeError, OSError):
            pass  # the tracker is not up yet
        time.sleep(0.2)
    pytest.fail(f"the servers did not report: {log.read_text()}")


@pytest.fixture(scope="module")
def boards(tracker: int) -> list[Board]:
    return fleet("127.0.0.1", tracker, KEY, 2)


def test_two_servers_agree_on_the_order(variant: Variant, boards: list[Board], tmp_path: Path) -> None:
    """Candidates of one, two and four times the work: each server gives the right numbers and the same order."""
    amounts = (32, 64, 128)
    candidates = {rows: build(works(rows), variant, tmp_path / f"{rows}.so") for rows in amounts}
    for board in boards:
        assert all(board.error(built, works(rows)[0]) < 1 for rows, built in candidates.items())
        seconds = {
            rows: statistics.median(board.time(built, works(rows)[0], 8).thread_cpu_s for _ in range(3))
            for rows, built in candidates.items()
        }
        assert sorted(amounts, key=lambda rows: seconds[rows]) == list(amounts)
        assert 2 < seconds[128] / seconds[32] < 8


def test_a_search_gives_work_to_both(variant: Variant, boards: list[Board], tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    settings = tune.Settings(samples=3, works=lambda slot, arch: works(128))
    record = tune.tune([variant], ["prefill"], boards, "two servers", path, settings, lambda *_: None)
    assert read_record(path, variant.arch) == record
    found = record.variants[variant.name].prefill
    assert found is not None and found.finished and not found.refused
    assert {candidate.board for candidate in found.candidates} == {f"{KEY} 0", f"{KEY} 1"}
    measured = [candidate.point for candidate in found.candidates]
    unroll = point_of(variant, "prefill")["unroll"]
    assert all(p in measured for p in points(variant, "prefill")[1:] if p["unroll"] == unroll)


def test_a_gain_is_the_same_on_both(variant: Variant, boards: list[Board], tmp_path: Path) -> None:
    """The ratio of two tiles, alternated on each board, does not depend on the board."""
    default = build(works(128), variant, tmp_path / "default.so")
    tile = dict(point_of(variant, "prefill"), rows=4, vectors=1)
    other = build(works(128), with_point(variant, "prefill", tile), tmp_path / "other.so")
    ratios = []
    for board in boards:
        ((default_s, other_s),) = compare(board, default, other, works(128), 5)
        ratios.append(other_s / default_s)
    assert ratios[0] == pytest.approx(ratios[1], rel=0.25)


def test_boards_that_are_not_there(variant: Variant, tracker: int) -> None:
    port = free_port()
    with pytest.raises(BackendError, match=f"127.0.0.1:{port} gave no 1 boards"):
        fleet("127.0.0.1", port, KEY, 1)
    with pytest.raises(BackendError, match="has 0 boards of 'elsewhere', 1 were asked for"):
        fleet("127.0.0.1", tracker, "elsewhere", 1)
