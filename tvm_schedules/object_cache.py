"""Object files of a variant's kernels, kept under the hash of what they are made from, so that a rebuild is quick.

Two levels: while no kernel source has changed, a variant's list of objects is read as it was; when one has, every
kernel is stated again and only those whose TVM function differs are compiled.

`python -m tvm_schedules.object_cache VARIANT DIRECTORY POINTS` fills the cache for one variant, tiled as POINTS, a JSON
object of the points of its slots (`tune_space`), says.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from tvm_schedules.targets import BY_NAME, Variant
from tvm_schedules.tune_space import SLOTS, point_of, with_point

PACKAGE = Path(__file__).parent
KEPT_LISTS = 24
"""Lists that `prune` leaves: six variants on a few branches."""
_NOT_KERNELS = {"build.py", "compile.py", "lower.py", "matrices.py", "object_cache.py", "onnx_graph.py", "plan.py",
                "reference.py", "toolchains.py", "tune.py", "tune_measure.py", "tune_models.py", "tune_record.py",
                "tune_tower.py", "tune_work.py"}  # fmt: skip


def sources_hash() -> str:
    """Hash of every source that a kernel may depend on, and of TVM's version."""
    digest = hashlib.sha256(version("apache-tvm").encode())
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent == PACKAGE and path.name in _NOT_KERNELS:
            continue
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def points_json(variant: Variant) -> str:
    """The points of a variant's slots, for the command line of this module."""
    return json.dumps({slot: point_of(variant, slot) for slot in SLOTS})


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    """Makes `cache` and keeps other builds out of it: one that prunes would delete what another has not listed yet."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def variant_objects(variant: Variant, cache: Path, sources: str) -> dict[str, Path]:
    """Returns kernel name → object file in `cache`; a kernel `x` defines the symbol ev_<variant>_x.

    `sources` is `sources_hash()`.
    """
    known = known_objects(variant, cache, sources)
    if known is not None:
        return known
    objects = _compile(variant, cache)
    listed = json.dumps({name: path.name for name, path in objects.items()}, indent=1)
    _write(_index(variant, cache, sources), listed.encode())
    return objects


def known_objects(variant: Variant, cache: Path, sources: str) -> dict[str, Path] | None:
    """The same when all objects are there already, else None."""
    index = _index(variant, cache, sources)
    if not index.exists():
        return None
    known = {name: cache / file for name, file in _listed(index).items()}
    return known if known and all(path.exists() for path in known.values()) else None


def _listed(index: Path) -> dict[str, str]:
    """Kernel → file of a list; nothing for a damaged one, whose objects are then made again."""
    try:
        listed = json.loads(index.read_bytes())
    except (ValueError, RecursionError):
        return {}
    is_sound = isinstance(listed, dict) and all(isinstance(file, str) for file in listed.values())
    return listed if is_sound else {}


def _index(variant: Variant, cache: Path, sources: str) -> Path:
    digest = hashlib.sha256((sources + points_json(variant)).encode()).hexdigest()
    return cache / f"{variant.name}-{digest[:32]}.json"


def _compile(variant: Variant, cache: Path) -> dict[str, Path]:
    from tvm_schedules.codegen import build_object
    from tvm_schedules.kernel_set import kernel_set

    cache.mkdir(parents=True, exist_ok=True)
    objects = {}
    for name, function in kernel_set(variant).items():
        target = (variant.name, variant.triple, variant.mcpu, variant.mattr)
        made_from = (name, target, version("apache-tvm"), (PACKAGE / "codegen.py").read_text("utf-8"))
        digest = hashlib.sha256(repr(made_from).encode() + function.script().encode()).hexdigest()
        path = cache / f"{digest[:32]}.o"
        if not path.exists():
            scratch = path.with_name(f".{os.getpid()}-{path.name}")
            build_object({f"ev_{variant.name}_{name}": function}, variant, scratch)
            scratch.replace(path)
        objects[name] = path
    return objects


def prune(cache: Path) -> None:
    """Deletes all but the newest lists of objects, and the objects that none of them names."""
    indexes = sorted(cache.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    kept: set[str] = set()
    for index in indexes[:KEPT_LISTS]:
        kept |= set(_listed(index).values())
    for index in indexes[KEPT_LISTS:]:
        index.unlink(missing_ok=True)
    for path in cache.glob("*.o"):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    scratch.write_bytes(data)
    scratch.replace(path)


if __name__ == "__main__":
    tiled = BY_NAME[sys.argv[1]]
    for slot, point in json.loads(sys.argv[3]).items():
        tiled = with_point(tiled, slot, point)
    variant_objects(tiled, Path(sys.argv[2]), sources_hash())
