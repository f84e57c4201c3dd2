"""A conversation and its pictures become token ids and runs of image features.

What a user types never becomes markup, and everything else gives the ids of transformers. Both hold by construction:
the template runs on the text of the messages, and once more on stand-ins for its characters (`edgevlm.origins`), which
tell who wrote each character of the prompt. The whole prompt is then encoded at once, as transformers does. Only when
that recognised a control token in characters that may not write it, the prompt is encoded in runs between the tokens
that stand, with no control tokens known in a run.

Who may write what: the template everything; the assistant control tokens that its decoder writes out (`<think>`), but
none that it leaves away (special ones: spelled out, they are text); users, and all other roles, none. A template that
looks for a control token in a user's message finds none, since its first character is hidden; it reads everything else
as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from edgevlm.chat_template import ChatTemplate
from edgevlm.errors import PackageError, UsageError
from edgevlm.origins import Origins, Writer
from edgevlm.spec import PromptSpec
from edgevlm.tiling import TilePlan
from edgevlm.tokenizer import Token, Tokenizer

__all__ = ["ChatTemplate", "ImageRun", "Message", "Segment", "build_segments", "segment_ids"]

Message = Mapping[str, Any]
"""{"role": str, "content": str | list of {"type": "text", "text": str} and {"type": "image"}}.

A message of the assistant may have "reasoning_content": str, which the template shows or leaves away.
"""

ASSISTANT = "assistant"
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_REASONING = ("reasoning_content", "thinking")
"""The names under which templates look for an assistant's reasoning (transformers 5.24 fills both)."""


@dataclass(frozen=True)
class ImageRun:
    """Features [first_token, first_token + n_tokens) of picture `image` stand here; tiles in the plan's order."""

    image: int
    first_token: int
    n_tokens: int


Segment = list[int] | ImageRun


@dataclass(frozen=True)
class _Rendered:
    """A prompt's text, and the same in stand-ins; equal in length."""

    text: str
    marked: str
    origins: Origins
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
    role, content = message.get("role"), message.get("content")
    known = {"role", "content", "reasoning_content"} if role == ASSISTANT else {"role", "content"}
    if set(message) - known or not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise UsageError(
            f"a message has role {role!r} and the keys {sorted(map(str, message))}; expected 'role' (a word such as "
            "'user') and 'content', and for the assistant perhaps 'reasoning_content'"
        )
    if not isinstance(message.get("reasoning_content", ""), str):
        found = type(message["reasoning_content"]).__name__
        raise UsageError(
            f"an assistant's 'reasoning_content' is a {found}, expected a text; leave it out where there is none"
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
    image_token = spec.image_token if spec is not None and spec.content_format == "list" else None
    as_list = image_token is not None
    texts = [
        (_writer(message), text)
        for message, items in zip(messages, parts, strict=True)
        for text in _texts(message, items)
    ]
    origins = Origins(chain(template.source or "", *(text for _, text in texts)))
    marker = origins.marker()
    shown = {key: _shown(*key, origins, tokenizer) for key in dict.fromkeys(texts)}
    for writer in ("user", "assistant"):
        origins.learn("".join(text for who, text in texts if who == writer), writer)

    def run(change: Callable[[str, Writer], str]) -> str:
        conversation = [
            _as_template_sees(message, items, as_list, marker, lambda who, text: change(shown[who, text], who))
            for message, items in zip(messages, parts, strict=True)
        ]
        return template.render(conversation, add_generation_prompt, origins)

    plain, marked = run(lambda text, writer: text), run(origins.written)
    if origins.meant(marked) != origins.meant(plain):
        # Where nothing that was written has a character of markup, nothing can be forged.
        if not tokenizer.markup.isdisjoint(chain.from_iterable(text for _, text in texts)):
            raise PackageError(
                f"{template.name} changes the text of messages in a way that does not tell what was typed from what is "
                "markup, and these messages have characters of markup; use another chat template"
            )
        marked = plain
    text = origins.true(marked)
    if image_token is not None:
        # Every image token here is the template's: those that were typed are stand-ins.
        text = _replace_at(text, marked, image_token, marker)
        marked = marked.replace(image_token, marker)
    return _Rendered(text, marked, origins, marker)


def _writer(message: Message) -> Writer:
    return "assistant" if message["role"] == ASSISTANT else "user"


def _texts(message: Message, items: Sequence[str | None]) -> Iterator[str]:
    yield from (item for item in items if item is not None)
    if "reasoning_content" in message:
        yield message["reasoning_content"]


def _shown(writer: Writer, text: str, origins: Origins, tokenizer: Tokenizer) -> str:
    """Returns a message's text as the template may read it: a user's with the control tokens in it broken."""
    if writer == "assistant":
        return text
    chars = list(text)
    while True:
        found = [token for token in tokenizer.encode_tokens("".join(chars)) if token.id in tokenizer.forbidden_ids]
        before = list(chars)
        for token in found:
            visible = (i for i in range(token.start, token.end) if origins.writer(chars[i]) is None)
            first = next((i for i in visible if not chars[i].isspace()), None)
            if first is not None:
                chars[first] = origins.hidden(chars[first])
        if chars == before:
            return "".join(chars)


def _as_template_sees(
    message: Message, items: Sequence[str | None], as_list: bool, marker: str, change: Callable[[Writer, str], str]
) -> dict[str, Any]:
    writer = _writer(message)
    content: str | list[dict[str, str]]
    if as_list:
        content = [
            {"type": "image"} if item is None else {"type": "text", "text": change(writer, item)} for item in items
        ]
    else:
        content = "".join(marker if item is None else change(writer, item) for item in items)
    seen: dict[str, Any] = {"role": message["role"], "content": content}
    if "reasoning_content" in message:
        seen |= dict.fromkeys(_REASONING, change(writer, message["reasoning_content"]))
    return seen


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
    tokens = tokenizer.encode_tokens(rendered.text)
    if not any(_is_forged(token, rendered, tokenizer) for token in tokens):
        return [token.id for token in tokens]
    text, ids, end = rendered.text, list[int](), 0
    for token in _guarded_tokens(rendered, tokenizer):
        if token.id in tokenizer.control_ids and not _is_forged(token, rendered, tokenizer):
            ids += tokenizer.encode_as_text(text[end : token.start], at_start=end == 0)
            ids.append(token.id)
            end = token.end
    return ids + tokenizer.encode_as_text(text[end:], at_start=end == 0)


def _is_forged(token: Token, rendered: _Rendered, tokenizer: Tokenizer) -> bool:
    """Whether somebody wrote a part of this control token who may not."""
    if token.id not in tokenizer.control_ids:
        return False
    writers = rendered.origins.writers(rendered.marked[token.start : token.end])
    return "user" in writers or ("assistant" in writers and token.id in tokenizer.special_ids)


def _guarded_tokens(rendered: _Rendered, tokenizer: Tokenizer) -> list[Token]:
    """Returns the tokens of a prompt in which no forged control token is found, and so hides none that stands."""
    text, marked, origins = rendered.text, rendered.marked, rendered.origins
    guarded = [mark if origins.writer(mark) == "user" else char for char, mark in zip(text, marked, strict=True)]
    while True:
        tokens = tokenizer.encode_tokens("".join(guarded))
        before = list(guarded)
        for token in tokens:
            if _is_forged(token, rendered, tokenizer):
                guarded[token.start : token.end] = marked[token.start : token.end]
        if guarded == before:
            return tokens


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
