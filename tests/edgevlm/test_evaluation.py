"""Evaluation: answers equal to separate calls, scores counted by hand, sets and results that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.backends.native_library import library_path
from edgevlm.backends.session import PREFILL_CHUNK_TOKENS
from edgevlm.errors import UsageError
from edgevlm.evaluation.question_set import CARD_NAME, QUESTIONS_NAME, Question, by_picture, choose, open_set
from edgevlm.evaluation.results import compare, read_results, write_results
from edgevlm.evaluation.run import ask, evaluate, keep_tower
from edgevlm.evaluation.scores import (
    MIN_SIMILARITY,
    edit_distance,
    flips,
    is_right,
    normalised,
    score,
    similarity,
    wilson,
)
from edgevlm.evaluation.tilings import measured_tiling
from edgevlm.model import Model, load
from edgevlm.package import open_package
from export import probes
from export.npu.compile import NpuOptions, compile_npu
from export.pipeline import ExportOptions, export_package
from tests import tiny as checkpoints
from tests.edgevlm.question_sets import SIZES, questions, write_set
from tvm_schedules.compile import compile_package

N_TOKENS = 6


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "small", questions())


# ---- the answers are those of separate calls


def alone(package: Path, image: Path, text: str) -> str:
    with load(package) as model:
        return model.generate(text, images=[image], max_new_tokens=N_TOKENS, temperature=0.0).text.strip()


def test_answers_equal_separate_calls(tiny: Path, small_set: Path) -> None:
    asked = open_set(str(small_set))
    found = evaluate(str(tiny), asked, max_new_tokens=N_TOKENS)
    assert [answer.question for answer in found.answers] == [0, 2, 4, 1, 3, 5]
    for answer in found.answers:
        question = asked.questions[answer.question]
        assert answer.text == alone(tiny, asked.picture(question), question.question)
    assert len({answer.text for answer in found.answers}) > 1, "answers that are all the same prove nothing"


def test_a_second_question_reuses_whole_chunks(tiny: Path, small_set: Path) -> None:
    asked = open_set(str(small_set)).questions
    with load(tiny) as model:
        keep_tower(model)
        options = model.options(max_new_tokens=1, temperature=0.0)
        picture = model.picture(small_set / "wide.png")
        first, _ = ask(model, asked[0].question, picture, options)
        second, _ = ask(model, asked[2].question, picture, options)
        assert first.n_reused_tokens == 0 and second.n_reused_tokens == PREFILL_CHUNK_TOKENS < first.n_prompt_tokens
        assert second.timings.encode_s == 0 and model.encoder is not None and model.session.memory().vision_loaded


@pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it")
def test_the_engines_logits_are_equal_to_the_bit(tmp_path: Path) -> None:
    """Whatever was answered before: any prefix of the cache is reused, the answer's rows with it."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    source = checkpoints.make_llama(tmp_path / "checkpoint", hidden_size=128, intermediate_size=192, **heads)
    path = export_package(source, tmp_path / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(path, "x86_64", probes.text()[:2000])
    texts = ["A long beginning. " * 24 + end for end in ("One?", "Two?", "And three?", "Four...")]
    with load(path, backend="native") as model:
        fresh = []
        for text in texts:
            model.session.truncate(0)
            model.loop.forget()
            fresh.append(first_logits(model, text))
        shared = [first_logits(model, text) for text in texts]
        np.testing.assert_array_equal(shared, fresh)
        assert model.generate(texts[-1], max_new_tokens=1).n_reused_tokens > 256


def test_an_npus_chunks_and_simulation_are_asked_too(tmp_path: Path) -> None:
    source = checkpoints.make_smolvlm(tmp_path / "checkpoint")
    path = export_package(source, tmp_path / "package", ExportOptions(scheme="w4g32", vision_scheme="w8", verify=False))
    compile_npu(path, NpuOptions(socs=(), context=160, chunk_tokens=48, ranges="minmax"))
    asked = open_set(
        str(write_set(tmp_path / "set", [Question("wide.png", text, ("x",), "c") for text in ("A?", "B?")]))
    )
    arguments = {"backend": "qnn-sim"}
    found = evaluate(str(path), asked, max_new_tokens=4, tiling={"name": "square"}, load_arguments=arguments)
    assert found.backend == "qnn-sim" and found.cost.n_tiles == 1
    own = open_package(path).manifest.processor
    assert own is not None
    with load(path, **arguments, tiling=measured_tiling(own, "square")) as model:
        assert model.session.reuse_step == 48
        model.session.reuse_step = 1_000_000  # nothing is reused
        picture = tmp_path / "set" / "wide.png"
        texts = [
            model.generate(q.question, images=[picture], max_new_tokens=4, temperature=0.0) for q in asked.questions
        ]
    assert [answer.text for answer in found.answers] == [response.text.strip() for response in texts]


def first_logits(model: Model, text: str) -> np.ndarray:
    """The logits of the answer's first token, by the loop's own prefill."""
    seen: list[np.ndarray] = []
    prefill = model.session.prefill

    def kept(*arguments: object) -> np.ndarray:
        seen.append(prefill(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    model.session.prefill = kept  # type: ignore[assignment]
    model.generate(text, max_new_tokens=1, temperature=0.0)
    model.session.prefill = prefill  # type: ignore[method-assign]
    return seen[0]


# ---- scores


def test_scores_are_counted_by_category_group_and_picture(tiny: Path, tmp_path: Path) -> None:
    """Half of the questions get the model's own answer as the right one, the others an answer it did not give."""
    plain = questions()
    own = evaluate(str(tiny), open_set(str(write_set(tmp_path / "plain", plain))), max_new_tokens=N_TOKENS)
    texts = {answer.question: answer.text for answer in own.answers}
    marked = [replace(q, answers=("never said", texts[i])) if i % 2 == 0 else q for i, q in enumerate(plain)]
    asked = open_set(str(write_set(tmp_path / "marked", marked)))
    found = evaluate(str(tiny), asked, max_new_tokens=N_TOKENS)
    assert (found.score.n_right, found.score.n_asked, found.score.accuracy) == (3, 6, 0.5)
    assert {name: (s.n_right, s.n_asked) for name, s in found.categories.items()} == {
        "kind 0": (1, 2), "kind 1": (1, 2), "kind 2": (1, 2),
    }  # fmt: skip
    by_size = found.groups["size"]
    assert (by_size["wide"].n_right, by_size["small"].n_right) == (3, 0)
    plans = {picture.image: picture for picture in found.pictures}
    assert set(plans) == set(SIZES) and plans["small.png"].n_tiles == 1 < plans["wide.png"].n_tiles
    assert found.cost.n_tiles == (1 + plans["wide.png"].n_tiles) / 2
    assert found.group_costs["size"]["wide"].n_image_tokens == 4 * plans["wide.png"].n_tiles


@settings(deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilson_interval_is_where_the_score_test_turns(n_asked: int, data: st.DataObject) -> None:
    """Its definition: at both ends the share found is 1.96 standard errors of that end away."""
    n_right = data.draw(st.integers(0, n_asked))
    rate = n_right / n_asked
    low, high = wilson(n_right, n_asked)
    assert 0 <= low <= rate <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            error = (end * (1 - end) / n_asked) ** 0.5
            assert abs(rate - end) == pytest.approx(1.959964 * error, rel=1e-6, abs=1e-9)


def test_wilson_interval_of_half() -> None:
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_normalised_answers() -> None:
    assert normalised("  The\u00a0Red\n circle. ") == "the red circle"
    assert is_right("“Blue!”", ["red", "blue"]) and not is_right("bluer", ["blue"])
    assert not is_right("", ["blue"]) and normalised("3.5") == "3.5"


def test_similarity() -> None:
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3
    assert similarity("gren", ["red", "green"]) == pytest.approx(0.8)
    assert similarity("cat", ["dog"]) == 0.0 and similarity("ab", ["ac"]) == MIN_SIMILARITY
    assert similarity("Green.", ["green"]) == 1.0


@settings(deadline=None)
@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) and (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_flips() -> None:
    here = {0: (True, "a"), 1: (False, "b"), 2: (True, "c"), 3: (False, "d"), 9: (True, "x")}
    there = {0: (True, "a"), 1: (True, "e"), 2: (False, "f"), 3: (False, "g"), 8: (True, "x")}
    found = flips("other", here, there)
    assert (found.n_compared, found.n_same_text, found.n_gained, found.n_lost) == (4, 1, 1, 1)
    assert found.difference == 0 and found.p_value == 1.0
    uneven = flips("other", {i: (i == 0, "") for i in range(6)}, {i: (i != 0, "") for i in range(6)})
    assert uneven.p_value == pytest.approx(2 * (1 + 6) / 64)  # 1 of 6 by a fair coin, both sides


def test_a_score_has_its_similarity() -> None:
    assert score([(True, 1.0), (False, 0.5)]).similarity == 0.75


# ---- sets


def test_choice_is_by_seed_and_grows_with_the_limit() -> None:
    many = [Question(f"{i % 7}.png", "?", ("yes",), "c") for i in range(70)]
    flat = {limit: [i for group in choose(many, limit, 1) for i in group] for limit in (5, 20, 70, 100)}
    assert [len(flat[limit]) for limit in (5, 20, 70, 100)] == [5, 20, 70, 70]
    assert set(flat[5]) < set(flat[20]) and choose(many, 20, 1) != choose(many, 20, 2)
    for group in choose(many, 20, 1):
        assert len({many[i].image for i in group}) == 1 and group == sorted(group)
    assert choose(many, None, 1) == by_picture(many)


def test_a_missing_set_names_the_command_that_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"python assets/demo/sets.py easy-vqa"):
        open_set("easy-vqa")
    with pytest.raises(UsageError, match="neither a directory nor a set"):
        open_set("../elsewhere")
    write_set(tmp_path / "sets" / "easy-vqa", questions())
    assert open_set("easy-vqa").card.name == "small"


def damage_picture(directory: Path) -> None:
    data = bytearray((directory / "wide.png").read_bytes())
    data[-20] ^= 1
    (directory / "wide.png").write_bytes(data)


def damage_line(directory: Path) -> None:
    lines = (directory / QUESTIONS_NAME).read_text().splitlines()
    (directory / QUESTIONS_NAME).write_text("\n".join([lines[0], '{"image": 3}', *lines[2:]]))


def outside(directory: Path) -> None:
    write_set(directory, questions())
    text = (directory / QUESTIONS_NAME).read_text().replace("small.png", "../small.png")
    (directory / QUESTIONS_NAME).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_picture, "digest"),
        (damage_line, "line 2"),
        (outside, "outside the set"),
        (lambda d: (d / "wide.png").unlink(), "cannot read"),
        (lambda d: (d / QUESTIONS_NAME).write_text(""), "no questions"),
        (lambda d: (d / CARD_NAME).write_text("[]"), "expected an object"),
        (lambda d: (d / CARD_NAME).unlink(), "cannot read"),
    ],
)
def test_damaged_sets_are_refused(damage: object, message: str, tmp_path: Path) -> None:
    directory = write_set(tmp_path / "set", questions())
    assert len(open_set(str(directory)).questions) == 6
    damage(directory)  # type: ignore[operator]
    with pytest.raises(UsageError, match=message):
        open_set(str(directory))


# ---- results


def test_results_are_read_back_and_compared(tiny: Path, small_set: Path, tmp_path: Path) -> None:
    asked = open_set(str(small_set))
    few = evaluate(str(tiny), asked, limit=3, seed=4, max_new_tokens=N_TOKENS)
    write_results(few, tmp_path / "few.json")
    assert read_results(tmp_path / "few.json") == few
    assert [p.name for p in tmp_path.iterdir()] == ["few.json"]
    found = compare(evaluate(str(tiny), asked, max_new_tokens=N_TOKENS), few)
    assert (found.n_compared, found.n_same_text, found.n_gained, found.n_lost) == (3, 3, 0, 0)
    with pytest.raises(UsageError, match="another set"):
        compare(few, replace(few, set=replace(few.set, sha256="0" * 64)))
    with pytest.raises(UsageError, match="no question in common"):
        compare(few, replace(few, answers=()))


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1}', '{"format": 7}', "[1]"])
def test_what_is_not_results_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UsageError, match="not results of"):
        read_results(tmp_path / "r.json")


def test_a_language_model_cannot_be_asked(tiny_text: Path, small_set: Path) -> None:
    with pytest.raises(UsageError, match="takes no pictures"):
        evaluate(str(tiny_text), open_set(str(small_set)))


def test_sets_are_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = load_sets(monkeypatch)
    content = (write_set(tmp_path / "source", questions()) / "wide.png").read_bytes()

    def pictures(limit: int | None, split: str) -> object:
        for index in range(2 if limit is None else limit):
            if index == 2:
                raise RuntimeError("the source broke")
            name = f"images/{index}.png"
            yield sets.Pictured(name, content, [Question(name, f"{split} {index}?", ("yes",), "c")])

    monkeypatch.setitem(sets.SOURCES, "scenes", sets.Source("a test", "CC0-1.0", pictures))
    assert sets.make_set("scenes", tmp_path / "made") == 2
    made = open_set(str(tmp_path / "made"))
    assert (made.card.n_pictures, made.questions[1].question) == (2, "test 1?")
    with pytest.raises(RuntimeError):
        sets.make_set("scenes", tmp_path / "made", limit=3)
    assert open_set(str(tmp_path / "made")) == made
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "source"]


def test_scenes_are_grouped_by_what_the_ablation_divides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the scenes' fonts are matplotlib's")
    sets = load_sets(monkeypatch)
    n_questions = sets.make_set("scenes", tmp_path / "scenes", limit=4, split="validation")
    made = open_set(str(tmp_path / "scenes"))
    assert made.card.name == "scenes (validation)" and len(made.questions) == n_questions >= 4
    for question in made.questions:
        reads = question.category in sets.READING
        wanted = {"kind", "aspect ratio"} | ({"text height in one tile", "reading"} if reads else set())
        assert set(question.groups) == wanted
    assert [sets.binned(ratio, sets.ASPECTS) for ratio in (1.0, 1.25, 3.0, 5.0)] == [
        "up to 1.25:1", "1.25:1 to 2:1", "2:1 to 3.5:1", "above 3.5:1",
    ]  # fmt: skip
    again = sets.make_set("scenes", tmp_path / "again", limit=4, split="validation")
    assert again == n_questions and open_set(str(tmp_path / "again")).card.sha256 == made.card.sha256


def load_sets(monkeypatch: pytest.MonkeyPatch) -> object:
    """assets/demo/sets.py, imported as its own directory's scripts are."""
    import importlib

    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "assets" / "demo"))
    return importlib.import_module("sets")


def test_sets_are_json_lines(small_set: Path) -> None:
    lines = (small_set / QUESTIONS_NAME).read_text().splitlines()
    assert len(lines) == 6 and all(set(json.loads(line)) >= {"image", "question", "answers"} for line in lines)


def test_package_of_the_tests_has_several_tiles(tiny: Path) -> None:
    processor = open_package(tiny).manifest.processor
    assert processor is not None and processor.tile_px < SIZES["wide.png"][0]
