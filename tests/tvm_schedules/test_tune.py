"""Tuning: the rules of the space, the record, the search on this machine with planted candidates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.cli import tune as command
from edgevlm.cli.main import main
from edgevlm.errors import BackendError, PackageError
from tvm_schedules import tune
from tvm_schedules.build import built_variants, table_source
from tvm_schedules.targets import BY_NAME, VARIANTS, Tile, Variant
from tvm_schedules.tune_measure import Board, Built, build, host_variants, local_board
from tvm_schedules.tune_models import GemmWork, works_of
from tvm_schedules.tune_record import Measured, Record, SlotRecord, read_record, tuned, with_slot, write_record
from tvm_schedules.tune_space import SLOTS, Point, Slot, point_of, points, refusal, with_point
from tvm_schedules.tune_work import Work

AVX512, AVX2, NEON = BY_NAME["avx512vnni"], BY_NAME["avx2"], BY_NAME["neon"]
PREFILL = {"rows": 8, "blocks": 2, "vectors": 1, "unroll": 0}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_defaults_are_legal_and_first(variant: Variant, slot: Slot) -> None:
    default = point_of(variant, slot)
    assert refusal(variant, slot, default) is None
    legal = points(variant, slot)
    assert legal[0] == default and len(legal) == len({tuple(point.items()) for point in legal})
    for point in legal:
        moved = with_point(variant, slot, point)
        assert point_of(moved, slot) == point
        others = [other for other in SLOTS if other != slot]
        assert all(point_of(moved, other) == point_of(variant, other) for other in others)


@pytest.mark.parametrize(
    ("variant", "slot", "change", "part"),
    [
        (AVX512, "prefill", {"rows": 16, "vectors": 2}, "32 sums and 2 operands need 34 of 32"),
        (AVX2, "prefill", {"rows": 8, "vectors": 2}, "16 sums and 4 operands need 20 of 16"),
        (AVX512, "prefill", {"vectors": 4}, "divide the 2 of 2 blocks"),
        (AVX512, "prefill", {"blocks": 1}, "even"),
        (AVX512, "prefill", {"blocks": 8}, "divide 4"),
        (AVX512, "prefill", {"rows": 6}, "multiple of 4"),
        (AVX512, "prefill", {"unroll": 3}, "divide the 4 runs"),
        (AVX2, "prefill", {"unroll": 2}, "written out"),
        (AVX512, "prefill", {"vectors": 0}, "at least 1"),
        (AVX512, "batch", {"rows": 9}, "from 2 to 8"),
        (AVX512, "decode", {"rows": 2}, "decode has 1 row"),
        (NEON, "prefill", {"vectors": 2}, "choose vectors"),
        (NEON, "batch", {"rows": 3}, "even"),
        (AVX512, "attend_prefill", {"rows": 5}, "divide the 48"),
        (AVX2, "attend_prefill", {"rows": 16}, "16 sums"),
        (AVX512, "attend_decode", {"rows": 0}, "at least 1"),
        (AVX512, "tower", {"blocks": 3}, "divide 4"),
        (AVX2, "tower", {"blocks": 4}, "32 sums"),
    ],
)
def test_rules(variant: Variant, slot: Slot, change: Point, part: str) -> None:
    point = {**point_of(variant, slot), **change}
    assert part in (refusal(variant, slot, point) or "")
    assert point not in points(variant, slot)
    with pytest.raises(ValueError, match="not a legal point"):
        with_point(variant, slot, point)


def test_keys_of_a_point() -> None:
    assert "keys must be" in (refusal(AVX512, "prefill", {"rows": 8}) or "")
    assert "keys must be" in (refusal(AVX512, "tower", {"blocks": 4, "rows": 1}) or "")


def entry(slot: Slot, best: Point, gain: float, finished: bool = True) -> SlotRecord:
    return SlotRecord(
        best=best, default=point_of(AVX512, slot), gain=gain, noise=1.0, finished=finished, date="2026-11-25", cpu="x",
        versions={"apache-tvm": "0"}, clock="thread_cpu", samples=1, shapes=(),
        candidates=(Measured(best, gain, "here"),), refused=(),
    )  # fmt: skip


def test_record_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x86_64.json"
    assert read_record(path, "x86_64") == Record(1, "x86_64", {})
    best = {"rows": 4, "blocks": 2, "vectors": 1, "unroll": 2}
    record = with_slot(Record(1, "x86_64", {}), "avx512vnni", "prefill", entry("prefill", best, 1.1))
    write_record(path, record)
    assert read_record(path, "x86_64") == record
    assert [file.name for file in tmp_path.iterdir()] == ["x86_64.json"]
    assert tuned(AVX512, record).prefill_tile == Tile(4, 2, 1, 2)
    assert tuned(AVX2, record) == AVX2


@pytest.mark.parametrize(("gain", "finished"), [(1.02, True), (0.9, True), (1.5, False)])
def test_no_gain_or_no_end_changes_nothing(gain: float, finished: bool) -> None:
    other = entry("prefill", {"rows": 4, "blocks": 2, "vectors": 1, "unroll": 0}, gain, finished)
    assert tuned(AVX512, with_slot(Record(1, "x86_64", {}), "avx512vnni", "prefill", other)) == AVX512


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda r: r.update(arch="arm64"), "is a record of arm64, expected one of x86_64"),
        (lambda r: r.update(format=2), "format 2, expected 1"),
        (lambda r: r.update(colour="red"), "unknown key 'colour'"),
        (lambda r: r["variants"]["avx512vnni"].update(gpu={}), "unknown key 'gpu'"),
        (lambda r: r["variants"].update(neon=r["variants"].pop("avx512vnni")), "a variant 'neon' that x86_64"),
        (lambda r: r["variants"]["avx512vnni"]["prefill"]["best"].update(rows=32), "32 sums and 2 operands"),
        (lambda r: r["variants"]["avx512vnni"]["prefill"]["best"].update(columns=4), "keys must be"),
        (lambda r: r["variants"]["avx512vnni"]["prefill"]["best"].update(rows="8"), "expected int"),
        (lambda r: r["variants"]["avx512vnni"]["prefill"].pop("gain"), "key 'gain' is missing"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, damage: Any, part: str) -> None:
    path = tmp_path / "record.json"
    write_record(path, with_slot(Record(1, "x86_64", {}), "avx512vnni", "prefill", entry("prefill", PREFILL, 1.1)))
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(PackageError) as caught:
        read_record(path, "x86_64")
    assert part in str(caught.value) and str(path) in str(caught.value)
    path.write_text("{")
    with pytest.raises(PackageError, match="not a tuning record"):
        read_record(path, "x86_64")


def test_the_committed_records_are_what_a_build_takes() -> None:
    for arch in ("x86_64", "arm64"):
        defaults = [variant for variant in VARIANTS if variant.arch == arch]
        assert built_variants(arch, records=False) == defaults
        assert [variant.name for variant in built_variants(arch)] == [variant.name for variant in defaults]


def test_the_library_is_told_the_tiles() -> None:
    moved = with_point(AVX512, "batch", {"rows": 6, "blocks": 4, "vectors": 1, "unroll": 0})
    assert ", 6, 4," in table_source([(moved, [])]) and ", 6, 4," not in table_source([(AVX512, [])])


def test_cli_names_the_slots() -> None:
    assert command.SLOTS == SLOTS


def test_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--dry-run", "--variant", "neon", "--slot", "batch", "--json"]) == 0
    (space,) = json.loads(capsys.readouterr().out)["space"]
    assert space["variant"] == "neon" and space["default"] in space["legal"] and space["n_points"] == 240
    assert main(["tune", "--dry-run", "--variant", "avx512vnni"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(SLOTS)


@pytest.mark.parametrize(
    ("words", "part", "code"),
    [
        (["--variant", "mmx"], "no variant 'mmx'", 2),
        (["--variant", "avx2", "--variant", "neon"], "one architecture at a time", 2),
        (["--variant", "neon"], "cannot run neon", 8),
        (["--tracker", "here"], "HOST:PORT", 2),
        (["--tracker", "h:1", "--key", "k"], "needs --variant", 2),
        (["--slot", "colour"], "invalid choice", 2),
    ],
)
def test_usage(words: list[str], part: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    if "neon" in words and code == 8 and NEON in host_variants():
        pytest.skip("this machine runs neon")
    assert main(["tune", *words]) == code
    assert part in capsys.readouterr().err


# The search itself, on this machine.


def small_works(slot: Slot, arch: str) -> list[Work]:
    return [GemmWork("m", "small", 64, 256, 1 if slot == "decode" else 128, 1)]


@pytest.fixture(scope="module")
def variant() -> Variant:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    runnable = [variant for variant in host_variants() if variant.arch == "x86_64"]
    if not runnable:
        pytest.skip("no x86-64 variant runs here")
    return runnable[-1]


@pytest.fixture(scope="module")
def board() -> Board:
    return local_board()


class Miscalculated(GemmWork):
    """A kernel of another group: it runs, and its result is not the product."""

    def __init__(self, work: Any) -> None:
        super().__init__(**{field.name: getattr(work, field.name) for field in dataclasses.fields(work)})

    def kernel(self, variant: Variant) -> Any:
        return dataclasses.replace(GemmWork("", "", self.n, self.k, self.rows, 1), group=64).kernel(variant)


class SlowBoard:
    """This machine, on which every library but the first takes `slower` times as many calls."""

    def __init__(self, board: Board, slower: float) -> None:
        self.board, self.slower = board, slower
        self.first: Path | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.board, name)

    def time(self, built: Built, work: Work, count: int) -> Any:
        self.first = self.first or built.path
        found = self.board.time(built, work, count)
        factor = 1.0 if built.path == self.first else self.slower
        return dataclasses.replace(found, thread_cpu_s=found.thread_cpu_s * factor)


def search(variant: Variant, board: Any, path: Path, **settings: Any) -> SlotRecord:
    chosen = tune.Settings(samples=3, works=small_works, **settings)
    record = tune.tune([variant], ["decode"], [board], "cpu", path, chosen, lambda *_: None)
    assert read_record(path, variant.arch) == record
    found = record.variants[variant.name].decode
    assert found is not None and found.finished
    return found


def test_a_search_measures_every_shape(variant: Variant, board: Board, tmp_path: Path) -> None:
    found = search(variant, board, tmp_path / "record.json")
    unroll = point_of(variant, "decode")["unroll"]
    shapes = [point for point in points(variant, "decode")[1:] if point["unroll"] == unroll]
    measured = [candidate.point for candidate in found.candidates]
    assert all(shape in measured for shape in shapes) and not found.refused
    assert refusal(variant, "decode", found.best) is None
    assert 0.5 < found.noise < 2 and found.shapes[0].default_us > 0


def test_slow_candidates_are_not_chosen(variant: Variant, board: Board, tmp_path: Path) -> None:
    """Negative control: everything but the default is made three times slower."""
    found = search(variant, SlowBoard(board, 3), tmp_path / "record.json")
    assert found.best == found.default and found.gain == 1.0
    assert all(candidate.gain < 0.9 for candidate in found.candidates)


def test_fast_candidates_are_chosen(variant: Variant, board: Board, tmp_path: Path) -> None:
    found = search(variant, SlowBoard(board, 1 / 3), tmp_path / "record.json")
    assert found.best != found.default and found.gain > 1.5


def test_wrong_candidates_are_refused(variant: Variant, board: Board, tmp_path: Path) -> None:
    """Negative control: a kernel that computes something else is never timed."""
    default = point_of(variant, "decode")

    def planted(works: Sequence[Work], candidate: Variant, path: Path) -> Built:
        miscalculated = [Miscalculated(work) for work in works]
        return build(works if point_of(candidate, "decode") == default else miscalculated, candidate, path)

    found = search(variant, board, tmp_path / "record.json", build=planted)
    assert found.best == default and not found.candidates
    assert found.refused and all("times the bound off its oracle" in refused.reason for refused in found.refused)


def test_an_interruption_keeps_what_was_measured(variant: Variant, board: Board, tmp_path: Path) -> None:
    path = tmp_path / "record.json"

    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    settings = tune.Settings(samples=3, works=small_works)
    with pytest.raises(KeyboardInterrupt):
        tune.tune([variant], ["decode"], [board], "cpu", path, settings, interrupt)
    kept = read_record(path, variant.arch).variants[variant.name].decode
    assert kept is not None and not kept.finished and len(kept.candidates) == 2
    assert tuned(variant, read_record(path, variant.arch)) == variant
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("slot", ["prefill", "decode", "attend_decode"])
def test_real_workloads_give_their_oracles_numbers(variant: Variant, board: Board, slot: Slot, tmp_path: Path) -> None:
    """Each kernel of the default tiles; and the check notices another answer."""
    works = {work.kernel_name(variant): work for work in works_of(slot, variant.arch)}
    built = build(list(works.values()), variant, tmp_path / "default.so")
    for name, work in works.items():
        assert board.error(built, work) < 1, name
        check = work.check(variant)
        assert check.error((*check.arrays[:-1], np.ones_like(check.arrays[-1]))) > check.bound
    board.forget(built)


def test_a_linker_that_refuses_is_named(variant: Variant, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="could not link"):
        build(small_works("decode", variant.arch), variant, tmp_path / "no" / "such.so")
