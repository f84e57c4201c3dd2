"""The phone's two libraries under qemu: the JNI functions answer as the Python runtime does, token for token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native_library import host_arch, library_path
from edgevlm.package import Package, open_package
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.android_demo.arm64_library import play
from tests.android_demo.phone_conversation import (
    Played,
    Question,
    Turn,
    ask_python,
    demo_questions,
    jni_script,
    read_played,
    write_script,
)
from tests.tvm_schedules.arm64 import emulator
from tvm_schedules.compile import compile_package

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it"),
    pytest.mark.skipif(host_arch() != "x86_64", reason="compares arm64 with an x86-64 host"),
]

N_NEW = 12
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
VARIANTS = {cpu: variant for variant, cpu in emulator.CPUS.items()}
"""CPU → the variant that the library must choose there."""


@dataclass(frozen=True)
class Asked:
    """A conversation and what the Python runtime made of it, ready to be played."""

    package: Package
    questions: list[Question]
    turns: list[Turn]
    script: list[str]

    @classmethod
    def on_host(cls, path: Path, questions: list[Question], scratch: Path) -> Asked:
        """Asks the questions on this machine's engine."""
        package = open_package(path)
        turns = ask_python(path, questions, N_NEW)
        return cls(package, questions, turns, jni_script(package, "arm64", questions, turns, N_NEW, scratch))

    def ids(self) -> list[tuple[int, ...]]:
        """What every player must say."""
        return [turn.response.token_ids for turn in self.turns]

    def pixels(self) -> list[int]:
        """What every player must see."""
        pairs = zip(self.questions, self.turns, strict=True)
        return [turn.pixels for question, turn in pairs if question.picture is not None]


def played(cpu: str, lines: list[str], scratch: Path) -> Played:
    """Plays to the end; whatever is refused fails the test."""
    result = play(cpu, write_script(scratch / "script", lines))
    assert result.returncode == 0, result.stderr
    found = read_played(result.stdout)
    assert found.variant == VARIANTS[cpu]
    return found


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """A tiny bluelm_v: two pictures of several tiles, the cache put down in between."""
    emulator.qemu()
    directory = tmp_path_factory.mktemp("seeing")
    source = tiny.make_bluelm_v(directory / "checkpoint", vision={"hidden_size": 128}, text=SIZES)
    path = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    for arch in ("x86_64", "arm64"):
        compile_package(path, arch, probes.text()[:2000])
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 256, size, dtype=np.uint8) for size in ((90, 130, 3), (40, 41, 3)))
    questions = [
        Question("What is in this picture?", first),
        Question("Is it red? 🙂"),
        Question("And in this one?", second),
        Question("Say it again.", trim="KEY_VALUES"),
    ]
    return Asked.on_host(path, questions, directory)


@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_a_conversation_is_pythons(seeing: Asked, cpu: str, tmp_path: Path) -> None:
    found = played(cpu, seeing.script, tmp_path)
    assert list(found.ids) == seeing.ids()
    assert len(set(found.ids)) > 1
    assert list(found.pixels) == seeing.pixels()
    tiles = [rows * cols + thumbnail for rows, cols, thumbnail in found.plans]
    assert max(tiles) > 1 and sum(tiles) == seeing.turns[-1].response.n_tiles


def test_other_pixels_give_another_answer(seeing: Asked, tmp_path: Path) -> None:
    """The control: the picture's file is read, and so is its orientation."""
    (line,) = [line for line in seeing.script if line.startswith("picture") and line.endswith(" 4 3")]
    index = seeing.script.index(line)
    changed = [*seeing.script[:index], line.removesuffix("3") + "1", *seeing.script[index + 1 :]]
    found = played("max", changed, tmp_path)
    assert list(found.ids[:2]) == seeing.ids()[:2]
    assert list(found.ids) != seeing.ids() and found.pixels[0] == seeing.pixels()[0] != found.pixels[1]


def test_refusals_come_with_their_sentence(seeing: Asked, tmp_path: Path) -> None:
    """What Java throws: a status and the library's words, for a package, a context and a cancel."""
    opened, spec = seeing.script[:2]
    turn = next(line for line in seeing.script if line.startswith("turn"))
    text_only = f"turn 0 4 0 1 ids 300 {' '.join(['5'] * 300)}"
    cases = [
        (["open /nonexistent 2 512"], 3, "No such file"),
        ([opened.replace("/lib/arm64", "/lib/x86_64"), spec], 3, "compile the package for this target"),
        ([" ".join([*opened.split()[:3], "301"]), text_only, text_only.replace("turn 0", "turn 300")], 7, "do not fit"),
        ([opened, "cancel", text_only], 130, ""),
        ([opened, turn], 98, "a row is of no picture"),
    ]
    for number, (lines, code, words) in enumerate(cases):
        result = play("max", write_script(tmp_path / f"script{number}", lines))
        assert (result.returncode, words in result.stderr) == (code, True), (lines[0], result.stderr)


@pytest.mark.weights
@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_the_demo_answers_a_short_question(demo_package: Path, cpu: str, tmp_path: Path) -> None:
    """One tile, at most twelve tokens."""
    asked = Asked.on_host(demo_package, demo_questions()[:1], tmp_path)
    found = played(cpu, asked.script, tmp_path)
    assert asked.turns[0].response.n_tiles == 1
    assert list(found.ids) == asked.ids() and found.ids[0]


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_the_demo_holds_a_conversation(demo_package: Path, cpu: str, tmp_path: Path) -> None:
    """Two pictures, ten tiles in all: some minutes of emulation."""
    asked = Asked.on_host(demo_package, demo_questions(), tmp_path)
    found = played(cpu, asked.script, tmp_path)
    assert list(found.ids) == asked.ids()
