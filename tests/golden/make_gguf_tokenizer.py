"""Makes gguf_tokenizer_<name>.json.gz: ids of llama.cpp's own tokenizer, loaded vocabulary-only.

    python -m tests.golden.make_gguf_tokenizer [tiny] [smollm2] [qwen2]

`tiny` are the vocabularies of tests/tiny_gguf.py, the others those of the real weights of tests/weights.py. Needs
xllamacpp (llama.cpp as one shared library; its C functions are called directly); without it the files stay as they
are, and a line says so. Per mode a file holds one sha256 for each 100 strings and all ids of the first ones. The
strings come from tests/tokenizer_strings.py, whose output is pinned by a hash, too.
"""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("tiny", "smollm2", "qwen2")
BLOCK = 100
MODES = (("special", True, False), ("plain", False, False), ("framed", True, True))
"""Name, whether special tokens in the text are recognised, whether BOS and EOS are added."""


class ModelParams(ctypes.Structure):
    """llama_model_params of llama.h as of build 11549: ten fields that stay at their defaults, then the booleans."""

    _fields_ = (
        ("pointers_before", ctypes.c_void_p * 2),
        ("numbers", ctypes.c_int32 * 5),
        ("pointers_after", ctypes.c_void_p * 4),
        ("vocab_only", ctypes.c_bool),
        ("other_flags", ctypes.c_bool * 5),
        ("room_for_later_fields", ctypes.c_uint8 * 256),
    )


class LlamaCppTokenizer:
    """llama.cpp's tokenizer of one GGUF file."""

    def __init__(self, path: Path) -> None:
        lib = self._lib = ctypes.CDLL(_library())
        lib.llama_model_default_params.restype = ModelParams
        lib.llama_model_load_from_file.restype = ctypes.c_void_p
        lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
        lib.llama_model_get_vocab.restype = ctypes.c_void_p
        lib.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
        lib.llama_tokenize.argtypes = [
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32),
            *(ctypes.c_bool, ctypes.c_bool),
        ]
        self._log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        lib.llama_log_set(self._log, None)
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.vocab_only = True
        model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise SystemExit(f"llama.cpp cannot load {path}.")
        self._vocab = lib.llama_model_get_vocab(model)

    def encode(self, text: str, *, parse_special: bool, add_special: bool = False) -> list[int]:
        """Ids of `text`; `add_special` adds BOS and EOS as the file says."""
        data = text.encode()
        buffer = (ctypes.c_int32 * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), buffer, len(buffer), add_special, parse_special)
        if count < 0:
            raise SystemExit(f"llama.cpp needs room for {-count} tokens of {len(data)} bytes.")
        return list(buffer[:count])


def digests(ids: Sequence[Sequence[int]]) -> list[str]:
    """One sha256 (first 16 characters) per block of 100 texts."""
    blocks = [ids[start : start + BLOCK] for start in range(0, len(ids), BLOCK)]
    return [hashlib.sha256(json.dumps(block).encode()).hexdigest()[:16] for block in blocks]


def golden_of(path: Path, n_strings: int, n_full: int) -> dict[str, Any]:
    """llama.cpp's ids of `n_strings` strings in each mode, as digests and, of the first `n_full`, whole."""
    from export.checkpoints.gguf_container import GGUFFile
    from tests.tokenizer_strings import make_strings

    metadata = GGUFFile(path).metadata
    typed = zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True)
    special = [token for token, kind in typed if kind in (2, 3, 4)]
    strings = make_strings(special, n_strings)
    oracle = LlamaCppTokenizer(path)
    modes = {}
    for mode, parse_special, add_special in MODES:
        ids = [oracle.encode(text, parse_special=parse_special, add_special=add_special) for text in strings]
        modes[mode] = {"blocks": digests(ids), "ids": ids[:n_full]}
    strings_sha256 = hashlib.sha256(json.dumps(strings).encode()).hexdigest()
    return {"n_strings": n_strings, "strings_sha256": strings_sha256, "special": special, "modes": modes}


def _library() -> str | None:
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    spec = importlib.util.find_spec("xllamacpp.xllamacpp")
    return None if spec is None else spec.origin


def write_golden(name: str) -> None:
    """Makes one of the files."""
    from tests import tiny_gguf, weights

    golden: dict[str, Any] = {
        "made_with": {"xllamacpp": importlib.metadata.version("xllamacpp"), "python": platform.python_version()},
    }
    if name == "tiny":
        with tempfile.TemporaryDirectory() as scratch:
            for variant, vocabulary in tiny_gguf.variants().items():
                path = Path(scratch) / f"{variant}.gguf"
                tiny_gguf.write_model(path, vocabulary=vocabulary)
                golden[variant] = golden_of(path, 1000, 20)
    else:
        path = {"smollm2": weights.smollm2_135m, "qwen2": weights.qwen2_coder_0_5b}[name]()
        golden["gguf_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        golden |= golden_of(path, 10_000, 200)
    out = Path(__file__).with_name(f"gguf_tokenizer_{name}.json.gz")
    out.write_bytes(gzip.compress(json.dumps(golden, ensure_ascii=False).encode(), mtime=0))
    print(f"{out.name}: {out.stat().st_size:,} bytes")


def main() -> None:
    if _library() is None:
        print(f"left as they are: {', '.join(NAMES)}; making them needs xllamacpp: pip install xllamacpp")
        return
    for name in sys.argv[1:] or NAMES:
        write_golden(name)


if __name__ == "__main__":
    main()
