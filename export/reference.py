"""The same weights in transformers and torch, fp32 on CPU: what our graphs and our picture and prompt code must equal.

The only module that imports torch or transformers, and only inside functions. Nothing here uses our runtime: pictures
go through Hugging Face's PIL processors, prompts through its tokenizers and chat templates. `bluelm_v` exists in no
library, so its reference is a torch module composed of transformers' own parts, and its picture rule is written down a
second time here, from the paper.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PackageError, UnsupportedModelError

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

INSTALL_HINT = "pip install 'edgevlm[reference]', then run 'edgevlm verify PACKAGE --source CHECKPOINT'"


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
        torch = _torch()
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

    def text_ids(self, text: str) -> list[int]:
        """Returns the ids of plain text, without special tokens."""
        return [int(token) for token in self.parts.tokenizer(text, add_special_tokens=False).input_ids]

    def logits(self, ids: Sequence[int], features: Float32 | None = None) -> Float32:
        """Returns logits (T, vocab) of a whole prompt; `features` (C, V, D) fill its image tokens in order."""
        torch = _torch()
        with torch.no_grad():
            output = self.parts.language(inputs_embeds=self._embeds(ids, features), use_cache=False)
        return np.ascontiguousarray(output.logits[0].float().numpy())

    def greedy(self, ids: Sequence[int], n_tokens: int, features: Float32 | None = None) -> list[int]:
        """Returns the `n_tokens` most likely tokens one after another; no penalty, and ids that end a turn do not."""
        torch = _torch()
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
        torch = _torch()
        table = self.parts.language.get_input_embeddings()
        tokens = torch.tensor(list(ids))
        is_image = tokens == self.parts.image_token_id
        with torch.no_grad():
            embeds = table(torch.where(is_image, 0, tokens))
            if features is not None:
                embeds[is_image] = torch.from_numpy(features.reshape(-1, features.shape[-1]))
        return embeds[None]


def is_available() -> bool:
    """Tells whether torch and transformers can be imported, without importing them."""
    from importlib.util import find_spec

    return find_spec("torch") is not None and find_spec("transformers") is not None


def versions() -> dict[str, str]:
    """Returns the versions of the reference's software that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load_reference(source: str | Path, *, chat_template: str | None = None) -> Reference:
    """Loads a snapshot directory, a GGUF file, a composed checkpoint or a Hub id `org/name[@revision]`.

    `chat_template` replaces the checkpoint's own.

    Raises:
        PackageError: `source` is a local path without a config.
        UnsupportedModelError: no reference is known for the model type.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parts = _load(source)
    if chat_template is not None and parts.tokenizer is not None:
        parts.tokenizer.chat_template = chat_template
    return Reference(parts)


def _load(source: str | Path) -> Parts:
    path = Path(source)
    if path.suffix == ".gguf":
        return _load_gguf(path)
    if path.is_dir() and (path / "composed.json").is_file() and not (path / "config.json").is_file():
        path = path / "composed.json"
    if path.suffix == ".json" and path.is_file():
        return _load_composed(path)
    if not path.is_dir():
        path = _downloaded(str(source))
    if not (path / "config.json").is_file():
        raise PackageError(f"no config.json in {path.name}: not a Hugging Face snapshot.")
    config = json.loads((path / "config.json").read_text())
    model_type = str(config.get("model_type", ""))
    if model_type not in _LOADERS:
        raise UnsupportedModelError(
            f"no transformers reference for model type '{model_type}'; known: {', '.join(sorted(_LOADERS))}."
        )
    return _LOADERS[model_type](path, config)


def _downloaded(source: str) -> Path:
    """The snapshot of a Hub id that opening the checkpoint has downloaded."""
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    return Path(snapshot_download(name, revision=revision or None, local_files_only=True))


def _torch() -> Any:
    import torch

    return torch


def _load_language(source: Path, config: Mapping[str, Any]) -> Parts:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=_torch().float32).eval()
    return Parts(str(config["model_type"]), language=model, tokenizer=_load_tokenizer(source))


def _load_tokenizer(source: Path) -> Any:
    """The class that tokenizer_config.json names: AutoTokenizer may prefer the model type's and its own splitting."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = source / "tokenizer_config.json"
    declared = json.loads(path.read_text()).get("tokenizer_class") if path.is_file() else None
    tokenizer_class = PreTrainedTokenizerFast if declared == "PreTrainedTokenizerFast" else AutoTokenizer
    return tokenizer_class.from_pretrained(source)


def _load_gguf(path: Path) -> Parts:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with contextlib.redirect_stderr(io.StringIO()):  # transformers draws its own progress bars here
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=_torch().float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return Parts(str(model.config.model_type), language=model, tokenizer=tokenizer)


def _load_dinov2(source: Path, config: Mapping[str, Any]) -> Parts:
    """A bare tower; its pictures are square, since the tower alone says nothing of tiles."""
    from transformers import BitImageProcessorPil, Dinov2Model

    model = Dinov2Model.from_pretrained(source, dtype=_torch().float32).eval()
    side = {"height": model.config.image_size, "width": model.config.image_size}
    processor = BitImageProcessorPil(size=side, do_center_crop=False)
    return Parts(
        "dinov2",
        encode=lambda pixels: model(pixels).last_hidden_state[:, 1:],
        picture=lambda image: _square_picture(processor, image),
    )


def _load_siglip(source: Path, config: Mapping[str, Any]) -> Parts:
    from transformers import SiglipImageProcessorPil, SiglipVisionModel

    model = SiglipVisionModel.from_pretrained(source, dtype=_torch().float32).eval()
    side = {"height": model.config.image_size, "width": model.config.image_size}
    processor = SiglipImageProcessorPil(size=side)
    return Parts(
        str(config["model_type"]),
        encode=lambda pixels: model(pixels).last_hidden_state,
        picture=lambda image: _square_picture(processor, image),
    )


def _square_picture(processor: Any, image: UInt8) -> ReferencePicture:
    raw = processor(image, do_rescale=False, do_normalize=False, input_data_format="channels_last")["pixel_values"]
    values = processor(image, input_data_format="channels_last")["pixel_values"]
    return ReferencePicture(_as_tiles(np.stack(raw)), np.stack(values).astype(np.float32), (0, 0))


def _load_idefics3(source: Path, config: Mapping[str, Any]) -> Parts:
    """`idefics3` and `smolvlm`: one structure, two sets of classes."""
    import transformers

    stem = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[str(config["model_type"])]
    model_class = getattr(transformers, f"{stem}ForConditionalGeneration")
    model = model_class.from_pretrained(source, dtype=_torch().float32).eval()
    processor = getattr(transformers, f"{stem}ImageProcessorPil").from_pretrained(source)
    tokenizer = _load_tokenizer(source)
    template = _processor_template(source)
    if template is not None:
        tokenizer.chat_template = template

    vision = model.config.vision_config
    n_tokens = (vision.image_size // vision.patch_size) ** 2 // model.config.scale_factor**2
    image_token = str(tokenizer.convert_ids_to_tokens(model.config.image_token_id))

    torch = _torch()

    def encode_tile(tile: Any) -> Any:
        return torch.cat(list(model.model.get_image_features(tile[None, None]).pooler_output))

    def picture(image: UInt8) -> ReferencePicture:
        found = processor(
            [[image]],
            do_rescale=False,
            do_normalize=False,
            input_data_format="channels_last",
            return_row_col_info=True,
        )
        tiles = np.asarray(found["pixel_values"])[0]
        mean, std = processor.image_mean, processor.image_std
        values = [processor.normalize(processor.rescale(tile, processor.rescale_factor), mean, std) for tile in tiles]
        grid = (int(found["rows"][0][0]), int(found["cols"][0][0]))
        return ReferencePicture(_as_tiles(tiles), np.stack(values).astype(np.float32), grid)

    def expand(picture: ReferencePicture) -> str:
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        names = ("<fake_token_around_image>", image_token, "<global-img>")
        return str(get_image_prompt_string(*picture.grid, n_tokens, *names))

    return Parts(
        str(config["model_type"]),
        language=_Idefics3Language(model),
        tokenizer=tokenizer,
        encode=lambda pixels: torch.stack([encode_tile(tile) for tile in pixels]),
        picture=picture,
        expand=expand,
        image_token=image_token,
        image_token_id=int(model.config.image_token_id),
        content_format="list",
    )


class _Idefics3Language:
    """The decoder of an Idefics3 model with its head, called like a causal language model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config.text_config

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def __call__(self, **inputs: Any) -> Any:
        return self.model(**inputs)


def _processor_template(path: Path) -> str | None:
    """The chat template of a processor, which is looked up before the tokenizer's."""
    if (path / "chat_template.jinja").is_file():
        return (path / "chat_template.jinja").read_text()
    for name in ("chat_template.json", "processor_config.json"):
        if (path / name).is_file():
            template = json.loads((path / name).read_text()).get("chat_template")
            if isinstance(template, str):
                return template
    return None


def _load_composed(path: Path) -> Parts:
    """A composed.json: tower directory, projector file and language model side by side."""
    from safetensors.torch import load_file
    from transformers import Dinov2Model

    fields = json.loads(path.read_text())
    tower = Dinov2Model.from_pretrained(path.parent / fields["vision"], dtype=_torch().float32).eval()
    language_path = path.parent / fields["language"]
    if language_path.suffix == ".gguf":
        language = _load_gguf(language_path)
    else:
        language = _load_language(language_path, {"model_type": "llama"})
    if language.tokenizer.convert_tokens_to_ids(fields["image_token"]) in (None, language.tokenizer.unk_token_id):
        language.tokenizer.add_special_tokens({"additional_special_tokens": [fields["image_token"]]})
    return _compose_bluelm_v(tower, load_file(path.parent / fields["projector"]), language, fields)


def _load_bluelm_v(source: Path, config: Mapping[str, Any]) -> Parts:
    """A snapshot directory whose tensors are named `vision_tower.`, `projector.` and `language_model.`."""
    from safetensors.torch import load_file
    from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

    tensors: dict[str, Any] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors |= load_file(file)
    parts = {
        prefix: {name[len(prefix) :]: value.float() for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("vision_tower.", "projector.", "language_model.")
    }
    tower = _from_tensors(Dinov2Model, Dinov2Config(**config["vision_config"]), parts["vision_tower."])
    model = _from_tensors(LlamaForCausalLM, LlamaConfig(**config["text_config"]), parts["language_model."])
    language = Parts("llama", language=model, tokenizer=_load_tokenizer(source))
    fields = dict(config)
    fields.setdefault("image_token", str(language.tokenizer.convert_ids_to_tokens(config["image_token_id"])))
    return _compose_bluelm_v(tower, parts["projector."], language, fields)


def _from_tensors(model_class: Any, config: Any, tensors: Mapping[str, Any]) -> Any:
    """Builds a model from tensors under their hub names; every one must find its place."""
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=_torch().float32, output_loading_info=True
    )
    wrong = sorted([*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]])
    if wrong:
        raise PackageError(f"tensors do not match {model_class.__name__}: {', '.join(map(str, wrong[:4]))}.")
    return model.eval()


def _compose_bluelm_v(tower: Any, projector: Mapping[str, Any], language: Parts, fields: Mapping[str, Any]) -> Parts:
    """Tower without CLS, 2x2 blocks in (dy, dx, channel) order, Linear, MLP with erf GELU, llama."""
    torch = _torch()
    nn, functional = torch.nn, torch.nn.functional
    weights = {name: value.float() for name, value in projector.items()}

    def linear(stem: str) -> Any:
        n_out, n_in = weights[f"{stem}.weight"].shape
        layer = nn.Linear(n_in, n_out)
        layer.load_state_dict({"weight": weights[f"{stem}.weight"], "bias": weights[f"{stem}.bias"]})
        return layer

    head = nn.Sequential(linear("downsampler"), linear("mlp.0"), nn.GELU(), linear("mlp.2")).eval()

    def encode(pixels: Any) -> Any:
        tokens = tower(pixels).last_hidden_state[:, 1:]
        side = math.isqrt(tokens.shape[1])
        grid = functional.pad(tokens.unflatten(1, (side, side)), (0, 0, 0, side % 2, 0, side % 2))
        blocks = [grid[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
        return head(torch.cat(blocks, dim=-1).flatten(1, 2))

    tile_px = int(fields["tile_px"])
    side = (tile_px // tower.config.patch_size + 1) // 2
    token = str(fields["image_token"])
    return Parts(
        "bluelm_v",
        language=language.language,
        tokenizer=language.tokenizer,
        encode=encode,
        picture=lambda image: _relaxed_picture(image, fields),
        expand=lambda picture: token * (side * side * len(picture.tiles)),
        image_token=token,
        image_token_id=int(language.tokenizer.convert_tokens_to_ids(token)),
    )


def _relaxed_picture(image: UInt8, fields: Mapping[str, Any]) -> ReferencePicture:
    """Relaxed aspect-ratio matching with transformers' own picture functions.

    Source: arXiv 2411.10640, algorithm 1; candidates and layout as design.md, section 3.
    """
    from transformers.image_transforms import normalize, rescale, resize
    from transformers.image_utils import ChannelDimension, PILImageResampling

    tile, alpha = int(fields["tile_px"]), Fraction(str(fields.get("relaxed_alpha", 0.1)))
    budget = int(fields.get("max_tiles", 16))
    height, width = image.shape[:2]
    largest = math.isqrt(budget)
    boxes = [(m, n) for m in range(1, largest + 1) for n in range(1, largest + 1)]

    def fitted(m: int, n: int) -> tuple[int, int]:
        scale = min(Fraction(tile * m, width), Fraction(tile * n, height))
        return max(1, int(height * scale)), max(1, int(width * scale))

    best, best_area, best_waste = (1, 1), 0, tile * tile * budget
    for m, n in sorted(boxes, key=lambda box: (-box[0] * box[1], -box[0])):
        area = min(math.prod(fitted(m, n)), width * height)
        waste = tile * tile * m * n - area
        if area - best_area > alpha * best_area or (best_area - area < alpha * best_area and waste < best_waste):
            best, best_area, best_waste = (m, n), area, waste

    def resized(size: tuple[int, int]) -> UInt8:
        last = ChannelDimension.LAST
        return np.asarray(resize(image, size, PILImageResampling.BICUBIC, input_data_format=last), np.uint8)

    m, n = best
    inner = fitted(m, n)
    mean = np.asarray(fields["image_mean"], np.float64)
    canvas = np.empty((tile * n, tile * m, 3), np.uint8)
    canvas[:] = np.round(mean * 255).astype(np.uint8)
    top, left = (canvas.shape[0] - inner[0]) // 2, (canvas.shape[1] - inner[1]) // 2
    canvas[top : top + inner[0], left : left + inner[1]] = resized(inner)
    tiles = [canvas[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y in range(n) for x in range(m)]
    if m * n > 1:
        tiles.insert(0, resized((tile, tile)))
    mean_std = (fields["image_mean"], fields["image_std"])
    last = ChannelDimension.LAST
    values = [normalize(rescale(pixels, 1 / 255), *mean_std, input_data_format=last) for pixels in tiles]
    return ReferencePicture(np.stack(tiles), np.stack(values).transpose(0, 3, 1, 2).astype(np.float32), (n, m))


def _as_tiles(pixels: NDArray[Any]) -> UInt8:
    """(C, 3, S, S) of whole numbers, whatever their type, to uint8 (C, S, S, 3)."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).astype(np.uint8)


_LOADERS: dict[str, Callable[[Path, Mapping[str, Any]], Parts]] = {
    "llama": _load_language,
    "qwen2": _load_language,
    "dinov2": _load_dinov2,
    "siglip": _load_siglip,
    "siglip_vision_model": _load_siglip,
    "idefics3": _load_idefics3,
    "smolvlm": _load_idefics3,
    "bluelm_v": _load_bluelm_v,
}
