"""Idefics3 and SmolVLM, whole, through transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.reference.language import load_tokenizer
from export.reference.model import Parts, ReferencePicture
from export.reference.pictures import load_processor, nested_picture
from export.reference.weights import load_model


def load_idefics3(source: Path, config: Mapping[str, Any]) -> Parts:
    """`idefics3` and `smolvlm`: one structure, two sets of classes."""
    import torch
    import transformers

    stem = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[str(config["model_type"])]
    model_class = getattr(transformers, f"{stem}ForConditionalGeneration")
    model = load_model(model_class, source)
    processor = load_processor(source, f"{stem}ImageProcessor")
    tokenizer = load_tokenizer(source)
    template = _processor_template(source)
    if template is not None:
        tokenizer.chat_template = template

    vision = model.config.vision_config
    n_tokens = (vision.image_size // vision.patch_size) ** 2 // model.config.scale_factor**2
    image_token = str(tokenizer.convert_ids_to_tokens(model.config.image_token_id))
    around, whole = "<fake_token_around_image>", "<global-img>"
    if stem == "SmolVLM":  # its processor asks the tokenizer for names
        around = str(getattr(tokenizer, "fake_image_token", around))
        whole = str(getattr(tokenizer, "global_image_token", whole))

    def encode_tile(tile: Any) -> Any:
        return torch.cat(list(model.model.get_image_features(tile[None, None]).pooler_output))

    def expand(picture: ReferencePicture) -> str:
        from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

        names = (around, image_token, whole)
        return str(get_image_prompt_string(*picture.grid, n_tokens, *names))

    return Parts(
        str(config["model_type"]),
        language=_Idefics3Language(model),
        tokenizer=tokenizer,
        encode=lambda pixels: torch.stack([encode_tile(tile) for tile in pixels]),
        picture=lambda image: nested_picture(processor, image),
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
    """The chat template of a processor, in the order of transformers 5.24; the tokenizer's where it has none."""
    for name in ("processor_config.json", "chat_template.json"):
        if (path / name).is_file():
            template = json.loads((path / name).read_text(encoding="utf-8")).get("chat_template")
            if isinstance(template, str):
                return template
    jinja = path / "chat_template.jinja"
    return jinja.read_text(encoding="utf-8") if jinja.is_file() else None
