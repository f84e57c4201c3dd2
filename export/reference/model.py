"""One checkpoint in transformers, stage by stage: pictures, prompt ids, features, logits, greedy tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import UnsupportedModelError
from export.reference.installed import versions

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class ReferencePicture:
    """One picture as the model's own processor prepares it."""

    tiles: UInt8
    """(C, S, S, 3), in the order in which the prompt names them."""
    pixel_values: Float32
    """(C, 3, S, S)."""
    grid: tuple[int, int]
    """(rows, cols); (0, 0) for a picture that is not cut, which is how Hugging Face counts."""

    def layout(self) -> ReferencePicture:
        """The same with blank pixels that take no memory: what a prompt depends on."""
        tiles = np.broadcast_to(np.uint8(0), self.tiles.shape)
        return ReferencePicture(tiles, np.broadcast_to(np.float32(0), self.pixel_values.shape), self.grid)


@dataclass(frozen=True)
class Parts:
    """What the loaders below take a checkpoint apart into; a part that the model does not have is None."""

    model_type: str
    language: Any = None
    tokenizer: Any = None
    encode: Callable[[Any], Any] | None = None
    """Torch pixel values (C, 3, S, S) to image features (C, V, D)."""
    picture: Callable[[UInt8], ReferencePicture] | None = None
    expand: Callable[[ReferencePicture], str] | None = None
    """The text that stands for one picture in the prompt, image tokens included."""
    image_token: str = ""
    image_token_id: int = -1
    content_format: str = "string"


class Reference:
    """One checkpoint in transformers, stage by stage; arrays in and out are numpy."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.model_type = parts.model_type
        self.has_vision = parts.encode is not None
        self.has_language = parts.language is not None
        self.name = f"transformers {versions()['transformers']} (fp32)"
        self._layouts: dict[tuple[int, ...], ReferencePicture] = {}

    def picture(self, image: UInt8) -> ReferencePicture:
        """Returns the tiles of `image` (height, width, 3)."""
        if self.parts.picture is None:
            raise UnsupportedModelError(f"{self.model_type} takes no pictures.")
        found = self.parts.picture(image)
        self._layouts[image.shape] = found.layout()
        return found

    def layout(self, image: UInt8) -> ReferencePicture:
        """Returns `picture` without its pixels; cheap for a size that was seen before, since only the size counts."""
        return self._layouts[image.shape] if image.shape in self._layouts else self.picture(image).layout()

    def image_features(self, pixel_values: Float32) -> Float32:
        """Returns image features (C, V, D) of `pixel_values` (C, 3, S, S), tile by tile to bound memory."""
        import torch

        if self.parts.encode is None:
            raise UnsupportedModelError(f"{self.model_type} has no vision tower.")
        with torch.no_grad():
            features = [self.parts.encode(torch.from_numpy(pixel_values[i : i + 1])) for i in range(len(pixel_values))]
        return np.ascontiguousarray(torch.cat(features).float().numpy())

    def prompt_ids(self, text: str, pictures: Sequence[ReferencePicture] = ()) -> list[int]:
        """Returns the ids of one user turn, `pictures` first, up to and with the assistant's header."""
        tokenizer = self.parts.tokenizer
        if not tokenizer.chat_template:
            return [int(token) for token in tokenizer(text).input_ids]
        content: str | list[dict[str, str]]
        if self.parts.content_format == "list":
            content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": text}]
        else:
            content = self.parts.image_token * len(pictures) + text
        rendered: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if pictures:
            if self.parts.expand is None:
                raise UnsupportedModelError(f"{self.model_type} takes no pictures.")
            pieces = rendered.split(self.parts.image_token)
            runs = [*map(self.parts.expand, pictures), ""]
            rendered = "".join(piece + run for piece, run in zip(pieces, runs, strict=True))
        return [int(token) for token in tokenizer(rendered, add_special_tokens=False).input_ids]

    def chat_ids(self, turns: Sequence[tuple[str, str]]) -> list[int] | None:
        """Returns the ids of a conversation of (role, text); None when the template refuses it or there is none."""
        from jinja2.exceptions import TemplateError

        tokenizer = self.parts.tokenizer
        if not tokenizer.chat_template:
            return None
        as_list = self.parts.content_format == "list"
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if as_list else text} for role, text in turns
        ]
        try:
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except TemplateError:
            return None
        return self.text_ids(rendered)

    def added_tokens(self) -> list[str]:
        """Returns the texts of the tokenizer's added tokens, in the order of their ids."""
        return [token.content for _, token in sorted(self.parts.tokenizer.added_tokens_decoder.items())]

    def text_ids(self, text: str) -> list[int]:
        """Returns the ids of plain text, without special tokens."""
        return [int(token) for token in self.parts.tokenizer(text, add_special_tokens=False).input_ids]

    def logits(self, ids: Sequence[int], features: Float32 | None = None) -> Float32:
        """Returns logits (T, vocab) of a whole prompt; `features` (C, V, D) fill its image tokens in order."""
        import torch

        with torch.no_grad():
            output = self.parts.language(inputs_embeds=self._embeds(ids, features), use_cache=False)
        return np.ascontiguousarray(output.logits[0].float().numpy())

    def greedy(self, ids: Sequence[int], n_tokens: int, features: Float32 | None = None) -> list[int]:
        """Returns the `n_tokens` most likely tokens one after another; no penalty, and ids that end a turn do not."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.parts.language.config)
        embeds = self._embeds(ids, features)
        tokens: list[int] = []
        with torch.no_grad():
            for _ in range(n_tokens):
                output = self.parts.language(inputs_embeds=embeds, cache=cache, use_cache=True, logits_to_keep=1)
                tokens.append(int(output.logits[0, -1].argmax()))
                embeds = self._embeds(tokens[-1:], None)
        return tokens

    def _embeds(self, ids: Sequence[int], features: Float32 | None) -> Any:
        import torch

        table = self.parts.language.get_input_embeddings()
        tokens = torch.tensor(list(ids))
        is_image = tokens == self.parts.image_token_id
        with torch.no_grad():
            embeds = table(torch.where(is_image, 0, tokens))
            if features is not None:
                embeds[is_image] = torch.from_numpy(features.reshape(-1, features.shape[-1]))
        return embeds[None]


def as_tiles(pixels: NDArray[Any]) -> UInt8:
    """(C, 3, S, S) of whole numbers, whatever their type, to uint8 (C, S, S, 3)."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).astype(np.uint8)
