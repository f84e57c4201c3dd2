"""`edgevlm run`: one question, one answer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgevlm.cli.options import add_load_options, add_sampling_options, load_arguments, sampling_arguments
from edgevlm.cli.output import answer, json_object, note
from edgevlm.cli.parser import Subparsers
from edgevlm.errors import UsageError

JSON_FIELDS = {
    "text": "the answer",
    "token_ids": "the answer's tokens",
    "finish_reason": "'stop', 'length' or 'cancelled'",
    "n_prompt_tokens": "tokens of the prompt, pictures included",
    "n_image_tokens": "of these, the pictures'",
    "n_tiles": "picture tiles encoded",
    "timings": "seconds per stage",
    "peak_memory_bytes": "largest resident memory of the process",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "run",
        help="answer one question",
        description="Answer one question, about pictures or not. The answer streams to stdout.",
    )
    parser.add_argument("package", metavar="PACKAGE", help="package directory")
    parser.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from standard input")
    parser.add_argument(
        "--image", action="append", default=[], type=Path, metavar="FILE", help="a picture; may be repeated"
    )
    add_sampling_options(parser)
    add_load_options(parser)
    parser.add_argument("--timings", action="store_true", help="print the time per stage on stderr")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace")
    return parser


def run(args: argparse.Namespace) -> int:
    """Answers; returns the exit code."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise UsageError("the prompt is empty")

    from edgevlm.model import load
    from edgevlm.strict_json import to_json

    with load(args.package, **load_arguments(args)) as model:
        chunks = model.stream(prompt, images=args.image, **sampling_arguments(args))
        response = None
        for chunk in chunks:
            response = chunk.response or response
            if not args.json:
                answer(chunk.text, end="")
        if args.trace is not None:
            model.write_trace(args.trace)
    if args.json:
        json_object(to_json(response))
    else:
        answer("")
    if args.timings:
        note(timings_table(response))
    return 0
