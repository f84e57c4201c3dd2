"""tokenizer.json as tables for a phone: device/tokenizer.bin.

The Java library walks them; it has no regular expressions, no normaliser and no Unicode tables of its own, since
Android's differ from release to release. What stands here is what `tokenizers` does, and everything else is refused by
name. Texts in the tables are code points, not UTF-16.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError, ParityError, UnsupportedModelError
from edgevlm.tokenizer import Tokenizer
from edgevlm.tokenizers_library import written
from export.device.regex import Automaton, compile_regex, isolated_set, literal
from export.device.table_file import write_tables
from export.device.unicode_forms import FORMS, form_tables

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What ByteLevel splits by: tokenizers 0.23, pre_tokenizers/byte_level.rs."""
BEHAVIORS = {
    "Removed": "removed", "Isolated": "isolated", "Contiguous": "contiguous",
    "MergedWithPrevious": "merged_with_previous", "MergedWithNext": "merged_with_next",
}  # fmt: skip

Step = dict[str, Any]


@dataclass
class _Tables:
    """Sections collected so far."""

    sections: dict[str, bytes | NDArray[np.generic]] = field(default_factory=dict)
    automata: list[tuple[str, Automaton]] = field(default_factory=list)

    def automaton(self, pattern: str) -> int:
        """Adds the automaton of a pattern, unless it is there, and returns its number."""
        return self._number(f"/{pattern}/", lambda: compile_regex(pattern))

    def isolated(self, name: str) -> int:
        """As `automaton`, for the characters that a pre-tokenizer isolates."""
        return self._number(name, lambda: isolated_set(name))

    def _number(self, name: str, make: Callable[[], Automaton]) -> int:
        known = [source for source, _ in self.automata]
        if name in known:
            return known.index(name)
        number, automaton = len(known), make()
        self.automata.append((name, automaton))
        self.sections[f"dfa{number}.starts"] = automaton.starts
        self.sections[f"dfa{number}.classes"] = automaton.classes
        self.sections[f"dfa{number}.table"] = automaton.table
        return number

    def form(self, name: str) -> None:
        tables = form_tables(name)
        for part in ("points", "offsets", "texts", "marks", "mark_classes", "pairs"):
            self.sections[f"{name}.{part}"] = getattr(tables, part)


def tokenizer_tables(tokenizer: Tokenizer) -> bytes:
    """Returns device/tokenizer.bin. Raises UnsupportedModelError naming what a phone cannot do."""
    backend = tokenizer.backend
    state = json.loads(written(backend))
    tables = _Tables()
    normalizer = _normalizer(state["normalizer"], tables)
    steps = _pre_tokenizer(state["pre_tokenizer"], tables)
    model = _model(state["model"], tables)
    config = {
        "model": model,
        "normalizer": normalizer,
        "pre_tokenizer": steps,
        "decoder": _decoder(tokenizer.decoder_steps),
        "added": _added(tokenizer, state),
        "forbidden": sorted(tokenizer.forbidden_ids),
        "markup": "".join(sorted(tokenizer.markup)),
        "before": tokenizer.document_ids[0],
        "after": tokenizer.document_ids[1],
        "n_states": [int(automaton.table.shape[0]) for _, automaton in tables.automata],
    }
    _pieces(tokenizer, state["model"], tables)
    text = json.dumps(config, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    return write_tables({"config": text, **tables.sections})


def check_splits(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Compares the automata of a tokenizer's Split steps with the library on `texts`. Raises ParityError."""
    from tokenizers import Regex, pre_tokenizers

    for pattern in _patterns(json.loads(written(tokenizer.backend))["pre_tokenizer"]):
        automaton = compile_regex(pattern)
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        for text in texts:
            expected = [span for _, span in split.pre_tokenize_str(text)]
            if _with_gaps(automaton.find(text), len(text)) != expected:
                raise ParityError(f"the table of the pre-tokenizer's pattern {pattern!r} splits {text!r} differently")


def _with_gaps(matches: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    spans, at = [], 0
    for start, end in [*matches, (length, length)]:
        if start > at:
            spans.append((at, start))
        if end > start:
            spans.append((start, end))
        at = end
    return spans


# ---- normaliser


def _flat(state: Any, key: str) -> list[Step]:
    """The steps of a normaliser or pre-tokenizer, sequences opened."""
    if state is None:
        return []
    if state["type"] == "Sequence":
        return [step for part in state[key] for step in _flat(part, key)]
    return [state]


def _normalizer(state: Any, tables: _Tables) -> list[Step]:
    steps = []
    for step in _flat(state, "normalizers"):
        kind = step["type"]
        if kind.lower() in FORMS:
            tables.form(kind.lower())
            steps.append({"op": "form", "form": kind.lower()})
        elif kind == "Prepend":
            steps.append({"op": "prepend", "text": step["prepend"]})
        elif kind == "Replace":
            steps.append({"op": "replace", "dfa": tables.automaton(_pattern(step)), "text": step["content"]})
        elif kind == "Strip":
            space = tables.automaton(r"\s")
            steps.append({"op": "strip", "dfa": space, "left": step["strip_left"], "right": step["strip_right"]})
        else:
            raise UnsupportedModelError(f"the tokenizer's normalizer {kind!r} has no form for a device")
    return steps


def _pattern(step: Step) -> str:
    pattern = step["pattern"]
    return str(pattern["Regex"]) if "Regex" in pattern else literal(pattern["String"])


# ---- pre-tokenizer


def _pre_tokenizer(state: Any, tables: _Tables) -> list[Step]:
    return [found for step in _flat(state, "pretokenizers") for found in _pre_tokenizer_steps(step, tables)]


def _pre_tokenizer_steps(step: Step, tables: _Tables) -> list[Step]:
    kind = step["type"]
    if kind == "Split":
        split = _split(tables.automaton(_pattern(step)), step["behavior"])
        return [{**split, "invert": bool(step.get("invert", False))}]
    if kind == "Digits":
        behavior = "Isolated" if step["individual_digits"] else "Contiguous"
        return [_split(tables.isolated("Digits"), behavior)]
    if kind == "Punctuation":
        return [_split(tables.isolated("Punctuation"), step.get("behavior", "Isolated"))]
    if kind == "WhitespaceSplit":
        return [_split(tables.automaton(r"\s"), "Removed")]
    if kind == "ByteLevel":
        steps = [{"op": "prefix", "text": " "}] if step["add_prefix_space"] else []
        if step.get("use_regex", True):
            steps.append(_split(tables.automaton(GPT2_PATTERN), "Isolated"))
        return [*steps, {"op": "bytes"}]
    if kind == "Metaspace":
        scheme = step.get("prepend_scheme") or ("always" if step.get("add_prefix_space", True) else "never")
        return [{"op": "metaspace", "text": step["replacement"], "scheme": scheme, "split": step.get("split", True)}]
    raise UnsupportedModelError(f"the tokenizer's pre-tokenizer {kind!r} has no form for a device")


def _split(dfa: int, behavior: str) -> Step:
    return {"op": "split", "dfa": dfa, "behavior": BEHAVIORS[behavior], "invert": False}


def _patterns(state: Any) -> list[str]:
    patterns = []
    for step in _flat(state, "pretokenizers"):
        if step["type"] == "Split":
            patterns.append(_pattern(step))
        elif step["type"] == "ByteLevel" and step.get("use_regex", True):
            patterns.append(GPT2_PATTERN)
    return patterns


# ---- model


def _model(model: Step, tables: _Tables) -> Step:
    kind = model.get("type")
    if kind == "BPE":
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(name):
                raise UnsupportedModelError(f"the tokenizer's BPE has {name} {model[name]!r}, which a device cannot do")
        unknown = model["vocab"].get(model["unk_token"], -1) if model.get("unk_token") else -1
        flags = {name: bool(model.get(name)) for name in ("byte_fallback", "fuse_unk", "ignore_merges")}
        _merges(model, tables)
        return {"kind": "bpe", "unk_id": unknown, **flags}
    if kind == "Unigram":
        unknown = -1 if model.get("unk_id") is None else int(model["unk_id"])
        tables.sections["scores"] = np.array([score for _, score in model["vocab"]], np.float64)
        return {"kind": "unigram", "unk_id": unknown, "byte_fallback": bool(model.get("byte_fallback"))}
    raise UnsupportedModelError(f"the tokenizer's model {kind!r} has no form for a device")


def _merges(model: Step, tables: _Tables) -> None:
    """Merges by their left piece: right piece, rank and result, sorted by the right one."""
    vocab = model["vocab"]
    rows: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        for piece in (left, right, left + right):
            if piece not in vocab:
                raise PackageError(f"tokenizer.json merges {merge!r}, but its vocabulary has no entry {piece!r}")
        # A later merge of the same pair replaces the earlier one, as in the library's map.
        rows[vocab[left], vocab[right]] = (rank, vocab[left + right])
    table = np.array([(*pair, *value) for pair, value in sorted(rows.items())], np.int32).reshape(-1, 4)
    n_ids = max(vocab.values(), default=-1) + 1
    tables.sections["merge.start"] = np.searchsorted(table[:, 0], np.arange(n_ids + 1)).astype(np.int32)
    for column, name in enumerate(("right", "rank", "id"), start=1):
        tables.sections[f"merge.{name}"] = table[:, column]
    chars = sorted((ord(piece), token_id) for piece, token_id in vocab.items() if len(piece) == 1)
    tables.sections["char.points"] = np.array([point for point, _ in chars], np.int32)
    tables.sections["char.ids"] = np.array([token_id for _, token_id in chars], np.int32)


def _pieces(tokenizer: Tokenizer, model: Step, tables: _Tables) -> None:
    """The texts of all ids, and the ids of the model's own pieces in the order of their bytes."""
    n_vocab = 1 + max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=-1)
    texts = [(tokenizer.piece(token_id) or "").encode("utf-8") for token_id in range(n_vocab)]
    offsets = np.zeros(n_vocab + 1, np.int32)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    tables.sections["piece.offsets"] = offsets
    tables.sections["piece.texts"] = b"".join(texts)
    if isinstance(model["vocab"], dict):
        own = model["vocab"].items()
    else:
        # Of pieces that stand twice the last one counts, as in the library's map.
        own = {piece: token_id for token_id, (piece, _) in enumerate(model["vocab"])}.items()
    ordered = sorted((piece.encode("utf-8"), token_id) for piece, token_id in own)
    tables.sections["piece.order"] = np.array([token_id for _, token_id in ordered], np.int32)


# ---- added tokens and decoder


def _added(tokenizer: Tokenizer, state: Step) -> list[Step]:
    normalizer = tokenizer.backend.normalizer
    found = []
    for token in state["added_tokens"]:
        if token["single_word"]:
            raise UnsupportedModelError(
                f"the added token {token['content']!r} is 'single_word', which a device cannot do"
            )
        is_normalized = token["normalized"] and normalizer is not None
        found.append(
            {
                "id": token["id"],
                "text": normalizer.normalize_str(token["content"]) if is_normalized else token["content"],
                "special": token["special"],
                "control": token["id"] in tokenizer.control_ids,
                "normalized": token["normalized"],
                "lstrip": token["lstrip"],
                "rstrip": token["rstrip"],
            }
        )
    return found


def _decoder(steps: list[Step]) -> Step:
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return {"kind": "bytes"}
    if kinds == ["Metaspace"]:
        replacement = steps[0]["replacement"]
        prefix = "" if steps[0].get("prepend_scheme") == "never" else replacement
        return {"kind": "pieces", "replace": [[replacement, " "]], "drop_first": prefix}
    replaces = [step for step in steps if step["type"] == "Replace"]
    strips = [step for step in steps if step["type"] == "Strip"]
    is_sentencepiece = (
        [*["Replace"] * len(replaces), "ByteFallback", "Fuse", *["Strip"] * len(strips)] == kinds
        and all("String" in step["pattern"] for step in replaces)
        and len(strips) <= 1
        and all(step["content"] == " " and step["stop"] == 0 for step in strips)
    )
    if not is_sentencepiece:
        raise UnsupportedModelError(f"the tokenizer's decoder ({', '.join(kinds) or 'none'}) has no form for a device")
    replace = [[step["pattern"]["String"], step["content"]] for step in replaces]
    return {"kind": "pieces_or_bytes", "replace": replace, "strip": strips[0]["start"] if strips else 0}
