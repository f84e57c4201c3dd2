"""`edgevlm run`: one question, one answer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edgevlm.cli.options import add_load_options, add_sampling_options, load_arguments, sampling_arguments
from edgevlm.cli.output import answer, counted, json_object, note, table
from edgevlm.cli.parser import Subparsers
from edgevlm.cli.paths import input_file, output_file
from edgevlm.cli.streams import read_all, require_text
from edgevlm.errors import UsageError

if TYPE_CHECKING:
    from edgevlm.generate import Response

JSON_FIELDS = {
    "text": "the answer",
    "token_ids": "the answer's tokens",
    "finish_reason": "'stop', 'length' or 'cancelled'",
    "n_prompt_tokens": "tokens of the prompt, pictures included",
    "n_image_tokens": "of these, the pictures'",
    "n_tiles": "picture tiles encoded",
    "n_reused_tokens": "prompt tokens that were in the cache already; whole chunks of 128 on onnx",
    "tile_budget": "grid tiles per picture after --fit lowered them, or null",
    "timings": "seconds: {load_s, encode_s, prefill_s, decode_s, first_token_s, total_s}",
    "prefill_tok_per_s": "prompt tokens per second",
    "decode_tok_per_s": "answer tokens per second",
    "peak_memory_bytes": "largest resident memory of the process",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "run",
        help="answer one question",
        description="Answer one question, about pictures or not. The answer streams to stdout.",
    )
    parser.add_argument("package", type=input_file, metavar="PACKAGE", help="package directory")
    parser.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from standard input")
    parser.add_argument(
        "--image", action="append", default=[], type=input_file, metavar="FILE", help="a picture; may be repeated"
    )
    add_sampling_options(parser)
    add_load_options(parser)
    parser.add_argument("--timings", action="store_true", help="print the time per stage on stderr")
    parser.add_argument("--trace", type=output_file, metavar="FILE", help="write a Chrome trace")
    return parser


def run(args: argparse.Namespace) -> int:
    """Answers; returns the exit code."""
    prompt = read_all() if args.prompt == "-" else require_text(args.prompt, "the prompt")
    if not prompt.strip():
        raise UsageError("the prompt is empty")

    from edgevlm.model import load
    from edgevlm.strict_json import to_json
    from edgevlm.whole_file import check_writable

    if args.trace is not None:
        check_writable(args.trace, "the trace")
    response: Response | None = None
    with load(args.package, **load_arguments(args)) as model:
        for chunk in model.stream(prompt, images=args.image, **sampling_arguments(args)):
            response = chunk.response or response
            if not args.json:
                answer(chunk.text, end="")
    if args.trace is not None:
        model.write_trace(args.trace)  # behind the end of the model, so that the release of the tower is in it
    if args.json:
        json_object(to_json(response))
    else:
        answer("")
    if args.timings and response is not None:
        note(timings_table(response))
    return 0


def timings_table(response: Response) -> str:
    """Returns seconds and rates per stage as a table."""
    t = response.timings
    n_generated = len(response.token_ids)
    n_prefilled = response.n_prompt_tokens - response.n_reused_tokens
    prefilled = f"{counted(n_prefilled, 'token')}, {response.prefill_tok_per_s:.0f} per second"
    generated = f"{counted(n_generated, 'token')}, {response.decode_tok_per_s:.0f} per second"
    encoded = [("encode pictures", f"{t.encode_s:.2f}", counted(response.n_tiles, "tile"))]
    rows = [
        ("stage", "seconds", "work"),
        ("load", f"{t.load_s:.2f}", ""),
        *(encoded if response.n_tiles else []),
        ("prefill", f"{t.prefill_s:.2f}", prefilled),
        ("decode", f"{t.decode_s:.2f}", generated),
        ("first token after", f"{t.first_token_s:.2f}", ""),
        ("answer", f"{t.total_s:.2f}", f"peak memory {response.peak_memory_bytes / 1e6:.0f} MB"),
    ]
    return table(rows)
