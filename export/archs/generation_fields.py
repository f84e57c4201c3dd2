"""The fields of generation_config.json that change what transformers 5.24 answers and that this runtime does not apply.

Source: generation/utils.py `_get_logits_processor` and configuration_utils.py `get_generation_mode`. Each is told at
export and stands in the manifest. Limits of length and time are the caller's and not listed; what chooses the same
tokens in another way (the cache, assisted decoding) is not listed either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TRANSFORMERS_TOP_K = 50
"""What transformers samples from where the file does not say (`_get_default_generation_params`)."""

_Neutral = Callable[[Any], bool]


def _is(*values: Any) -> _Neutral:
    return lambda value: value in values


def _at_most(limit: float) -> _Neutral:
    return lambda value: isinstance(value, (int, float)) and value <= limit


def _outside_0_to_1(value: Any) -> bool:
    return isinstance(value, (int, float)) and not 0 < value < 1


_EMPTY = _is([], {})

ALWAYS: dict[str, _Neutral] = {
    "num_beams": _is(1),
    "no_repeat_ngram_size": _at_most(0),
    "encoder_no_repeat_ngram_size": _at_most(0),
    "encoder_repetition_penalty": _is(1),
    "bad_words_ids": _EMPTY,
    "force_words_ids": _EMPTY,
    "constraints": _EMPTY,
    "sequence_bias": _EMPTY,
    "suppress_tokens": _EMPTY,
    "begin_suppress_tokens": _EMPTY,
    "forced_bos_token_id": lambda value: False,
    "forced_eos_token_id": lambda value: False,
    "min_length": _at_most(0),
    "min_new_tokens": _at_most(0),
    "exponential_decay_length_penalty": lambda value: False,
    "guidance_scale": _is(1),
    "dola_layers": lambda value: False,
    "stop_strings": _is([], ""),
    "token_healing": _is(False),
    "watermarking_config": lambda value: False,
}
"""Field → which values change nothing; null never does."""

SAMPLING: dict[str, _Neutral] = {
    "typical_p": lambda value: isinstance(value, (int, float)) and value >= 1,
    "top_h": lambda value: False,
    "epsilon_cutoff": _outside_0_to_1,
    "eta_cutoff": _outside_0_to_1,
}
"""The same of fields that count where tokens are drawn at random."""


def not_applied(generation: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns 'field value' of each field that transformers would apply and this runtime does not."""
    fields = ALWAYS | (SAMPLING if generation.get("do_sample") is True else {})
    found = [name for name, neutral in fields.items() if not _is_neutral(generation.get(name), neutral)]
    if _is_contrastive(generation):
        found.append("penalty_alpha")
    return tuple(f"{name} {_short(generation[name])}" for name in found)


def _is_neutral(value: Any, neutral: _Neutral) -> bool:
    return value is None or value is False or neutral(value)


def _is_contrastive(generation: Mapping[str, Any]) -> bool:
    alpha, top_k = generation.get("penalty_alpha"), generation.get("top_k")
    k = TRANSFORMERS_TOP_K if top_k is None else top_k
    if not isinstance(alpha, (int, float)) or not isinstance(k, (int, float)):
        return False
    return alpha > 0 and k > 1 and generation.get("do_sample") is not True


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
