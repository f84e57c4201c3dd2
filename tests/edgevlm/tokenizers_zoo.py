"""Small tokenizers of every kind that the runtime meets, trained on a few lines when a test asks."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from edgevlm.tokenizer import Tokenizer
from tests.tiny import tokenizer_json

TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "What is in this picture? A red circle and a blue rectangle.",
    "Größe, naïve, 日本語, 12 345, <b>bold</b> | pipes || <tags> _under_ image end im",
]
EMOJI_TEXT = "👩‍👩‍👧‍👦🏳️‍🌈 日本語 Größe — ẞ é e\u0301 \U0001f9d1🏽‍🚀\n\tend"
CONTROL = ("<s>", "</s>", "<|im_end|>", "<image>", "<tool_call>")


def byte_level() -> Backend:
    """SmolLM2's kind, with special tokens, a markup token that is not special, and ordinary added words."""
    backend = Backend.from_str(json.dumps(tokenizer_json(("<image>", "<fake_token_around_image>"))))
    backend.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    backend.add_tokens([AddedToken("    ", normalized=True), AddedToken("zebrafish", normalized=True)])
    return backend


def llama(prepend: str) -> Backend:
    """SentencePiece BPE with byte fallback: `prepend` is 'normalizer' (old conversions), 'first' or 'always'."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    merges = []
    for word in ("▁the", "▁is", "▁in", "▁a", "in", "the", "is", "▁What", "er"):
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
    for char in "▁ abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<>|_/.,?!0123456789\n":
        vocab.setdefault(char, len(vocab))
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    strip: list[Any] = []
    if prepend == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)]
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prepend, split=False)
        strip = [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", *CONTROL[:4])])
    return backend


def unigram() -> Backend:
    """A Unigram model whose vocabulary can spell its control tokens, as T5's and Gemma's lists do."""
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<unk>", *CONTROL], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(TEXT * 20, trainer)
    return backend


def word_piece() -> Backend:
    """A decoder that the stream has no fast way for."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator(TEXT * 20, trainer)
    return backend


ZOO = {
    "byte-level": byte_level,
    "llama-normalizer": lambda: llama("normalizer"),
    "llama-first": lambda: llama("first"),
    "llama-always": lambda: llama("always"),
    "unigram": unigram,
    "word-piece": word_piece,
}


@cache
def backend(name: str) -> Backend:
    """The `tokenizers` object of a zoo entry."""
    return ZOO[name]()


@cache
def tokenizer(name: str) -> Tokenizer:
    """Ours on a copy of the same."""
    return Tokenizer(Backend.from_str(backend(name).to_str()))
