"""The `tokenizers` library's own failures as our errors: bare exceptions, and panics of its Rust code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgevlm.errors import PackageError
from edgevlm.manifest_values import MAX_VOCAB

MAX_PIECE_CHARS = 10_000
"""Published vocabularies have none of a hundred."""


@contextmanager
def tokenizers_errors(where: str, doing: str, hint: str = "; export the model again") -> Iterator[None]:
    """Raises PackageError, 'WHERE DOING (reason)' and the hint, for whatever the library raises in the block.

    A file that contradicts itself is found when it is read, or only at the first text: the library raises a bare
    Exception, or panics, which Python sees as a BaseException of pyo3. Python's own errors pass.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if not is_panic and type(error) is not Exception:
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PackageError(f"{where} {doing} ({reason[:300]}){hint}") from None


def check_pieces(text: str, where: str) -> None:
    """Raises PackageError when a piece of a Unigram model, in a tokenizer.json's text, is too long for the library.

    It frees the model's trie level by level, each in a call of its own: a piece of a million characters overflows the
    stack, which ends the process.
    """
    if '"Unigram"' not in text:
        return
    try:
        pieces = json.loads(text)["model"]["vocab"]
        longest = max((len(piece[0]) for piece in pieces), default=0)
    except (ValueError, LookupError, TypeError, RecursionError):
        return  # no Unigram model: the library says what it is
    if longest > MAX_PIECE_CHARS:
        raise PackageError(
            f"{where}: a piece of its vocabulary has {longest:,} characters, at most {MAX_PIECE_CHARS:,} are read"
        )


def check_framing(backend: Any, where: str) -> None:
    """Raises PackageError when the tokens put around a text are named, but not listed.

    The library panics at the first text then, and prints its own words before ours.
    """
    if backend.post_processor is None:
        return
    state = json.loads(backend.post_processor.__getstate__())
    for step in state.get("processors", [state]):
        if step["type"] != "TemplateProcessing":
            continue
        named = [part["SpecialToken"]["id"] for part in (*step["single"], *step["pair"]) if "SpecialToken" in part]
        missing = sorted(set(named) - set(step["special_tokens"]))
        if missing:
            raise PackageError(
                f"{where}: the post-processor puts {missing[0]!r} around a text, which is not among its special_tokens"
            )


def written(backend: Any, where: str = "tokenizer.json") -> str:
    """Returns the JSON of a `tokenizers` object. Raises PackageError for a token id that no vocabulary has.

    The library makes a list with a place for each id up to the largest, and ends the process when there is no memory.
    """
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= MAX_VOCAB:
        raise PackageError(f"{where} has the token id {largest}; vocabularies have at most {MAX_VOCAB} tokens")
    with tokenizers_errors(where, "cannot be used"):
        return str(backend.to_str())
