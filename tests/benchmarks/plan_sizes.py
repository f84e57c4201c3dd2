"""Prefill by chunk length and encoding by tile batch: the package compiled again with each pair of fixed sizes.

    python -m tests.benchmarks.plan_sizes PACKAGE [--tokens 1088] [--tiles 12] [--repeat 5] [--write]

The native plan fixes how many tokens a prefill call and how many tiles a tower call takes; nothing but this measurement
varies them, so they are the lowering's constants, changed here while a copy of the package (its other files linked) is
compiled. The pairs run in turn, --repeat times, after a round that is not counted; medians are printed, with the bytes
that one conversation takes. `--write` puts the tables into docs/method.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

import tvm_schedules.compile as compiling
import tvm_schedules.lower as lowering
from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import host_arch
from edgevlm.errors import UsageError
from edgevlm.package import open_package
from edgevlm.spec import MANIFEST_NAME
from export import probes
from tests.benchmarks import method_page

CHUNKS = (32, 64, 128, 256, 512)
BATCHES = (1, 2, 3, 4, 6)


@dataclass
class Measured:
    """One pair of sizes."""

    chunk_tokens: int
    tile_batch: int
    session: NativeSession
    prefill_s: list[float] = field(default_factory=list)
    encode_s: list[float] = field(default_factory=list)


@contextmanager
def fixed_sizes(chunk_tokens: int, tile_batch: int) -> Iterator[None]:
    """Lowers with these sizes inside the block."""
    saved = lowering.CHUNK_TOKENS, compiling.CHUNK_TOKENS, compiling.lower_vision
    lowering.CHUNK_TOKENS = compiling.CHUNK_TOKENS = chunk_tokens
    compiling.lower_vision = partial(saved[2], max_batch=tile_batch)
    try:
        yield
    finally:
        lowering.CHUNK_TOKENS, compiling.CHUNK_TOKENS, compiling.lower_vision = saved


def compiled_with(package: Path, target: Path, chunk_tokens: int, tile_batch: int) -> Path:
    """A copy of the package with these sizes fixed; the original is not touched."""
    shutil.copytree(package, target, copy_function=_link_but_manifest)
    with fixed_sizes(chunk_tokens, tile_batch):
        compiling.compile_package(target, host_arch(), probes.text())
    return target


def _link_but_manifest(source: str, target: str) -> None:
    if Path(source).name == MANIFEST_NAME:
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def measure(
    package_dir: Path, n_tokens: int, n_tiles: int, repeat: int, threads: int | None, scratch: Path
) -> list[Measured]:
    """Returns the seconds of each pair of CHUNKS and BATCHES, the first round left out."""
    package = open_package(package_dir)
    if package.manifest.processor is None:
        raise UsageError(f"{package_dir}: this package takes no pictures; there is no tower to measure")
    random = np.random.default_rng(0)
    ids = random.integers(0, package.manifest.decoder.vocab_size, n_tokens)
    side = package.manifest.processor.tile_px
    tiles = random.standard_normal((n_tiles, 3, side, side)).astype(np.float32)
    rows = []
    for chunk_tokens, tile_batch in zip(CHUNKS, BATCHES, strict=True):
        path = compiled_with(package_dir, scratch / f"{chunk_tokens}-{tile_batch}", chunk_tokens, tile_batch)
        session = NativeSession(open_package(path), context=n_tokens + 1, threads=threads)
        rows.append(Measured(chunk_tokens, tile_batch, session))
    for _ in range(repeat + 1):
        for row in rows:
            row.session.truncate(0)
            start = time.perf_counter()
            row.session.prefill([ids], np.arange(n_tokens))
            row.prefill_s.append(time.perf_counter() - start)
            before = row.session.timings.encode_s
            row.session.encode(tiles)
            row.encode_s.append(row.session.timings.encode_s - before)
    for row in rows:
        del row.prefill_s[0], row.encode_s[0]
    return rows


def report(rows: list[Measured], n_tokens: int, n_tiles: int) -> str:
    """Both tables."""
    chunks, batches = [], []
    for row in rows:
        seconds = statistics.median(row.prefill_s)
        memory = f"{row.session.memory().kv_bytes / 1e6:.1f}"
        spread = f"{min(row.prefill_s):.3f} to {max(row.prefill_s):.3f}"
        chunks.append((f"{row.chunk_tokens}", f"{seconds:.3f}", spread, f"{n_tokens / seconds:.0f}", memory))
        seconds = statistics.median(row.encode_s)
        spread = f"{min(row.encode_s):.3f} to {max(row.encode_s):.3f}"
        batches.append((f"{row.tile_batch}", f"{seconds:.3f}", spread, f"{n_tiles / seconds:.1f}"))
    return "\n\n".join(
        (
            f"Prefill of {n_tokens} tokens by chunk, medians of {len(rows[0].prefill_s)}; MB: cache and arena.",
            method_page.table(("tokens a call", "s", "least to most", "tokens/s", "MB"), chunks),
            f"Encoding {n_tiles} tiles by batch; what no whole batch is left for goes one by one.",
            method_page.table(("tiles a call", "s", "least to most", "tiles/s"), batches),
        )
    )


def main() -> None:
    """Measures one package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--tokens", type=int, default=1088, help="length of the prompt (default: 17 tiles of 64)")
    parser.add_argument("--tiles", type=int, default=12, help="whole batches of 1, 2, 3, 4 and 6 (default: 12)")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true", help="write docs/method.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.package.resolve().parent, prefix=".sizes-") as scratch:
        rows = measure(
            options.package, options.tokens, options.tiles, options.repeat, options.threads, Path(scratch)
        )  # fmt: skip
        text = report(rows, options.tokens, options.tiles)
        for row in rows:
            row.session.close()
    if options.write:
        method_page.write_section("sizes", text + "\n\n![seconds by chunk and by tile batch](method/sizes.png)")
        method_page.plot_sizes(
            {row.chunk_tokens: row.prefill_s for row in rows}, {row.tile_batch: row.encode_s for row in rows}
        )
    else:
        print(text)


if __name__ == "__main__":
    main()
