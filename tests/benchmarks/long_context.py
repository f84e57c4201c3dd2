"""Decode behind a long context, by form of the cache.

    python -m tests.benchmarks.long_context PACKAGE [--context 8192] [--new-tokens 64] [--rounds 3] [--threads 2]

One session a form, each prefilled once; the forms decode in turn. Prints tokens per second and the cache's size.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from edgevlm.backends.native import NativeSession
from edgevlm.package import open_package

FORMS = {"float": (16, 16), "k8v8": (8, 8), "k8v4": (8, 4), "k4v4": (4, 4)}


def main() -> None:
    """Measures one package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    package = open_package(arguments.package)
    decoder = package.manifest.decoder
    n_past = arguments.context - arguments.new_tokens
    ids = np.random.default_rng(0).integers(0, decoder.vocab_size, n_past)
    sessions = {}
    for name, bits in FORMS.items():
        table = [bits] * decoder.num_hidden_layers
        session = NativeSession(package, context=arguments.context, threads=arguments.threads, kv_bits=table)
        session.prefill([ids], np.arange(n_past))
        sessions[name] = session
    rates: dict[str, list[float]] = {name: [] for name in sessions}
    for round_ in range(arguments.rounds + 1):
        for name, session in sessions.items():
            session.truncate(n_past)
            start = time.perf_counter()
            for i in range(arguments.new_tokens):
                session.step(int(ids[i]), n_past + i)
            if round_:
                rates[name].append(arguments.new_tokens / (time.perf_counter() - start))
    print(f"{package.manifest.name}: {decoder.num_key_value_heads} KV heads, {n_past} tokens held")
    print("| cache | decode tok/s | cache and scratch |\n|---|---|---|")
    for name, session in sessions.items():
        print(f"| {name} | {statistics.median(rates[name]):.1f} | {session.memory().kv_bytes / 1e6:.0f} MB |")


if __name__ == "__main__":
    main()
