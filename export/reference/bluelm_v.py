"""`bluelm_v`, which exists in no library: a torch module composed of transformers' own parts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.reference.language import load_gguf, load_language, load_tokenizer
from export.reference.model import Parts
from export.reference.relaxed import relaxed_picture
from export.reference.weights import load_config, model_from_tensors, read_snapshot, read_tensors

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of a config that says none, as of DINOv2's own processor."""


def load_composed(path: Path) -> Parts:
    """A composed.json: tower directory, projector file and language model side by side."""
    from transformers import Dinov2Model

    fields = json.loads(path.read_text())
    updates = read_tensors([path.parent / fields["low_rank"]]) if fields.get("low_rank") else {}
    tower_path = path.parent / fields["vision"]
    in_tower = read_snapshot(tower_path)
    add_updates(updates, "vision_tower.", in_tower)
    tower = model_from_tensors(Dinov2Model, load_config(Dinov2Model, tower_path), in_tower)
    language_path = path.parent / fields["language"]
    if language_path.suffix == ".gguf":
        language = load_gguf(language_path)
    else:
        language = load_language(language_path, {"model_type": "llama"})
    if language.tokenizer.convert_tokens_to_ids(fields["image_token"]) in (None, language.tokenizer.unk_token_id):
        language.tokenizer.add_special_tokens({"additional_special_tokens": [fields["image_token"]]})
    add_updates(updates, "language_model.", dict(language.language.named_parameters()))
    return _compose_bluelm_v(tower, read_tensors([path.parent / fields["projector"]]), language, fields)


def add_updates(updates: Mapping[str, Any], prefix: str, weights: Mapping[str, Any]) -> None:
    """Adds each `up @ down` under `prefix` to its weight, in place; `weights` have the checkpoint's names.

    A tower's are updated before there is a model: transformers gives its modules other names than the checkpoint.
    """
    for name, down in updates.items():
        if name.startswith(prefix) and name.endswith(".down"):
            weight_name = name.removesuffix(".down")
            weights[weight_name.removeprefix(prefix)].data += updates[f"{weight_name}.up"] @ down


def load_bluelm_v(source: Path, config: Mapping[str, Any]) -> Parts:
    """A snapshot directory whose tensors are named `vision_tower.`, `projector.` and `language_model.`."""
    from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

    tensors = read_tensors(sorted(source.glob("*.safetensors")))
    parts = {
        prefix: {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("vision_tower.", "projector.", "language_model.")
    }
    tower = model_from_tensors(Dinov2Model, Dinov2Config(**config["vision_config"]), parts["vision_tower."])
    model = model_from_tensors(LlamaForCausalLM, LlamaConfig(**config["text_config"]), parts["language_model."])
    language = Parts("llama", language=model, tokenizer=load_tokenizer(source))
    side = config["vision_config"].get("image_size", 224)
    fields = {"tile_px": side, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD, **config}
    fields.setdefault("image_token", str(language.tokenizer.convert_ids_to_tokens(config["image_token_id"])))
    return _compose_bluelm_v(tower, parts["projector."], language, fields)


def _compose_bluelm_v(tower: Any, projector: Mapping[str, Any], language: Parts, fields: Mapping[str, Any]) -> Parts:
    """Tower without CLS, blocks in (dy, dx, channel) order, Linear, MLP with erf GELU, llama."""
    import torch

    nn, functional = torch.nn, torch.nn.functional
    factor = int(fields.get("scale_factor", 2))

    def linear(stem: str) -> Any:
        n_out, n_in = projector[f"{stem}.weight"].shape
        layer = nn.Linear(n_in, n_out)
        layer.load_state_dict({"weight": projector[f"{stem}.weight"], "bias": projector[f"{stem}.bias"]})
        return layer

    head = nn.Sequential(linear("downsampler"), linear("mlp.0"), nn.GELU(), linear("mlp.2")).eval()

    def encode(pixels: Any) -> Any:
        tokens = tower(pixels).last_hidden_state[:, 1:]
        side = math.isqrt(tokens.shape[1])
        missing = -side % factor
        grid = functional.pad(tokens.unflatten(1, (side, side)), (0, 0, 0, missing, 0, missing))
        blocks = [grid[:, dy::factor, dx::factor] for dy in range(factor) for dx in range(factor)]
        return head(torch.cat(blocks, dim=-1).flatten(1, 2))

    tile_px = int(fields["tile_px"])
    side = math.ceil(tile_px // tower.config.patch_size / factor)
    token = str(fields["image_token"])
    return Parts(
        "bluelm_v",
        language=language.language,
        tokenizer=language.tokenizer,
        encode=encode,
        picture=lambda image: relaxed_picture(image, fields),
        expand=lambda picture: token * (side * side * len(picture.tiles)),
        image_token=token,
        image_token_id=int(language.tokenizer.convert_tokens_to_ids(token)),
    )
