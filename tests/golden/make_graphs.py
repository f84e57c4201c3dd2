"""Remakes tests/golden/graphs.npz: what transformers computes in fp32 on the tiny checkpoints of tests/tiny.py.

    python -m tests.golden.make_graphs

Per case: vision features, logits of a prompt, 32 greedy tokens; the versions are stored in the file. Needs torch and
transformers. The composed reference model `bluelm_v` is built here from transformers' Dinov2Model and LlamaForCausalLM.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests import tiny
from tests.golden import graph_cases

OUT = Path(__file__).with_name("graphs.npz")


def language_model(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def text_outputs(case: graph_cases.Case, directory: Path) -> dict[str, np.ndarray]:
    model = language_model(directory)
    ids = torch.from_numpy(graph_cases.prompt_ids())[None]
    logits = model(input_ids=ids).logits[0]
    return {"logits": logits.numpy(), "greedy": greedy(lambda x: model(input_ids=x).logits, ids)}


def tower_outputs(case: graph_cases.Case, directory: Path) -> dict[str, np.ndarray]:
    model_class = transformers.SiglipVisionModel if case.maker == "siglip" else transformers.AutoModel
    model = model_class.from_pretrained(directory, dtype=torch.float32).eval()
    features = model(pixel_values=torch.from_numpy(case.pixels())).last_hidden_state
    return {"features": (features[:, 1:] if case.maker == "dinov2" else features).numpy()}


def idefics3_outputs(case: graph_cases.Case, directory: Path) -> dict[str, np.ndarray]:
    model = transformers.AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    pixels = torch.from_numpy(case.pixels())[None]
    features = torch.stack(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))
    image_token_id = model.config.image_token_id
    ids = torch.from_numpy(graph_cases.picture_prompt_ids(image_token_id, features.shape[0] * features.shape[1]))[None]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return model(input_ids=x, pixel_values=pixels).logits

    features = features.reshape(case.n_tiles, -1, features.shape[-1])
    return {"features": features.numpy(), "logits": forward(ids)[0].numpy(), "greedy": greedy(forward, ids)}


def bluelm_v_outputs(case: graph_cases.Case, directory: Path) -> dict[str, np.ndarray]:
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    tiny.write_snapshot(directory / "tower", config["vision_config"], part("vision_tower."), {})
    tiny.write_snapshot(directory / "language", config["text_config"], part("language_model."), {})
    tower = transformers.AutoModel.from_pretrained(directory / "tower", dtype=torch.float32).eval()
    language = language_model(directory / "language")
    projector = {name: torch.from_numpy(value) for name, value in part("projector.").items()}

    x = tower(pixel_values=torch.from_numpy(case.pixels())).last_hidden_state[:, 1:]
    side = int(x.shape[1] ** 0.5)
    x = functional.pad(x.unflatten(1, (side, side)), (0, 0, 0, side % 2, 0, side % 2))
    n_tiles, height, width, channels = x.shape
    x = (
        x.reshape(n_tiles, height // 2, 2, width // 2, 2, channels)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(n_tiles, height * width // 4, 4 * channels)
    )
    x = functional.linear(x, projector["downsampler.weight"], projector["downsampler.bias"])
    x = functional.gelu(functional.linear(x, projector["mlp.0.weight"], projector["mlp.0.bias"]))
    features = functional.linear(x, projector["mlp.2.weight"], projector["mlp.2.bias"])

    flat = features.reshape(-1, features.shape[-1])
    ids = torch.from_numpy(graph_cases.picture_prompt_ids(config["image_token_id"], len(flat)))[None]

    def forward(x: torch.Tensor) -> torch.Tensor:
        embeds = language.get_input_embeddings()(x)
        return language(inputs_embeds=embeds.masked_scatter((x == config["image_token_id"])[..., None], flat)).logits

    return {"features": features.numpy(), "logits": forward(ids)[0].numpy(), "greedy": greedy(forward, ids)}


def greedy(forward: Any, ids: torch.Tensor) -> np.ndarray:
    """32 tokens without a cache, so that the reference does not share the way of the graphs under test."""
    start = ids.shape[1]
    for _ in range(graph_cases.N_GREEDY):
        ids = torch.cat([ids, forward(ids)[:, -1:].argmax(-1)], dim=1)
    return ids[0, start:].numpy()


OUTPUTS = {"text": text_outputs, "tower": tower_outputs, "idefics3": idefics3_outputs, "bluelm_v": bluelm_v_outputs}


def main() -> None:
    torch.set_grad_enabled(False)
    arrays: dict[str, np.ndarray] = {
        "versions": np.array(f"torch {torch.__version__}, transformers {transformers.__version__}")
    }
    for name, case in graph_cases.CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            directory = case.make(Path(temporary) / name)
            for key, value in OUTPUTS[case.reference](case, directory).items():
                arrays[f"{name}.{key}"] = value
    np.savez_compressed(OUT, **arrays)
    print(f"{OUT}: {OUT.stat().st_size} bytes, {arrays['versions']}")


if __name__ == "__main__":
    main()
