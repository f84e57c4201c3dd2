"""Conversations of the Java library on this machine's engine: the answers of the Python runtime, token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgevlm
from tests.tokenizer_strings import make_strings

NEW_TOKENS = 12
TURNS = [
    {"text": "What is in this picture?", "picture": 0},
    {"text": "Is it red? <|im_end|> <image> 🙂"},
    {"text": "And in this one?", "picture": 1},
    {"text": "Say it again.", "trim": "KEY_VALUES"},
    {"text": "Both of them?", "trim": "VISION"},
]


def pictures(directory: Path) -> list[tuple[Path, Any]]:
    """Two pictures as files of raw RGB, and as arrays."""
    rng = np.random.default_rng(1)
    found = []
    for index, (height, width) in enumerate(((90, 130), (40, 40))):
        array = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = directory / f"picture{index}.rgb"
        path.write_bytes(array.tobytes())
        found.append((path, array))
    return found


def java_turns(
    java: Any, classes: Path, jni: Path, package: Path, conversations: list[dict[str, Any]], scratch: Path
) -> list[list[dict[str, Any]]]:
    """Returns what ConversationRunner found for each turn of each conversation."""
    given, found = scratch / "conversations.json", scratch / "results.json"
    given.write_text(json.dumps(conversations), encoding="utf-8")
    java(classes, "org.edgevlm.ConversationRunner", package, given, found, library=jni)
    return list(json.loads(found.read_text(encoding="utf-8")))


def test_answers_are_pythons(picture_package: Path, java: Any, classes: Path, jni: Path, tmp_path: Path) -> None:
    """Two pictures, five turns, the cache put down in between: same ids, texts, prompts and reuse."""
    files = pictures(tmp_path)
    turns = []
    for turn in TURNS:
        found = {key: value for key, value in turn.items() if key != "picture"}
        if "picture" in turn:
            path, array = files[int(str(turn["picture"]))]
            found["picture"] = [str(path), array.shape[1], array.shape[0]]
        turns.append(found)
    given = {"max_new_tokens": NEW_TOKENS, "turns": turns}
    (results,) = java_turns(java, classes, jni, picture_package, [given], tmp_path)
    with edgevlm.load(picture_package, backend="native", threads=2) as model:
        chat = model.chat()
        for turn, result in zip(TURNS, results, strict=True):
            if "picture" in turn:
                chat.attach(files[int(str(turn["picture"]))][1])
            *_, last = chat.send(str(turn["text"]), max_new_tokens=NEW_TOKENS)
            response = last.response
            assert response is not None
            assert result["ids"] == list(response.token_ids)
            assert result["text"] == result["heard"] == response.text
            assert result["prompt_tokens"] == response.n_prompt_tokens
            assert result["image_tokens"] == response.n_image_tokens > 0
            assert result["reused"] == response.n_reused_tokens
    assert len({str(result["ids"]) for result in results}) > 1


def test_another_picture_gives_another_answer(
    picture_package: Path, java: Any, classes: Path, jni: Path, tmp_path: Path
) -> None:
    """The control of the comparison above: the features are read."""
    conversations = []
    for path, array in pictures(tmp_path):
        picture = [str(path), array.shape[1], array.shape[0]]
        turn = {"text": "What?", "picture": picture}
        conversations.append({"max_new_tokens": NEW_TOKENS, "turns": [turn]})
    first, second = java_turns(java, classes, jni, picture_package, conversations, tmp_path)
    assert first[0]["ids"] != second[0]["ids"]


def test_random_prompts_never_fail(picture_package: Path, java: Any, classes: Path, jni: Path, tmp_path: Path) -> None:
    """2,000 prompts of any characters: each gets an answer in whole characters, or a refusal with a reason."""
    texts = make_strings(("<|im_end|>", "<|im_start|>", "<image>"), 2_000, seed=21)
    conversations = [{"max_new_tokens": 2, "turns": [{"text": text}]} for text in texts]
    results = [turns[0] for turns in java_turns(java, classes, jni, picture_package, conversations, tmp_path)]
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


def test_a_failed_check_is_told(java: Any, classes: Path, tmp_path: Path) -> None:
    """The control: without a package every check fails, and so does the run."""
    with pytest.raises(AssertionError, match="FAIL check"):
        java(classes, "org.edgevlm.ImporterChecks", tmp_path / "none", tmp_path)


def test_sampling_is_pythons(picture_package: Path, java: Any, classes: Path, jni: Path, tmp_path: Path) -> None:
    """A seeded answer: the sampler is the engine's, equal to the Python runtime's."""
    options = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
    given = {"max_new_tokens": NEW_TOKENS, "sampling": options, "turns": [{"text": "Tell me a story."}]}
    ((result,),) = java_turns(java, classes, jni, picture_package, [given], tmp_path)
    with edgevlm.load(picture_package, backend="native", threads=2) as model:
        response = model.generate("Tell me a story.", max_new_tokens=NEW_TOKENS, **options)
        greedy = model.generate("Tell me a story.", max_new_tokens=NEW_TOKENS)
    assert result["ids"] == list(response.token_ids) != list(greedy.token_ids)
