"""What splitting decode attention over (KV head, range of keys) gains: one and two threads, 1 and 3 KV heads.

    python -m tests.benchmarks.decode_attention [--context 8192] [--steps 64] [--rounds 5] [--threads 1 2]

Random models of a few layers with SmolLM2-135M's heads (9 on 3, 64 channels) and with one KV head (8 on 1), an 8-bit
cache filled to --context. Prints milliseconds of attention a token by the engine's own profile, medians of rounds in
turn, and what shares of whole KV heads could give at best: the time of one thread times the largest share.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import host_arch
from edgevlm.package import open_package
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tvm_schedules.compile import compile_package

HEADS = ((9, 3), (8, 1))
HEAD_DIM = 64
LAYERS = 4


def make_package(heads: int, kv_heads: int, context: int, directory: Path) -> Path:
    """A compiled model of random weights that takes `context` tokens."""
    source = tiny.make_llama(
        directory / "checkpoint", hidden_size=heads * HEAD_DIM, intermediate_size=192, num_hidden_layers=LAYERS,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=HEAD_DIM, max_position_embeddings=context,
    )  # fmt: skip
    package = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(package, host_arch(), "text " * 50)
    return package


def attention_ms(session: NativeSession, n_past: int, steps: int) -> float:
    """Milliseconds a token that attention takes behind `n_past` tokens."""
    session.truncate(n_past)
    session.profile(on=True)
    for i in range(steps):
        session.step(i % 100, n_past + i)
    seconds = sum(kernel.seconds for kernel in session.kernel_times() if kernel.kernel.startswith("attend_"))
    return seconds / steps * 1e3


def main() -> None:
    """Measures both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    n_past = arguments.context - arguments.steps
    print(f"{LAYERS} layers, {n_past} tokens held, attention a token")
    print("| heads on KV heads | threads | ms | times as fast | whole KV heads, at best |\n|---|---|---|---|---|")
    for heads, kv_heads in HEADS:
        with tempfile.TemporaryDirectory() as scratch:
            package = open_package(make_package(heads, kv_heads, arguments.context, Path(scratch)))
            ids = np.random.default_rng(0).integers(0, package.manifest.decoder.vocab_size, n_past)
            sessions = {n: NativeSession(package, context=arguments.context, threads=n) for n in arguments.threads}
            for session in sessions.values():
                session.prefill([ids], np.arange(n_past))
            times: dict[int, list[float]] = {n: [] for n in sessions}
            for round_ in range(arguments.rounds + 1):
                for n, session in sessions.items():
                    found = attention_ms(session, n_past, arguments.steps)
                    if round_:
                        times[n].append(found)
            first = statistics.median(times[arguments.threads[0]])
            for n, found in times.items():
                at_best = kv_heads / -(-kv_heads // n)
                ms = statistics.median(found)
                print(f"| {heads} on {kv_heads} | {n} | {ms:.3f} | {first / ms:.2f} | {at_best:.2f} |", flush=True)
            for session in sessions.values():
                session.close()


if __name__ == "__main__":
    main()
