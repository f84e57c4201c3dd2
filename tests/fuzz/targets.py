"""What is fuzzed: files, their odd versions, and who reads them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import control, packages, readers, snapshots, templates
from tests.fuzz.mutations import Make, byte_mutants, json_mutants

SEED = 13


@dataclass(frozen=True)
class Case:
    """One odd file; `make` returns its bytes."""

    name: str
    file: str
    make: Make


@dataclass(frozen=True)
class Target:
    """`prepare` writes sound files into a new directory; `reader` returns what reads them, in a copy, for each case."""

    prepare: Callable[[Path], object]
    reader: Callable[[Path], Callable[[], object]]
    json_files: tuple[str, ...] = ()
    """Each value of them is replaced. 'X.safetensors' means its header."""
    lines: tuple[str, ...] = ()
    """Files of one JSON object a line: the first line's values are replaced."""
    texts: tuple[str, ...] = ()
    """Files whose bytes are damaged."""
    n_damaged: int = 0
    """Odd versions of each of `texts`."""
    n_templates: int = 0
    """Random chat templates."""
    at_most: int = 10**9
    """Odd versions of each JSON file, chosen at random where there are more."""

    def cases(self, directory: Path) -> Iterator[Case]:
        """Yields the cases in a fixed order."""
        for file in (*self.json_files, *self.lines):
            found = [Case(f"{file}: {name}", file, make) for name, make in self._mutants(directory / file)]
            if len(found) > self.at_most:
                found = random.Random(SEED).sample(found, self.at_most)
            yield from found
        for file in self.texts:
            for name, make in byte_mutants((directory / file).read_bytes(), self.n_damaged, SEED):
                yield Case(f"{file}: {name}", file, make)
        for number in range(self.n_templates):
            yield Case(f"random template, number {number}", snapshots.TEMPLATE, _random_template(number))

    def _mutants(self, path: Path) -> Iterator[tuple[str, Make]]:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            header, data = snapshots.split_header(content)
            wrap: Callable[[bytes], bytes] = lambda text: snapshots.with_header(text, data)  # noqa: E731
        elif path.suffix == ".jsonl":
            first, rest = content.split(b"\n", 1)
            header, wrap = json.loads(first), lambda text: text + b"\n" + rest
        else:
            header, wrap = json.loads(content), lambda text: text
        for name, make in json_mutants(header):
            yield name, _then(make, wrap)


def _then(make: Make, wrap: Callable[[bytes], bytes]) -> Make:
    return lambda: wrap(make())


def _random_template(number: int) -> Make:
    return lambda: templates.template(random.Random(f"{SEED} {number}")).encode("utf-8", "replace")


def _checkpoint(name: str, *files: str, **options: int) -> Target:
    return Target(snapshots.MAKERS[name], readers.read_checkpoint, files, **options)


_SMALL = ("generation_config.json", "tokenizer_config.json")
_PICTURES = ("preprocessor_config.json", "processor_config.json")
TARGETS: dict[str, Target] = {
    "llama": _checkpoint(
        "llama", "config.json", *_SMALL, "special_tokens_map.json", "added_tokens.json", "chat_template.json",
        "tokenizer.json", at_most=1500,
    ),
    "qwen2": _checkpoint("qwen2", "config.json", *_SMALL),
    "dinov2": _checkpoint("dinov2", "config.json"),
    "siglip": _checkpoint("siglip", "config.json", "preprocessor_config.json"),
    "idefics3": _checkpoint("idefics3", "config.json", *_PICTURES, "generation_config.json"),
    "smolvlm": _checkpoint("smolvlm", "config.json", *_PICTURES, "tokenizer.json", at_most=2500),
    "bluelm_v": _checkpoint("bluelm_v", "config.json", "tokenizer.json", at_most=2500),
    "shards": _checkpoint(
        "shards", "model.safetensors.index.json", "model-00001-of-00002.safetensors", at_most=1200
    ),
    "composed": _checkpoint(
        "composed", "composed.json", "low_rank.safetensors", "projector.safetensors", "tower/config.json",
        "language/config.json", "language/tokenizer.json", at_most=900,
    ),
    "package": Target(packages.write_bluelm_v, readers.read_package, ("edgevlm.json",), at_most=6000),
    "package-smolvlm": Target(packages.write_smolvlm, readers.read_package, ("edgevlm.json",), at_most=2500),
    "package-texts": Target(
        packages.write_bluelm_v, readers.read_package_texts,
        ("tokenizer.json", "tokenizer_config.json"),
        texts=("tokenizer.json", "tokenizer_config.json", "edgevlm.json"), n_damaged=300, at_most=1200,
    ),
    "package-config": Target(packages.write_bluelm_v, readers.read_package_config, ("config.json",), at_most=600),
    "templates": Target(
        packages.write_bluelm_v, readers.read_template, texts=(snapshots.TEMPLATE, "chatml.jinja"), n_damaged=600,
        n_templates=3000,
    ),
    **{
        f"tokenizer-{kind}": Target(
            packages.tokenizer_writer(kind), readers.read_tokenizer, ("tokenizer.json",), texts=("tokenizer.json",),
            n_damaged=200, at_most=700,
        )
        for kind in ("byte-level", "llama-normalizer", "llama-first", "unigram", "word-piece")
    },
    "question-set": Target(packages.write_questions, readers.read_questions, ("set.json",), ("questions.jsonl",)),
    "results": Target(packages.write_results, readers.read_results, ("results.json",), at_most=2000),
    "tuning": Target(packages.write_record, readers.read_record, ("x86_64.json",), at_most=2000),
}  # fmt: skip


class _Control(Target):
    """The harness's own control: each defect is a case."""

    def cases(self, directory: Path) -> Iterator[Case]:
        for name in control.DEFECTS:
            yield Case(name, control.FILE, name.encode)


CONTROL = "control"
_ALL = {**TARGETS, CONTROL: _Control(control.write, control.reader)}


def target(name: str) -> Target:
    """Returns a target of the table, or the control."""
    return _ALL[name]


def chosen(name: str, directory: Path, numbers: list[int]) -> Iterator[tuple[int, Case]]:
    """Yields the cases with these numbers, which rise."""
    wanted = iter(numbers)
    number = next(wanted, None)
    for index, case in enumerate(target(name).cases(directory)):
        if index == number:
            yield index, case
            number = next(wanted, None)


def count(name: str, directory: Path) -> int:
    """Returns the number of cases."""
    return sum(1 for _ in target(name).cases(directory))
