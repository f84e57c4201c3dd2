"""A conversation and its pictures become token ids and runs of image features.

What a user types never becomes markup, and ordinary text gives the ids of transformers. Both hold by construction:
the template runs on the real text, and once more on a text whose characters (but white space) are stand-ins from the
private-use planes, one for one. The second rendering tells, character by character, what the user wrote. The whole
prompt is then encoded at once, as transformers does. Only when that recognised a control token in characters of a
user, the prompt is encoded in runs between the template's own control tokens, with no control tokens known in a run.

A template that looks for markup in a message (`'</think>' in content`) finds none when the message has characters of
control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import PackageError, UsageError
from edgevlm.spec import PromptSpec
from edgevlm.tiling import TilePlan
from edgevlm.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "ImageRun", "Message", "Segment", "build_segments", "segment_ids"]

Message = Mapping[str, Any]
"""{"role": str, "content": str | list of {"type": "text", "text": str} and {"type": "image"}}."""

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


@dataclass(frozen=True)
class ImageRun:
    """Features [first_token, first_token + n_tokens) of picture `image` stand here; tiles in the plan's order."""

    image: int
    first_token: int
    n_tokens: int


Segment = list[int] | ImageRun


@dataclass(frozen=True)
class _Rendered:
    """A prompt's text, and the same with the user's characters replaced by stand-ins; equal in length."""

    text: str
    marked: str
    stand_ins: frozenset[str]
    marker: str
    """The character that stands for a picture."""


def build_segments(
    messages: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    spec: PromptSpec | None,
    plans: Sequence[TilePlan] = (),
    *,
    add_generation_prompt: bool = True,
) -> list[Segment]:
    """Returns the prompt as ids and image runs, in order; `plans` belong to the image parts of `messages`, in order.

    Raises UsageError for messages that are not a conversation, PackageError when the package's template or tokenizer
    does not give each picture its placeholders.
    """
    parts = [_parts(message) for message in messages]
    n_images = sum(part is None for part in chain.from_iterable(parts))
    if n_images != len(plans):
        raise UsageError(f"the messages have {n_images} image parts, {len(plans)} pictures were planned")
    if n_images and spec is None:
        raise UsageError("this package is a language model alone; it takes no pictures")
    if template.source is None:
        return [tokenizer.encode_document(_plain_text(messages, parts))]
    rendered = _expand(_render(messages, parts, template, tokenizer, spec, add_generation_prompt), spec, plans)
    return list(_split(_encode(rendered, tokenizer), spec, plans))


def segment_ids(segments: Sequence[Segment], image_token_id: int) -> list[int]:
    """Returns the ids of a prompt with the image token written out."""
    return [
        token
        for segment in segments
        for token in ([image_token_id] * segment.n_tokens if isinstance(segment, ImageRun) else segment)
    ]


def _parts(message: Message) -> list[str | None]:
    """The content of a message as texts and, for a picture, None."""
    unknown = set(message) - {"role", "content"}
    role, content = message.get("role"), message.get("content")
    if unknown or not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise UsageError(
            f"a message has role {role!r} and the keys {sorted(map(str, message))}; expected 'role' (a word such as "
            "'user') and 'content'"
        )
    if isinstance(content, str):
        return [content]
    parts: list[str | None] = []
    for part in content if isinstance(content, list | tuple) else [content]:
        fields = part if isinstance(part, Mapping) else {}
        if fields.get("type") == "image":
            parts.append(None)
        elif fields.get("type") == "text" and isinstance(fields.get("text"), str):
            parts.append(fields["text"])
        else:
            raise UsageError(
                f"a content part is {str(part)[:80]!r}; expected a text, {{'type': 'text', 'text': ...}} or "
                "{'type': 'image'}"
            )
    return parts or [""]


def _plain_text(messages: Sequence[Message], parts: Sequence[list[str | None]]) -> str:
    """The text for a base model, which has no template: one message without pictures."""
    if len(messages) != 1 or None in parts[0]:
        raise PackageError(
            "the package has no chat template; it continues one plain text, without pictures and turns. Give a "
            "template to hold conversations"
        )
    return "".join(text for text in parts[0] if text is not None)


# ---- rendering


def _render(
    messages: Sequence[Message],
    parts: Sequence[list[str | None]],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    spec: PromptSpec | None,
    add_generation_prompt: bool,
) -> _Rendered:
    as_list = spec is not None and spec.content_format == "list"
    typed = {char for part in chain.from_iterable(parts) if part is not None for char in part}
    fresh = _unused(typed | set(template.source or ""))
    image_token = spec.image_token if spec is not None else ""
    marker = next(fresh)
    stand_in = {char: next(fresh) for char in sorted(typed) if not char.isspace()}

    def run(change: Mapping[int, str]) -> str:
        conversation = [
            {"role": message["role"], "content": _content(items, as_list, marker, change)}
            for message, items in zip(messages, parts, strict=True)
        ]
        return template.render(conversation, add_generation_prompt)

    real, marked = run({}), run({ord(char): mark for char, mark in stand_in.items()})
    text = marked.translate({ord(mark): char for char, mark in stand_in.items()})
    if text != real and not typed & tokenizer.markup:
        # The template looked into the text (upper case, say); without a character of markup nothing can be forged.
        text = marked = real
    if as_list:
        # Every image token here is the template's: those that a user typed are stand-ins.
        text = _replace_at(text, marked, image_token, marker)
        marked = marked.replace(image_token, marker)
    return _Rendered(text, marked, frozenset(stand_in.values()), marker)


def _content(
    items: Sequence[str | None], as_list: bool, marker: str, change: Mapping[int, str]
) -> str | list[dict[str, str]]:
    if as_list:
        return [
            {"type": "image"} if item is None else {"type": "text", "text": item.translate(change)} for item in items
        ]
    return "".join(marker if item is None else item.translate(change) for item in items)


def _unused(taken: set[str]) -> Iterator[str]:
    for code in chain.from_iterable(_PRIVATE_USE):
        if chr(code) not in taken:
            yield chr(code)
    raise UsageError("the text has more different characters than a prompt can hold (131,000)")


def _replace_at(text: str, marked: str, old: str, new: str) -> str:
    """`text` with `new` where `marked` has `old`; the two are of the same length."""
    pieces, start = [], 0
    for match in re.finditer(re.escape(old), marked):
        pieces.append(text[start : match.start()])
        start = match.end()
    return new.join([*pieces, text[start:]])


def _expand(rendered: _Rendered, spec: PromptSpec | None, plans: Sequence[TilePlan]) -> _Rendered:
    """Puts each picture's text in place of its marker."""
    if spec is None or not plans:
        return rendered
    texts, marks = rendered.text.split(rendered.marker), rendered.marked.split(rendered.marker)
    if len(marks) - 1 != len(plans):
        raise PackageError(
            f"the chat template writes {len(marks) - 1} image markers for {len(plans)} pictures; expected one each. "
            f"Check that it writes '{spec.image_token}' for an image part"
        )
    runs = [image_text(spec, plan) for plan in plans]
    return replace(rendered, text=_interleave(texts, runs), marked=_interleave(marks, runs))


def _interleave(pieces: Sequence[str], runs: Sequence[str]) -> str:
    return "".join(chain.from_iterable(zip(pieces, [*runs, ""], strict=True)))


def image_text(spec: PromptSpec, plan: TilePlan) -> str:
    """Returns the text of one picture: image tokens, and what stands around them."""
    tokens = spec.image_token * spec.tokens_per_tile
    if plan.n_tiles == 1:
        return f"{spec.single_prefix}{tokens}{spec.image_suffix}"
    thumbnail = f"{spec.thumbnail_prefix}{tokens}" if plan.thumbnail else ""
    rows = []
    for row in range(1, plan.grid_rows + 1):
        for col in range(1, plan.grid_cols + 1):
            rows.append(spec.tile_prefix.replace("{row}", str(row)).replace("{col}", str(col)) + tokens)
        rows.append(spec.row_suffix)
    grid = "".join(rows)
    body = thumbnail + grid if plan.thumbnail_first else grid + thumbnail
    return f"{spec.image_prefix}{body}{spec.image_suffix}"


# ---- ids


def _encode(rendered: _Rendered, tokenizer: Tokenizer) -> list[int]:
    text, marked, stand_ins = rendered.text, rendered.marked, rendered.stand_ins
    tokens = tokenizer.encode_tokens(text)
    forged = any(
        token.id in tokenizer.control_ids and not stand_ins.isdisjoint(marked[token.start : token.end])
        for token in tokens
    )
    if not forged:
        return [token.id for token in tokens]
    ids: list[int] = []
    end = 0
    for token in tokenizer.encode_tokens(marked):
        if token.id in tokenizer.control_ids and stand_ins.isdisjoint(marked[token.start : token.end]):
            ids += tokenizer.encode_as_text(text[end : token.start], at_start=end == 0)
            ids.append(token.id)
            end = token.end
    return ids + tokenizer.encode_as_text(text[end:], at_start=end == 0)


def _split(ids: list[int], spec: PromptSpec | None, plans: Sequence[TilePlan]) -> Iterator[Segment]:
    """Cuts runs of the image token out, and at the borders between pictures that touch."""
    if spec is None:
        yield ids
        return
    counts = [plan.n_tiles * spec.tokens_per_tile for plan in plans]
    found = ids.count(spec.image_token_id)
    if found != sum(counts):
        n_tiles = sum(plan.n_tiles for plan in plans)
        raise PackageError(
            f"image tokens do not match: the prompt has {found} placeholders, the pictures have {sum(counts)} "
            f"({n_tiles} tiles x {spec.tokens_per_tile}). Check that '{spec.image_token}' is token "
            f"{spec.image_token_id} in tokenizer.json"
        )
    image, used, start = 0, 0, 0
    while start < len(ids):
        is_image = ids[start] == spec.image_token_id
        stop = start
        while stop < len(ids) and (ids[stop] == spec.image_token_id) == is_image:
            stop += 1
        if not is_image:
            yield ids[start:stop]
            start = stop
            continue
        n_tokens = min(stop - start, counts[image] - used)
        yield ImageRun(image, used, n_tokens)
        start, used = start + n_tokens, used + n_tokens
        if used == counts[image]:
            image, used = image + 1, 0
