"""One runtime in a process of its own, in its own environment: reads requests as JSON lines, answers with seconds.

`python runner.py PEER MODEL THREADS`; requests are {"ids": [...], "n_new": N}; the answer has prefill_s (to the first
token), decode_s of the n_new tokens after it, and peak_mb. Standalone: nothing but the runtime itself is imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Generate = Callable[[list[int]], Iterator[int]]
"""Token ids of a prompt to greedily chosen ones, without end; the first appears when the prompt has been read."""
CONTEXT = 1024
KEPT: list[Any] = []
"""Callbacks that C code holds: they must outlive the call that hands them over."""


def llama_cpp(model: str, n_threads: int) -> Generate:
    import llama_cpp as lib

    KEPT.append(lib.llama_log_callback(lambda *_: None))
    lib.llama_log_set(KEPT[0], None)
    lib.llama_backend_init()
    weights = lib.llama_model_load_from_file(model.encode(), lib.llama_model_default_params())
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = CONTEXT, 512, 512
    options.n_threads = options.n_threads_batch = n_threads
    context = lib.llama_init_from_model(weights, options)
    sampler = lib.llama_sampler_init_greedy()

    def generate(ids: list[int]) -> Iterator[int]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        tokens = list(ids)
        while True:
            batch = (lib.llama_token * len(tokens))(*tokens)
            if lib.llama_decode(context, lib.llama_batch_get_one(batch, len(tokens))):
                raise RuntimeError("llama_decode failed")
            tokens = [lib.llama_sampler_sample(sampler, context, -1)]
            yield tokens[0]

    return generate


def onnxruntime_genai(model: str, n_threads: int) -> Generate:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import numpy as np
    import onnxruntime_genai as og

    config = og.Config(model)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": n_threads}}}}))
    loaded = og.Model(config)

    def generate(ids: list[int]) -> Iterator[int]:
        parameters = og.GeneratorParams(loaded)
        parameters.set_search_options(max_length=CONTEXT, do_sample=False)
        generator = og.Generator(loaded, parameters)
        generator.append_tokens(np.array(ids, np.int32))
        while True:
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return generate


def openvino_genai(model: str, n_threads: int) -> Generate:
    """Streams through a callback, so the whole answer is generated before the first token is handed out here; the
    times are taken inside the callback."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(model, "CPU", {"INFERENCE_NUM_THREADS": n_threads, "PERFORMANCE_HINT": "LATENCY"})
    options = genai.GenerationConfig()
    options.ignore_eos, options.do_sample = True, False

    def generate(ids: list[int]) -> Iterator[int]:
        array = np.array([ids], np.int64)
        options.max_new_tokens = N_NEW[0] + 1
        inputs = genai.TokenizedInputs(ov.Tensor(array), ov.Tensor(np.ones_like(array)))
        result = pipeline.generate(inputs, options)
        metrics = result.perf_metrics
        OWN_TIMES[:] = [metrics.get_ttft().mean / 1e3, metrics.get_tpot().mean / 1e3 * N_NEW[0]]
        yield from result.tokens[0]

    return generate


N_NEW = [64]
OWN_TIMES: list[float] = []
"""What a runtime has measured itself, where its interface hands out tokens only at the end."""
PEERS: dict[str, Callable[[str, int], Generate]] = {
    "llama.cpp": llama_cpp, "onnxruntime-genai": onnxruntime_genai, "OpenVINO GenAI": openvino_genai,
}  # fmt: skip


def measure(generate: Generate, ids: list[int], n_new: int) -> dict[str, Any]:
    """Runs one request."""
    N_NEW[0] = n_new
    OWN_TIMES.clear()
    start = time.perf_counter()
    tokens = generate(ids)
    chosen = [next(tokens)]
    first = time.perf_counter()
    for _ in range(n_new):
        chosen.append(next(tokens))
    end = time.perf_counter()
    prefill_s, decode_s = OWN_TIMES or (first - start, end - first)
    return {"prefill_s": prefill_s, "decode_s": decode_s, "tokens": chosen, "peak_mb": peak_mb()}


def peak_mb() -> float:
    """Peak resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def serve(make: Callable[[], Generate]) -> None:
    """Answers requests until stdin ends; stdout carries nothing but answers."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = time.perf_counter()
    generate = make()
    print(json.dumps({"open_s": time.perf_counter() - start}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(measure(generate, request["ids"], request["n_new"])), file=answers, flush=True)


if __name__ == "__main__":
    peer, model_path, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with contextlib.suppress(KeyboardInterrupt):
        serve(lambda: PEERS[peer](model_path, threads))
