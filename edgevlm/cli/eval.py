"""`edgevlm eval`: answers about a set of pictures, counted."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edgevlm.cli.options import add_load_options, load_arguments
from edgevlm.cli.output import answer, json_object, note, table
from edgevlm.cli.parser import Subparsers, number
from edgevlm.cli.paths import input_file, output_file, source_argument
from edgevlm.cli.progress import ProgressBar
from edgevlm.errors import UsageError

if TYPE_CHECKING:
    from edgevlm.evaluation.results import Evaluation, MeanCost
    from edgevlm.evaluation.scores import Score

JSON_FIELDS = {
    "format": "version of this object",
    "package": "name of the package",
    "backend": "backend that ran",
    "kv_bits": "bits of keys and values per layer as asked for; null: the package's own",
    "set": "{name, source, licence, n_pictures, n_questions, sha256} of the questions and pictures",
    "tiling": "{scheme, max_rows, max_cols, max_tiles, thumbnail, relaxed_alpha} that planned the pictures",
    "limit": "the --limit, or null",
    "seed": "the seed of the choice that --limit makes",
    "max_new_tokens": "longest answer",
    "score": "{n_right, n_asked, accuracy, low, high, similarity}: exact matches, their 95 % interval, edit similarity",
    "categories": "the same by category",
    "groups": "the same by group and its value",
    "group_costs": "by group and value: {n_pictures, n_tiles, n_image_tokens, encode_s, prefill_s}, means of a picture",
    "cost": "the same of all pictures",
    "elapsed_s": "seconds of the whole",
    "answers": "list of {question (line of questions.jsonl, from 0), text, right, similarity}",
    "pictures": "list of {image, grid_rows, grid_cols, n_tiles, n_image_tokens, encode_s, prefill_s}",
    "flips": "null, or {against, n_compared, n_same_text, n_gained, n_lost, difference, p_value}",
}


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "eval",
        help="count right answers about a set of pictures",
        description="Ask a package the questions of a set and count exact matches, by category, with 95 % intervals. "
        "Answers are greedy and free: nothing restricts them to the set's words. Questions of one picture share its "
        "encoding and its rows in the cache, and get the answers that separate calls would get.",
    )
    parser.add_argument("package", type=input_file, metavar="PACKAGE", help="package directory")
    parser.add_argument(
        "--set", required=True, type=source_argument, metavar="NAME",
        help="easy-vqa, scenes or captions (made by assets/demo/sets.py), or the directory of a set of your own",
    )  # fmt: skip
    parser.add_argument("--limit", type=number(int, 1), metavar="N", help="ask only N questions, chosen at random")
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="N", help="makes the choice (default: 0)")
    parser.add_argument(
        "--max-new-tokens", type=number(int, 1), default=32, metavar="N", help="longest answer (default: 32)"
    )
    parser.add_argument("--out", type=output_file, metavar="FILE", help="write the results with every answer, as JSON")
    compared = parser.add_argument_group("comparison")
    compared.add_argument(
        "--against",
        type=input_file,
        metavar="PATH",
        help="count the flips against results of --out, or another package",
    )
    compared.add_argument("--against-backend", metavar="NAME", help="run the package compared with on this backend")
    tiling = parser.add_argument_group("tiling, in place of the package's own")
    tiling.add_argument(
        "--tiling", metavar="NAME", help="relaxed, llava-next, internvl, square or fixed:RxC (R rows, C columns)"
    )
    tiling.add_argument("--alpha", type=number(float, 0, 10), metavar="X", help="of relaxed matching")
    tiling.add_argument("--no-thumbnail", action="store_true", help="leave the thumbnail out")
    tiling.add_argument("--max-tiles", type=number(int, 1), metavar="N", help="at most N tiles in the grid")
    add_load_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Asks, counts and compares; returns the exit code."""
    from dataclasses import replace

    from edgevlm.evaluation.question_set import open_set
    from edgevlm.evaluation.results import check_results_path, compare, read_results, write_results
    from edgevlm.evaluation.run import evaluate
    from edgevlm.strict_json import to_json

    if args.out is not None:
        check_results_path(args.out)
    questions = open_set(args.set)
    against_package, there = _against(args), None
    if args.against is not None and against_package is None:
        there = read_results(args.against)
    asked: dict[str, Any] = {
        "limit": args.limit, "seed": args.seed, "max_new_tokens": args.max_new_tokens, "tiling": _tiling(args),
    }  # fmt: skip
    with ProgressBar() as progress:
        here = evaluate(args.package, questions, **asked, load_arguments=load_arguments(args), progress=progress)
        if against_package is not None:
            other = load_arguments(args)
            if args.against_backend is not None:
                other |= {"backend": args.against_backend}
                other |= {} if args.against_backend == "native" else {"kv_bits": None}
            there = evaluate(
                against_package, questions, **asked, load_arguments=other,
                progress=lambda stage, done, total: progress("compared with", done, total),
            )  # fmt: skip
    if there is not None:
        here = replace(here, flips=compare(here, there))
    if args.out is not None:
        write_results(here, args.out)
    if args.json:
        json_object(to_json(here))
    else:
        answer(report(here))
    if args.out is not None:
        note(f"results: {args.out}")
    return 0


def _against(args: argparse.Namespace) -> str | None:
    """The package to run and compare with, or None for results in a file or no comparison."""
    if args.against is None:
        return None if args.against_backend is None else str(args.package)
    if args.against.is_dir():
        return str(args.against)
    if args.against_backend is not None:
        raise UsageError(f"--against-backend runs a package, but --against {args.against} is not a directory")
    return None


def _tiling(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.tiling is None and args.alpha is None and args.max_tiles is None and not args.no_thumbnail:
        return None
    return {
        "name": args.tiling, "alpha": args.alpha, "thumbnail": not args.no_thumbnail, "max_tiles": args.max_tiles,
    }  # fmt: skip


def report(found: Evaluation) -> str:
    """Returns the scores, costs and flips as tables."""
    heading = ("", "right", "asked", "accuracy", "95 % interval", "similarity")
    rows = [heading, _row("all", found.score), *(_row(name, score) for name, score in found.categories.items())]
    parts = [f"{found.set.name}: {found.label}, tiling {found.tiling.scheme}", table(rows)]
    for group, values in found.groups.items():
        costs = found.group_costs[group]
        rows = [(group, *heading[1:], "tiles", "tokens")]
        rows += [(*_row(value, score), *_cost(costs[value])) for value, score in values.items()]
        parts += ["", table(rows)]
    cost = found.cost
    parts += [
        "",
        f"{cost.n_pictures} pictures: {cost.n_tiles:.2f} tiles, {cost.n_image_tokens:.0f} picture tokens, "
        f"encode {cost.encode_s:.3f} s, prefill {cost.prefill_s:.3f} s on average; {found.elapsed_s:.0f} s in all",
    ]
    if (flips := found.flips) is not None:
        parts.append(
            f"against {flips.against}: {flips.n_same_text} of {flips.n_compared} answers equal "
            f"({flips.n_same_text / flips.n_compared:.1%}), {flips.n_gained} gained, {flips.n_lost} lost, accuracy "
            f"{flips.difference:+.1%} (p = {flips.p_value:.2f})"
        )
    return "\n".join(parts)


def _row(name: str, score: Score) -> tuple[str, ...]:
    interval = f"{score.low:.3f} to {score.high:.3f}"
    return (
        name, f"{score.n_right}", f"{score.n_asked}", f"{score.accuracy:.3f}", interval, f"{score.similarity:.3f}",
    )  # fmt: skip


def _cost(cost: MeanCost) -> tuple[str, str]:
    return f"{cost.n_tiles:.2f}", f"{cost.n_image_tokens:.0f}"
