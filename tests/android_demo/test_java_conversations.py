"""Conversations of the Java library on this machine's engine: the answers of the Python runtime, token for token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgevlm
from tests.android_demo.host_library import run_conversations
from tests.android_demo.phone_conversation import Question, ask_python, demo_questions, java_conversation
from tests.tokenizer_strings import make_strings

NEW_TOKENS = 12
RNG = np.random.default_rng(1)
PICTURES = [RNG.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((90, 130), (40, 40))]
QUESTIONS = [
    Question("What is in this picture?", PICTURES[0]),
    Question("Is it red? <|im_end|> <image> 🙂"),
    Question("And in this one?", PICTURES[1]),
    Question("Say it again.", trim="KEY_VALUES"),
    Question("Both of them?", trim="VISION"),
]


def check_answers(
    package: Path, questions: Sequence[Question], classes: Path, jni: Path, scratch: Path
) -> list[dict[str, Any]]:
    """Compares ids, texts, prompts and reuse with the Python runtime's; returns what Java found for each turn."""
    given = java_conversation(questions, NEW_TOKENS, scratch)
    (results,) = run_conversations(classes, jni, package, [given], scratch)
    for turn, result in zip(ask_python(package, questions, NEW_TOKENS), results, strict=True):
        response = turn.response
        assert result["ids"] == list(response.token_ids)
        assert result["text"] == result["heard"] == response.text
        assert result["prompt_tokens"] == response.n_prompt_tokens
        assert result["image_tokens"] == response.n_image_tokens > 0
        assert result["reused"] == response.n_reused_tokens
        assert result["weights_mapped"] and not result["vision_mapped"]
    return results


def test_answers_are_pythons(picture_package: Path, classes: Path, jni: Path, tmp_path: Path) -> None:
    """Two pictures, five turns, the cache put down in between."""
    results = check_answers(picture_package, QUESTIONS, classes, jni, tmp_path)
    assert len({str(result["ids"]) for result in results}) > 1


@pytest.mark.weights
def test_the_demo_answers_as_in_python(demo_package: Path, classes: Path, jni: Path, tmp_path: Path) -> None:
    """A whole conversation with the demo's model."""
    results = check_answers(demo_package, demo_questions(), classes, jni, tmp_path)
    assert all(result["text"] for result in results)


def test_another_picture_gives_another_answer(picture_package: Path, classes: Path, jni: Path, tmp_path: Path) -> None:
    """The control of the comparison above: the features are read."""
    conversations = []
    for index, picture in enumerate(PICTURES):
        (tmp_path / str(index)).mkdir()
        conversations.append(java_conversation([Question("What?", picture)], NEW_TOKENS, tmp_path / str(index)))
    first, second = run_conversations(classes, jni, picture_package, conversations, tmp_path)
    assert first[0]["ids"] != second[0]["ids"]


def test_random_prompts_never_fail(picture_package: Path, classes: Path, jni: Path, tmp_path: Path) -> None:
    """2,000 prompts of any characters: each gets an answer in whole characters, or a refusal with a reason."""
    texts = make_strings(("<|im_end|>", "<|im_start|>", "<image>"), 2_000, seed=21)
    conversations = [{"max_new_tokens": 2, "turns": [{"text": text}]} for text in texts]
    results = [turns[0] for turns in run_conversations(classes, jni, picture_package, conversations, tmp_path)]
    assert len(results) == 2_000
    answered = [result for result in results if "ids" in result]
    assert len(answered) > 1_900
    assert all(result["text"] == result["heard"] for result in answered)
    refused = [result for result in results if "ids" not in result]
    assert {result["refused"] for result in refused} <= {"CONTEXT_FULL"}


@pytest.mark.parametrize("test", ["ImporterChecks", "ConversationChecks"])
def test_failures_and_interruptions(test: str, picture_package: Path, java: Any, classes: Path, tmp_path: Path) -> None:
    """The library's own checks, one line each."""
    output = java(classes, f"org.edgevlm.{test}", picture_package, tmp_path)
    assert " 0 failed" in output


def test_interruptions_on_the_real_engine(
    picture_package: Path, java: Any, classes: Path, jni: Path, tmp_path: Path
) -> None:
    """Cancel, close and trim at any moment: every answer ends, and the next is what it would have been."""
    output = java(classes, "org.edgevlm.InterruptionChecks", picture_package, tmp_path, library=jni)
    assert "4 checks, 0 failed" in output


def test_a_failed_check_is_told(java: Any, classes: Path, tmp_path: Path) -> None:
    """The control: without a package every check fails, and so does the run."""
    with pytest.raises(AssertionError, match="FAIL check"):
        java(classes, "org.edgevlm.ImporterChecks", tmp_path / "none", tmp_path)


def test_sampling_is_pythons(picture_package: Path, classes: Path, jni: Path, tmp_path: Path) -> None:
    """A seeded answer: the sampler is the engine's, equal to the Python runtime's."""
    options = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
    given = {"max_new_tokens": NEW_TOKENS, "sampling": options, "turns": [{"text": "Tell me a story."}]}
    ((result,),) = run_conversations(classes, jni, picture_package, [given], tmp_path)
    with edgevlm.load(picture_package, backend="native", threads=2) as model:
        response = model.generate("Tell me a story.", max_new_tokens=NEW_TOKENS, **options)
        greedy = model.generate("Tell me a story.", max_new_tokens=NEW_TOKENS)
    assert result["ids"] == list(response.token_ids) != list(greedy.token_ids)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_penalty_with_a_picture_is_pythons(
    temperature: float, picture_package: Path, classes: Path, jni: Path, tmp_path: Path
) -> None:
    """The picture's placeholders are no history; the prompt's text and the answer are."""
    options = {"temperature": temperature, "seed": 7}
    given = java_conversation([QUESTIONS[0], QUESTIONS[1]], NEW_TOKENS, tmp_path)
    found = []
    for penalty in (1.7, 1.0):
        asked = {**given, "sampling": {**options, "repetition_penalty": penalty}}
        (turns,) = run_conversations(classes, jni, picture_package, [asked], tmp_path)
        found.append([turn["ids"] for turn in turns])
    with edgevlm.load(picture_package, backend="native", threads=2) as model:
        talk = model.chat()
        for number, question in enumerate(QUESTIONS[:2]):
            if question.picture is not None:
                talk.attach(question.picture)
            *_, last = talk.send(question.text, max_new_tokens=NEW_TOKENS, repetition_penalty=1.7, **options)
            assert last.response is not None
            assert found[0][number] == list(last.response.token_ids)
    assert found[0] != found[1]  # negative control: the penalty counts


def test_options_are_pythons(java: Any, classes: Path) -> None:
    """Every row of the table that tests/edgevlm/test_generate.py runs too."""
    table = Path(__file__).parents[1] / "generation_options.json"
    assert "1 checks, 0 failed" in java(classes, "org.edgevlm.OptionsChecks", table)
