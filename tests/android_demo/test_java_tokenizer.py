"""The Java tokenizer on the tables of the export: ids, spans and texts of Hugging Face `tokenizers`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizer_runner import run_decoder, run_tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers_zoo import ZOO, backend

from edgevlm.errors import UnsupportedModelError, UsageError
from edgevlm.package import open_package
from edgevlm.tokenizer import Tokenizer
from export.device.table_file import read_tables, write_tables
from export.device.tokenizer_tables import tokenizer_tables
from tests.tokenizer_strings import make_strings

ROOT = Path(__file__).resolve().parent.parent.parent
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
MARKS = ["e\u0301", "가\u11a8", "\u1100\u1161\u11a8", "a\u0315\u0300\u05ae", "\u0344", "ﬁ①Ⅷ", "\u2126\u212b", "\u0958"]


def split_backend(pattern: str, form: normalizers.Normalizer | None) -> Backend:
    """Byte-level BPE with a pattern of its own and a Unicode form, with words that look through both."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Backend(models.BPE({char: i for i, char in enumerate(alphabet)}, [], ignore_merges=True))
    if form is not None:
        made.normalizer = form
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=False)])
    made.add_tokens(
        [AddedToken("ﬁsh", normalized=True), AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)]
    )
    return made


EXTRA = {
    "qwen2-nfc": lambda: split_backend(QWEN2, normalizers.NFC()),
    "llama3-nfkc": lambda: split_backend(LLAMA3, normalizers.NFKC()),
    "gpt2-nfd": lambda: split_backend(r" ?\p{L}+| ?\p{N}+|[^\s\p{L}\p{N}]{1,4}|\s+", normalizers.NFD()),
    "punctuation-nfkd": lambda: _punctuation(),
}


def _punctuation() -> Backend:
    made = split_backend(r"\s+", normalizers.NFKD())
    steps = [
        pre_tokenizers.Punctuation("merged_with_previous"),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(" ", "merged_with_next"),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Strip(), normalizers.Replace("--", "—")])
    return made


def of(name: str) -> Tokenizer:
    """The Python tokenizer of a name out of the zoo or EXTRA."""
    made = EXTRA[name]() if name in EXTRA else backend(name)
    return Tokenizer(Backend.from_str(made.to_str()))


def strings(tokenizer: Tokenizer, count: int, seed: int = 3) -> list[str]:
    """Texts of every kind: made ones, lines of the corpora, marks that compose, random characters, nothing."""
    rng = random.Random(seed)
    special = [token["content"] for token in json.loads(tokenizer.backend.to_str())["added_tokens"]]
    made = make_strings(special, count, seed)
    for path in (ROOT / "assets/text/devils-dictionary.txt", *sorted((ROOT / "export/data").glob("*.txt"))):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        made += [line for line in lines if rng.random() < 0.1]
    made += ["".join(rng.choice([*MARKS, "a", " ", "fish", "日"]) for _ in range(6)) for _ in range(count // 10)]
    return [*made, "", " ", "\n", "a" * 3000]


def differences(tokenizer: Tokenizer, classes: Path, tables: Path, texts: list[str], scratch: Path) -> Iterator[str]:
    """Yields what differs from the library: ids, control spans, ids as text at the start and inside, decoded text."""

    def as_text(text: str, at_start: bool) -> list[int] | None:
        try:
            return tokenizer.encode_as_text(text, at_start=at_start)
        except UsageError:
            return None

    for text, found in zip(texts, run_tokenizer(classes, tables, texts, scratch), strict=True):
        expected = tokenizer.encode_tokens(text)
        if found.ids is None or found.ids != [token.id for token in expected]:
            yield f"ids of {text!r}"
            continue
        spans = zip(found.ids, found.starts, found.ends, strict=True)
        control = [(token.start, token.end) for token in expected if token.id in tokenizer.control_ids]
        if [(start, end) for token, start, end in spans if token in tokenizer.control_ids] != control:
            yield f"spans of {text!r}"
        if (found.as_text, found.inner) != (as_text(text, True), as_text(text, False)):
            yield f"as text: {text!r}"
        if found.decoded != tokenizer.decode(found.ids):
            yield f"decoded: {text!r}"


NAMES = [*(name for name in ZOO if name != "word-piece"), *EXTRA]
N_STRINGS = 100_000 // len(NAMES) + 1
"""For each tokenizer, of its own seed: 100,000 different strings in all."""


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_the_librarys(name: str, classes: Path, tmp_path: Path) -> None:
    tokenizer = of(name)
    tables = tmp_path / "tokenizer.bin"
    tables.write_bytes(tokenizer_tables(tokenizer))
    texts = strings(tokenizer, N_STRINGS, seed=NAMES.index(name))
    assert len(texts) > N_STRINGS
    assert list(differences(tokenizer, classes, tables, texts, tmp_path)) == []


@pytest.mark.weights
def test_ids_of_the_demos_tokenizer(demo_package: Path, classes: Path, tmp_path: Path) -> None:
    """A real tokenizer, by the tables that its export has written."""
    package = open_package(demo_package)
    assert package.manifest.device is not None and package.manifest.device.tokenizer is not None
    tokenizer = Tokenizer.open(package)
    tables = package.file(package.manifest.device.tokenizer)
    assert list(differences(tokenizer, classes, tables, strings(tokenizer, 20_000, seed=77), tmp_path)) == []


def test_other_tables_are_noticed(classes: Path, tmp_path: Path) -> None:
    """The control: one merge less, and the comparison sees it."""
    tokenizer = of("byte-level")
    sections = read_tables(tokenizer_tables(tokenizer))
    ranks = bytearray(sections["merge.right"])
    ranks[0] ^= 1
    tables = tmp_path / "tokenizer.bin"
    tables.write_bytes(write_tables({**sections, "merge.right": bytes(ranks)}))
    assert list(differences(tokenizer, classes, tables, strings(tokenizer, 500), tmp_path))


@pytest.mark.parametrize("name", ["byte-level", "llama-normalizer", "llama-first", "unigram"])
def test_any_ids_decode_to_whole_characters(name: str, classes: Path, tmp_path: Path) -> None:
    """Random ids break characters in every way; what is streamed is Python's, byte for byte."""
    tokenizer = of(name)
    tables = tmp_path / "tokenizer.bin"
    tables.write_bytes(tokenizer_tables(tokenizer))
    rng = random.Random(11)
    lists = [[rng.randrange(tokenizer.n_vocab + 3) for _ in range(rng.randint(0, 30))] for _ in range(5_000)]
    found = run_decoder(classes, tables, lists, tmp_path)
    assert [ids for ids, text in zip(lists, found, strict=True) if text != tokenizer.decode(ids)] == []


def test_what_a_device_cannot_do_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="BertNormalizer"):
        tokenizer_tables(of("word-piece"))
    for pattern, named in (
        (r"(?<=a)b", "character 0"),
        (r"a++", "possessive"),
        (r"(?!ab)c", "more than one"),
        (r"^a", r"\^"),
    ):
        with pytest.raises(UnsupportedModelError, match=named):
            tokenizer_tables(Tokenizer(split_backend(pattern, None)))
    with pytest.raises(UnsupportedModelError, match="empty"):
        tokenizer_tables(Tokenizer(split_backend(r"a*", None)))


@pytest.mark.parametrize("cut", [0, 3, 20, 200, -60])
def test_damaged_tables_are_refused(cut: int, classes: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tokenizer.bin"
    tables.write_bytes(tokenizer_tables(of("byte-level"))[:cut])
    with pytest.raises(AssertionError, match=r"tokenizer\.bin"):
        run_tokenizer(classes, tables, ["a"], tmp_path)
