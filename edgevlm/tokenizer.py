"""Text to token ids and back: tokenizer.json through Hugging Face `tokenizers`, with two promises on top.

Text of a user never becomes a control token: `encode` treats `<image>` or `<|im_end|>` as the characters they are.
Text is streamed in whole characters: `StreamDecoder` holds incomplete bytes, and its pieces joined are `decode`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgevlm.errors import PackageError, UsageError
from edgevlm.tokenizers_library import check_framing, check_pieces, tokenizers_errors

if TYPE_CHECKING:
    from edgevlm.package import Package

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORDS = re.compile(r"[\w\s-]*")
TOKENIZER, CANNOT = "tokenizer.json", "cannot be used"


class Token(NamedTuple):
    """One token of an encoded text and the characters [start, end) it was made from."""

    id: int
    start: int
    end: int


class Tokenizer:
    """A tokenizer.json.

    Its added tokens are of two kinds: *control* tokens, which only a template may write, are all special ones and
    those with markup in them (`<tool_call>`); the rest (runs of spaces, words) are ordinary vocabulary.
    """

    def __init__(self, backend: Any) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = False
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(int(i) for i, token in added.items() if token.special)
        self.control_ids = frozenset(
            int(i) for i, token in added.items() if token.special or not _WORDS.fullmatch(token.content)
        )
        self.control_texts = tuple(token.content for i, token in added.items() if i in self.control_ids)
        self._plain = [token for i, token in sorted(added.items()) if i not in self.control_ids]
        unknown = getattr(backend.model, "unk_token", None)
        self._unknown_id = backend.token_to_id(unknown) if isinstance(unknown, str) else None

    @classmethod
    def open(cls, package: Package) -> Tokenizer:
        """Returns the tokenizer of a package. Raises PackageError when its tokenizer.json is missing or damaged."""
        return cls.from_file(package.file("tokenizer.json"))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Returns the tokenizer in the file `path`."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PackageError(f"{path}: cannot be read as text ({error})") from error
        return cls(read_backend(text, str(path), "; export the model again"))

    @property
    def backend(self) -> Any:
        """The `tokenizers` object, for the exporter."""
        return self._backend

    @property
    def n_vocab(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._backend.get_vocab_size())

    def token_id(self, text: str) -> int | None:
        """Returns the id of the vocabulary's entry `text`."""
        found = self._backend.token_to_id(text)
        return None if found is None else int(found)

    def piece(self, token_id: int) -> str | None:
        """Returns the vocabulary's entry of an id, None when the id is only padding of the embedding table."""
        found = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return None if found is None else str(found)

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Returns the ids of `text`, with nothing put around it.

        Without `allow_special` the result has no control token, whatever `text` says; text without control tokens in
        it gives the same ids either way.
        """
        if allow_special:
            return [int(token_id) for token_id in _encoding(self._backend, text).ids]
        return self.encode_as_text(text, at_start=True)

    def encode_document(self, text: str) -> list[int]:
        """Returns the ids of `text` with what the tokenizer puts around a whole text (often a BOS)."""
        before, after = self.document_ids
        return [*before, *self.encode(text), *after]

    @property
    def document_ids(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a whole text."""
        with tokenizers_errors(TOKENIZER, CANNOT):
            encoding = self._backend.encode("a", add_special_tokens=True)
        mask, around = encoding.special_tokens_mask, [int(token_id) for token_id in encoding.ids]
        n_before = mask.index(0) if 0 in mask else len(mask)
        n_after = mask[::-1].index(0) if 0 in mask else 0
        return around[:n_before], around[len(around) - n_after :]

    @cached_property
    def markup(self) -> frozenset[str]:
        """Characters without which no control token can be written: those that are not of words, or else all of it."""
        found: set[str] = set()
        for text in self.control_texts:
            found |= {char for char in text if not (char.isalnum() or char.isspace() or char == "_")} or set(text)
        return frozenset(found)

    def encode_tokens(self, text: str) -> list[Token]:
        """Returns the tokens of `text`, control tokens recognised, with the characters each stands for."""
        encoding = _encoding(self._backend, text)
        return [Token(int(i), start, end) for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]

    def encode_as_text(self, text: str, *, at_start: bool) -> list[int]:
        """Returns the ids of `text` without control tokens; `at_start`: nothing stands before it in the prompt."""
        return self._plain_ids_of(self._text_backend if at_start else self._inner_backend, text)

    def _plain_ids_of(self, backend: Any, text: str) -> list[int]:
        if not text:
            return []
        encoding = _encoding(backend, text)
        ids = [self._plain_ids.get(token_id, int(token_id)) for token_id in encoding.ids]
        for token_id, (start, end) in zip(ids, encoding.offsets, strict=True):
            if token_id in self.forbidden_ids:
                # A Unigram vocabulary can spell a control token out of plain characters. Cut in two, it cannot.
                if end - start < 2:
                    raise UsageError(f"the text has {text[start:end]!r}, which this model can only read as control")
                middle = (start + end) // 2
                return self._plain_ids_of(backend, text[:middle]) + self._plain_ids_of(
                    self._joined_backend, text[middle:]
                )
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Returns the text of `ids`.

        Equal to `tokenizers`, but for broken UTF-8 in byte-fallback vocabularies: complete characters before the
        broken bytes are kept, where the library gives up the whole run of bytes.
        """
        decoder = StreamDecoder(self, skip_special=skip_special)
        return "".join([*map(decoder.push, ids), decoder.finish()])

    @cached_property
    def decoder_steps(self) -> list[dict[str, Any]]:
        """The decoders of tokenizer.json, in order."""
        decoder = self._backend.decoder
        if decoder is None:
            return []
        state = json.loads(decoder.__getstate__())
        return list(state["decoders"]) if state["type"] == "Sequence" else [state]

    def decode_whole(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Returns what `tokenizers` itself makes of `ids`."""
        with tokenizers_errors(TOKENIZER, CANNOT):
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    @cached_property
    def _text_backend(self) -> Any:
        """The same model, sharing its memory, that knows no control tokens."""
        return self._without_control(self._backend.pre_tokenizer)

    @cached_property
    def _inner_backend(self) -> Any:
        """As `_text_backend`, for text behind a control token: only a prefix space for every section is put there."""
        return self._with_prefixes('"first"')

    @cached_property
    def _joined_backend(self) -> Any:
        """As `_text_backend`, for text in the middle of other text: no prefix space is put at its start."""
        return self._with_prefixes('"first"', '"always"')

    def _with_prefixes(self, *dropped: str) -> Any:
        """A backend whose Metaspace has none of the prefix schemes `dropped`."""
        pre_tokenizer = self._backend.pre_tokenizer
        before = after = pre_tokenizer.__getstate__().decode() if pre_tokenizer is not None else ""
        for scheme in dropped:
            after = after.replace(f'"prepend_scheme":{scheme}', '"prepend_scheme":"never"')
        return self._text_backend if after == before else self._without_control(_pre_tokenizer(after))

    def _without_control(self, pre_tokenizer: Any) -> Any:
        from tokenizers import Tokenizer as Backend

        backend = Backend(self._backend.model)
        if self._backend.normalizer is not None:
            backend.normalizer = self._backend.normalizer
        if pre_tokenizer is not None:
            backend.pre_tokenizer = pre_tokenizer
        backend.add_tokens(self._plain)
        return backend

    @cached_property
    def forbidden_ids(self) -> frozenset[int]:
        """Control tokens, but the one that stands for unknown characters (often special) is what plain text may give.

        A Unigram model does not tell its name, so a character that no vocabulary has is tried.
        """
        unknown = {self._unknown_id, *_encoding(self._text_backend, "\U000f1234").ids}
        return self.control_ids - unknown

    @cached_property
    def _plain_ids(self) -> dict[int, int]:
        """Ids that `_text_backend` gives to added tokens → theirs, where the two differ."""
        pairs = ((self._text_backend.token_to_id(t.content), self.token_id(t.content)) for t in self._plain)
        return {int(new): old for new, old in pairs if old is not None and new != old}


def read_backend(text: str, where: str, hint: str = "") -> Any:
    """Returns the `tokenizers` object of a tokenizer.json's text. Raises PackageError that names `where`."""
    from tokenizers import Tokenizer as Backend

    check_pieces(text, where)
    with tokenizers_errors(f"{where}:", "is not a tokenizer", hint):
        backend = Backend.from_str(text)
    check_framing(backend, where)
    return backend


class StreamDecoder:
    """Ids in, text out, in whole characters; one for each answer."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special else frozenset()
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []
        self._given = ""
        self._strip = 0
        self._replacements: list[tuple[str, str]] = []
        self._first = True
        self._metaspace = ""
        self._push = self._choose()

    def push(self, token_id: int) -> str:
        """Returns the text that `token_id` completes, often empty."""
        if token_id in self._skipped:
            return ""
        return self._push(int(token_id))

    def finish(self) -> str:
        """Returns what was held back; bytes that are no character become U+FFFD."""
        if self._push == self._push_any:
            text = self._tokenizer.decode_whole(self._ids, skip_special=self._skip_special)
            return text[len(self._given) :]
        return self._stripped(self._utf8.decode(b"", final=True))

    def _choose(self) -> Callable[[int], str]:
        steps = self._tokenizer.decoder_steps
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return self._push_byte_level
        if kinds == ["Metaspace"]:
            self._replacements = [(steps[0]["replacement"], " ")]
            self._metaspace = "" if steps[0].get("prepend_scheme") == "never" else steps[0]["replacement"]
            return self._push_pieces
        replaces = [step for step in steps if step["type"] == "Replace"]
        strips = [step for step in steps if step["type"] == "Strip"]
        if (
            [*["Replace"] * len(replaces), "ByteFallback", "Fuse", *["Strip"] * len(strips)] == kinds
            and all("String" in step["pattern"] for step in replaces)
            and len(strips) <= 1
            and all(step["content"] == " " and step["stop"] == 0 for step in strips)
        ):
            self._replacements = [(step["pattern"]["String"], step["content"]) for step in replaces]
            self._strip = strips[0]["start"] if strips else 0
            return self._push_pieces_or_bytes
        return self._push_any

    def _push_byte_level(self, token_id: int) -> str:
        piece = self._tokenizer.piece(token_id)
        return "" if piece is None else self._utf8.decode(byte_level_bytes(piece))

    def _push_pieces(self, token_id: int) -> str:
        piece = self._tokenizer.piece(token_id)
        if piece is None:
            return ""
        if self._first and self._metaspace:
            piece = piece.replace(self._metaspace, "")
        self._first = False
        return self._replaced(piece)

    def _push_pieces_or_bytes(self, token_id: int) -> str:
        piece = self._tokenizer.piece(token_id)
        if piece is None:
            return ""
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte:
            return self._stripped(self._utf8.decode(bytes([int(byte[1], 16)])))
        held = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return self._stripped(held + self._replaced(piece))

    def _push_any(self, token_id: int) -> str:
        """For decoders of another kind: decode everything again and give what is new and complete."""
        self._ids.append(token_id)
        text = self._tokenizer.decode_whole(self._ids, skip_special=self._skip_special).rstrip("\ufffd")
        if not text.startswith(self._given):
            return ""
        new = text[len(self._given) :]
        self._given = text
        return new

    def _replaced(self, piece: str) -> str:
        for pattern, content in self._replacements:
            piece = piece.replace(pattern, content)
        return piece

    def _stripped(self, text: str) -> str:
        """Drops the spaces at the start of the whole text that the encoder put there."""
        while self._strip and text:
            if text[0] != " ":
                self._strip = 0
            else:
                text, self._strip = text[1:], self._strip - 1
        return text


def byte_level_bytes(piece: str) -> bytes:
    """Returns the bytes of a byte-level piece; a piece with characters outside that alphabet is its own UTF-8."""
    try:
        return bytes(map(_BYTE_OF.__getitem__, piece))
    except KeyError:
        return piece.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins of the 256 bytes: themselves where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _encoding(backend: Any, text: str) -> Any:
    try:
        with tokenizers_errors(TOKENIZER, CANNOT):
            return backend.encode(text, add_special_tokens=False)
    except (UnicodeEncodeError, TypeError) as error:
        if not isinstance(text, str):
            raise UsageError(f"a {type(text).__name__} was given as text, expected a str") from error
        found = next((char for char in text if "\ud800" <= char <= "\udfff"), "")
        raise UsageError(f"the text has a lone surrogate {found!r}, expected valid Unicode text") from error


def _pre_tokenizer(state: str) -> Any:
    """Returns the pre-tokenizer of a JSON state; only a whole tokenizer can be read from JSON."""
    from tokenizers import Tokenizer as Backend

    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": json.loads(state), "model": model}
    return Backend.from_str(json.dumps(whole)).pre_tokenizer
