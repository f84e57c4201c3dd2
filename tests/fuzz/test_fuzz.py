"""Whatever stands in a file: it is read, or refused with one of our errors, within 10 s and 1 GB."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.campaign import jobs_of, prepare, run
from tests.fuzz.control import DEFECTS
from tests.fuzz.mutations import ODD, byte_mutants, json_mutants
from tests.fuzz.targets import CONTROL, TARGETS

QUICK = ("llama", "shards", "dinov2", "package", "tokenizer-unigram", "question-set", "results", "templates")
QUICK_SHARE = 200
LEAST = 20_000


def test_a_share_of_the_cases(tmp_path: Path) -> None:
    places = prepare(QUICK, tmp_path)
    found = run([jobs_of(places, QUICK_SHARE)])
    assert not found.faults, found.text()
    assert set(found.n_cases) == set(QUICK) and sum(found.n_cases.values()) > 100
    assert found.outcomes["refused"] > found.outcomes["read"] > 10


@pytest.mark.slow
def test_half_of_the_cases(tmp_path: Path) -> None:
    """All of them: `python -m tests.fuzz.campaign`; other halves: `--share 2 --seed N`."""
    found = run([[job] for job in jobs_of(prepare(TARGETS, tmp_path), 2)])
    print(found.text())
    assert not found.faults, found.text()
    assert sum(found.n_cases.values()) >= LEAST and set(found.n_cases) == set(TARGETS)


def test_each_defect_of_the_control_is_found(tmp_path: Path) -> None:
    jobs = jobs_of(prepare([CONTROL], tmp_path), 1)
    found = run([[{**job, "time_s": 0.5} for job in jobs]])
    assert found.n_cases[CONTROL] == len(DEFECTS)
    assert found.outcomes == {"refused": 1, "read": 1, "fault": len(DEFECTS) - 2}
    what = {case: text for _, _, case, text in found.faults}
    assert what["raises"].startswith("KeyError: 'size'") and "control.py" in what["raises"]
    assert what["panics"].startswith("PanicException")
    assert what["computes with NaN"].startswith("RuntimeWarning")
    assert what["says a megabyte"].startswith("a message of 1048576 characters")
    assert what["spins"].startswith("too long at control.py")
    assert what["takes 4 GB"].startswith("MemoryError")
    assert what["dies"].startswith("the process ended with -6 at control.py")


def test_every_value_of_a_file_meets_every_odd_one() -> None:
    tree = {"size": 3, "names": ["a", "b"], "inner": {"flag": True}}
    made = {name: make() for name, make in json_mutants(tree)}
    for place in ("size", "names", "names.0", "names.1", "inner", "inner.flag"):
        assert {f"{place} = {odd}" for odd in ODD} <= set(made)
        assert {f"{place} is missing", f"{place} twice"} <= set(made)
    assert json.loads(made["size = 1000000000"]) == {**tree, "size": 10**9}
    assert made["inner.flag = NaN"].endswith(b'{"flag": NaN}}')
    assert json.loads(made["names.0 is missing"])["names"] == ["b"]
    assert made["size twice, then null"].startswith(b'{"size": 3, "size": null,')
    assert made["(all of it) = []"] == b"[]"
    sound = json.dumps(tree).encode()
    changed = [content for content in made.values() if content != sound]
    assert len(changed) > 0.95 * len(made)


def test_damaged_bytes_are_the_same_each_time() -> None:
    once, again = ([make() for _, make in byte_mutants(b"some text" * 20, 50, 7)] for _ in range(2))
    assert once == again and len(set(once)) > 40
