"""What tuning found on a machine, as JSON per architecture, and the variants as they are built from it.

`records/<arch>.json` is committed data. A build takes a recorded point when its slot was searched to the end and the
gain over the default is more than 2 %; everything else in the record is for the reader.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgevlm.errors import PackageError
from edgevlm.strict_json import from_json, parse_json, to_json
from tvm_schedules import tune_space
from tvm_schedules.targets import BY_NAME, Variant
from tvm_schedules.tune_space import SLOTS, Point, Slot

FORMAT = 1
RECORDS = Path(__file__).parent / "records"
LEAST_GAIN = 1.02
"""Default time over recorded time above which a build takes the recorded point: less is noise."""

Clock = Literal["thread_cpu"]


@dataclass(frozen=True)
class Measured:
    """One candidate of the search; `gain` is the default's time over its own, in alternating runs on one board."""

    point: Point
    gain: float
    board: str


@dataclass(frozen=True)
class Shape:
    """Medians of one workload in the last comparison."""

    model: str
    name: str
    calls: float
    """How often one pass of the model does it."""
    default_us: float
    best_us: float


@dataclass(frozen=True)
class Refused:
    """A candidate that was not timed, or whose timing failed."""

    point: Point
    reason: str


@dataclass(frozen=True)
class SlotRecord:
    """The search of one slot. `gain` is the geometric mean over the models; `noise` that of the default over itself."""

    best: Point
    default: Point
    gain: float
    noise: float
    finished: bool
    date: str
    cpu: str
    versions: dict[str, str]
    clock: Clock
    samples: int
    shapes: tuple[Shape, ...]
    candidates: tuple[Measured, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class VariantRecord:
    """Slots that were searched, in any order of time."""

    prefill: SlotRecord | None = None
    batch: SlotRecord | None = None
    decode: SlotRecord | None = None
    attend_prefill: SlotRecord | None = None
    attend_decode: SlotRecord | None = None
    tower: SlotRecord | None = None


@dataclass(frozen=True)
class Record:
    """The file."""

    format: int
    arch: str
    variants: dict[str, VariantRecord]


def record_path(arch: str) -> Path:
    """Where the committed record of `arch` stands."""
    return RECORDS / f"{arch}.json"


def read_record(path: Path, arch: str) -> Record:
    """Returns the record; an empty one when there is no file.

    Raises PackageError naming what is wrong: another format or architecture, unknown keys, an illegal point.
    """
    if not path.exists():
        return Record(FORMAT, arch, {})
    try:
        record = from_json(Record, parse_json(path.read_bytes()), "record")
    except ValueError as error:
        raise PackageError(f"{path} is not a tuning record: {error}") from error
    if record.format != FORMAT:
        raise PackageError(f"{path} has format {record.format}, expected {FORMAT}; tune again")
    if record.arch != arch:
        raise PackageError(f"{path} is a record of {record.arch}, expected one of {arch}")
    for name, entry in record.variants.items():
        if name not in BY_NAME or BY_NAME[name].arch != arch:
            raise PackageError(f"{path} has a variant {name!r} that {arch} does not have")
        try:
            _moved(BY_NAME[name], entry)
        except ValueError as error:
            raise PackageError(f"{path}: {error}") from error
    return record


def write_record(path: Path, record: Record) -> None:
    """Writes the record in one step, so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    scratch.write_text(json.dumps(_without_none(to_json(record)), indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)


def with_slot(record: Record, variant_name: str, slot: Slot, entry: SlotRecord) -> Record:
    """Returns `record` with the search of one slot put in or replaced."""
    old = record.variants.get(variant_name, VariantRecord())
    changed = dataclasses.replace(old, **{slot: entry})
    return dataclasses.replace(record, variants={**record.variants, variant_name: changed})


def tuned(variant: Variant, record: Record) -> Variant:
    """Returns `variant` with the recorded points that are worth taking."""
    entry = record.variants.get(variant.name)
    return variant if entry is None else _moved(variant, entry)


def worth_taking(entry: SlotRecord) -> bool:
    """Says whether a build takes the entry's point."""
    return entry.finished and entry.gain > LEAST_GAIN


def _moved(variant: Variant, entry: VariantRecord) -> Variant:
    """Moves `variant` slot by slot; raises ValueError for an illegal point, taken or not."""
    for slot in SLOTS:
        found: SlotRecord | None = getattr(entry, slot)
        if found is None:
            continue
        moved = tune_space.with_point(variant, slot, found.best)
        if worth_taking(found):
            variant = moved
    return variant


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
