"""Options that several subcommands share: how a package is loaded, how tokens are chosen, what checks it."""

from __future__ import annotations

import argparse
from typing import Any

from edgevlm.cli.parser import number, size_bytes
from edgevlm.cli.streams import require_text


def add_load_options(parser: argparse.ArgumentParser) -> None:
    """Adds what edgevlm.load takes."""
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto, native, onnx, qnn (an NPU, or its emulator) or qnn-sim (its simulation) (default: auto)",
    )
    group.add_argument("--threads", type=number(int, 1), metavar="N", help="CPU threads (default: all cores)")
    group.add_argument(
        "--context", type=number(int, 1), metavar="N", help="context length in tokens (default: the package's)"
    )
    group.add_argument(
        "--kv-bits",
        type=cache_bits,
        metavar="K8V8",
        help="bits of cached keys and values, native backend: k8v8, k8v4, k4v8, k4v4 or float; or one per layer, "
        "with commas (default: the package's)",
    )
    group.add_argument(
        "--memory-budget",
        type=size_bytes,
        metavar="SIZE",
        help="refuse to load, or to take a picture, above this, for example 1500M or 2G",
    )
    group.add_argument("--fit", action="store_true", help="use fewer picture tiles when the context would overflow")


def load_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keyword arguments of edgevlm.load."""
    return {
        "backend": args.backend,
        "threads": args.threads,
        "context": args.context,
        "kv_bits": args.kv_bits,
        "memory_budget_bytes": args.memory_budget,
        "fit": args.fit,
    }


_CACHE_BITS = {"k8v8": (8, 8), "k8v4": (8, 4), "k4v8": (4, 8), "k4v4": (4, 4), "float": (16, 16)}


def cache_bits(text: str) -> tuple[int, int] | list[tuple[int, int]]:
    """(bits of keys, bits of values) of all layers, or a list with one pair per layer."""
    names = text.lower().split(",")
    unknown = [name for name in names if name not in _CACHE_BITS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(_CACHE_BITS)}, found {unknown[0]!r}")
    pairs = [_CACHE_BITS[name] for name in names]
    return pairs[0] if len(pairs) == 1 else pairs


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Adds what Model.generate takes besides the prompt; the defaults are the package's."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-new-tokens", type=number(int, 1), default=256, metavar="N", help="longest answer (default: 256)"
    )
    group.add_argument("--temperature", type=number(float, 0), metavar="X", help="0 always takes the likeliest token")
    group.add_argument("--top-k", type=number(int, 0), metavar="N", help="keep the N likeliest tokens; 0 keeps all")
    group.add_argument("--top-p", type=number(float, 0, 1), metavar="P", help="keep the likeliest tokens up to mass P")
    group.add_argument("--min-p", type=number(float, 0, 1), metavar="P", help="drop tokens below P x the likeliest's")
    group.add_argument(
        "--repetition-penalty", type=number(float, 0.01), metavar="X", help="above 1 makes used tokens less likely"
    )
    group.add_argument("--seed", type=number(int, 0), metavar="N", help="makes sampling repeatable")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; may be repeated"
    )


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the keyword arguments of Model.generate."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    stop = tuple(require_text(text, "the stop text") for text in args.stop)
    return {**{name: getattr(args, name) for name in names}, "stop": stop}


def add_reference_options(parser: argparse.ArgumentParser) -> None:
    """Adds --reference and --no-reference; `reference` is None when neither is given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--reference",
        action="store_true",
        default=None,
        help="compare with transformers, and fail when it is not installed (default: compare if it is)",
    )
    group.add_argument(
        "--no-reference", dest="reference", action="store_false", default=None, help="leave transformers out"
    )
