"""Makes gguf_logits.json: llama.cpp's logits of tiny GGUF models, by metadata, and which keys change them.

    python -m tests.golden.make_gguf_logits

Needs xllamacpp, as make_gguf_tokenizer does. `logits` has some of the last position's logits for each of
tests/tiny_gguf.py's ROTATIONS; `keys` says of each key that llama.cpp knows what setting it does to a `llama` and a
`qwen2` model: "changes" the logits, "nothing", or "refused" (no value of any type was loaded). Each model runs in a
process of its own, because llama.cpp ends the process where it asserts.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import logging
import multiprocessing
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.golden.make_gguf_tokenizer import ModelParams, _library
from tests.tiny_gguf import ROTATIONS, byte_level, llama3_factors, write_calm

OUT = Path(__file__).with_name("gguf_logits.json")
ARCHS = ("llama", "qwen2")
IDS = [(7 * i * i + 3 * i + 5) % 600 for i in range(40)]
"""The prompt."""
SHOWN = slice(0, None, 20)
"""The tokens whose logits are kept."""
VALUES: tuple[Any, ...] = (2, 0.5, True, False, "gelu", [4, 4, 4, 4], [4, 4])
"""What each key is set to: both flags, and one value of each other type."""

NOISE = 1e-3
"""Logits of the same model differ by less, by where its tensors lie in memory; any setting that counts moves some by
more than 0.5."""


class ContextParams(ctypes.Structure):
    """llama_context_params of llama.h, opaque: its defaults are passed on as they are."""

    _fields_ = (("room", ctypes.c_uint8 * 512),)


class Batch(ctypes.Structure):
    """llama_batch of llama.h; without positions and flags, tokens follow each other and the last one has logits."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("others", ctypes.c_void_p * 5),
        ("room", ctypes.c_uint8 * 64),
    )


def logits(path: Path, ids: list[int], n_tokens: int) -> NDArray[np.float32] | None:
    """The last position's logits; None when llama.cpp does not load the file."""
    lib = ctypes.CDLL(_library())
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lib.llama_log_set(log, None)
    lib.llama_backend_init()
    lib.llama_model_default_params.restype = ModelParams
    lib.llama_context_default_params.restype = ContextParams
    lib.llama_model_load_from_file.restype = ctypes.c_void_p
    lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
    lib.llama_init_from_model.restype = ctypes.c_void_p
    lib.llama_init_from_model.argtypes = [ctypes.c_void_p, ContextParams]
    lib.llama_decode.argtypes = [ctypes.c_void_p, Batch]
    lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_get_logits_ith.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not model:
        return None
    context = lib.llama_init_from_model(model, lib.llama_context_default_params())
    if not context or lib.llama_decode(context, Batch(len(ids), (ctypes.c_int32 * len(ids))(*ids))) != 0:
        return None
    return np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (n_tokens,)).copy()


def _answer(arch: str, metadata: dict[str, Any], factors: bool, out: Path) -> None:
    logging.disable(logging.WARNING)
    sys.stderr = None  # type: ignore[assignment]
    more = {"rope_freqs.weight": llama3_factors()} if factors else {}
    found = logits(write_calm(out.with_suffix(".gguf"), arch, metadata, more), IDS, len(byte_level("smollm").tokens))
    if found is not None:
        np.save(out, found)


def measured(arch: str, metadata: dict[str, Any], *, factors: bool = False) -> NDArray[np.float32] | None:
    """`logits` of a tiny model with this metadata, in a process of its own; None when it is not run."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.npy"
        process = multiprocessing.get_context("fork").Process(target=_answer, args=(arch, metadata, factors, out))
        process.start()
        process.join()
        return np.load(out) if out.exists() else None


def known_keys() -> list[str]:
    """The keys below an architecture's prefix that stand in llama.cpp's library."""
    content = Path(str(_library())).read_bytes()
    found = re.findall(rb"%s\.((?:[a-z_0-9]+\.)*[a-z_0-9]+)\0", content)
    return sorted({key.decode() for key in found} - {"weight"})


def effect(arch: str, key: str, plain: NDArray[np.float32]) -> str:
    """What setting a key does."""
    answers = [found for value in VALUES if (found := measured(arch, {key: value})) is not None]
    if not answers:
        return "refused"
    same = all(np.abs(found - plain).max() < NOISE for found in answers)
    return "nothing" if same else "changes"


def main() -> None:
    if _library() is None:
        print(f"{OUT.name} is left as it is; making it needs xllamacpp: pip install xllamacpp")
        return
    byte_level("smollm")  # learnt once, for all processes
    golden: dict[str, Any] = {"xllamacpp": importlib.metadata.version("xllamacpp"), "logits": {}, "keys": {}}
    for arch in ARCHS:
        rows = {name: measured(arch, metadata) for name, metadata in ROTATIONS.items()}
        if arch == "llama":
            rows["Llama 3's factors"] = measured(arch, {}, factors=True)
        plain = rows["plain"]
        if plain is None:
            raise SystemExit(f"llama.cpp does not run the plain {arch} model.")
        golden["logits"][arch] = {
            name: None if row is None else [round(float(value), 5) for value in row[SHOWN]]
            for name, row in rows.items()
        }
        golden["keys"][arch] = {key: effect(arch, key, plain) for key in known_keys()}
    OUT.write_text(json.dumps(golden, indent=1) + "\n")
    print(f"{OUT.name}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
