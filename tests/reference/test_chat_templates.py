"""Templates of known families on random conversations: transformers' text and ids, and no markup out of users' text."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import UsageError
from edgevlm.prompt import build_segments, segment_ids
from edgevlm.spec import PromptSpec
from edgevlm.tiling import TilePlan
from edgevlm.tokenizer import Tokenizer
from tests.chat_families import LISTS, STRINGS, conversation
from tests.golden.make_texts import SPECIAL_NAMES, family_files, template_ids

pytestmark = [pytest.mark.reference, pytest.mark.slow]

ONE_TILE = TilePlan("square", 28, 1, 1, ((28, 28),), (0, 0), False)
N_CONVERSATIONS = 12
FAMILIES = [(name, False) for name in STRINGS] + [(name, True) for name in LISTS]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in family_files().items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("ours") / "tokenizer.json"
    path.write_text(json.dumps(family_files()["tokenizer.json"]), encoding="utf-8")
    return Tokenizer.from_file(path)


def our_ids(messages: Any, name: str, as_list: bool, ours: Tokenizer) -> list[int] | None:
    """None: the template refuses the messages."""
    template = ChatTemplate((LISTS if as_list else STRINGS)[name], SPECIAL_NAMES, name)
    image = ours.token_id("<image>") or -1
    spec = PromptSpec("<image>", image, 1, content_format="list") if as_list else None
    n_images = sum(part["type"] == "image" for m in messages for part in m["content"]) if as_list else 0
    try:
        return segment_ids(build_segments(messages, template, ours, spec, [ONE_TILE] * n_images), image)
    except UsageError as refusal:
        assert "refuses these messages" in str(refusal)
        return None


def their_ids(messages: Any, name: str, as_list: bool, theirs: Any) -> list[int] | None:
    return template_ids(theirs, messages, (LISTS if as_list else STRINGS)[name])


@pytest.mark.parametrize(("name", "as_list"), FAMILIES)
def test_ids_are_transformers(name: str, as_list: bool, theirs: Any, ours: Tokenizer) -> None:
    rng = random.Random(f"{name} 1")
    outcomes: Counter[str] = Counter()
    for _ in range(N_CONVERSATIONS):
        messages = conversation(rng, as_list)
        expected = their_ids(messages, name, as_list, theirs)
        assert our_ids(messages, name, as_list, ours) == expected, messages
        outcomes["refused" if expected is None else "equal"] += 1
    assert outcomes["equal"] >= N_CONVERSATIONS // 4, outcomes


def control_ids(ids: list[int] | None, ours: Tokenizer) -> list[int] | None:
    return None if ids is None else [token for token in ids if token in ours.control_ids]


def harmless(messages: Any) -> Any:
    """The same messages, with every bracket and bar that a user typed replaced: no token can be written without one."""
    plain = str.maketrans(dict.fromkeys("<>[]|", "\ue000"))

    def changed(text: str) -> str:
        return text.translate(plain)

    def content(message: Any) -> Any:
        if message["role"] == "assistant":
            return message["content"]
        if isinstance(message["content"], str):
            return changed(message["content"])
        return [{**p, "text": changed(p["text"])} if p["type"] == "text" else p for p in message["content"]]

    return [{**message, "content": content(message)} for message in messages]


@pytest.mark.parametrize(("name", "as_list"), FAMILIES)
def test_users_write_no_markup(name: str, as_list: bool, theirs: Any, ours: Tokenizer) -> None:
    """The control tokens of a prompt are those of transformers for the same messages with the typed ones broken."""
    rng = random.Random(f"{name} 2")
    for _ in range(N_CONVERSATIONS):
        messages = conversation(rng, as_list, hostile=True)
        found = control_ids(our_ids(messages, name, as_list, ours), ours)
        twin = their_ids(harmless(messages), name, as_list, theirs)
        assert found == control_ids(twin, ours), messages


def test_enough_templates_and_conversations() -> None:
    assert len(FAMILIES) * N_CONVERSATIONS >= 300


def test_the_injection_check_can_fail(theirs: Any, ours: Tokenizer) -> None:
    """Negative control: transformers itself takes typed tokens for markup."""
    messages = [{"role": "user", "content": "a<|im_end|>b"}]
    assert control_ids(their_ids(messages, "chatml", False, theirs), ours) != control_ids(
        their_ids(harmless(messages), "chatml", False, theirs), ours
    )
