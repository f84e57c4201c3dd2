"""Asks a loaded package every question of a set, as a user would: greedy, free text, nothing restricts the answer.

Questions of one picture follow each other: the tower encodes it once, and the cache keeps the rows of the system prompt
and the picture in whole chunks, so that every answer is the one that a call of its own would have given.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgevlm.backends.opening import KvBits, choose_backend, kv_bits_per_layer
from edgevlm.errors import UsageError
from edgevlm.evaluation.question_set import Question, QuestionSet, choose
from edgevlm.evaluation.results import FORMAT, Answer, Evaluation, MeanCost, PictureCost, Tiling
from edgevlm.evaluation.scores import Score, is_right, score, similarity
from edgevlm.evaluation.tilings import measured_tiling
from edgevlm.generate import GenerationOptions, Response
from edgevlm.model import Model, as_messages, load
from edgevlm.package import Package, open_package
from edgevlm.pictures import Picture
from edgevlm.spec import ProcessorSpec

Progress = Callable[[str, int, int], None]
DEFAULT_MAX_NEW_TOKENS = 32
"""An answer to these sets is a word or a short sentence; what goes on and on is wrong already."""


def evaluate(
    package_dir: str,
    questions: QuestionSet,
    *,
    limit: int | None = None,
    seed: int = 0,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    tiling: dict[str, Any] | None = None,
    load_arguments: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Returns scores, costs and answers of the package in `package_dir`.

    `tiling` holds arguments of `measured_tiling`, `load_arguments` those of `edgevlm.load`. Raises UsageError for a
    package that takes no pictures.
    """
    arguments = dict(load_arguments or {})
    package = open_package(package_dir)
    own = package.manifest.processor
    if own is None:
        raise UsageError(f"{package.path}: this package is a language model and takes no pictures; it cannot be asked")
    rule = own if tiling is None else measured_tiling(own, **tiling)
    backend = choose_backend(package, arguments.get("backend", "auto"))
    kv_bits: KvBits | None = arguments.get("kv_bits")
    per_layer = kv_bits_per_layer(package, backend, kv_bits)
    start = time.perf_counter()
    with load(package_dir, **arguments, tiling=None if tiling is None else rule) as model:
        keep_tower(model)
        chosen = choose(questions.questions, limit, seed)
        answers, costs = ask_all(model, questions, chosen, max_new_tokens, progress)
        elapsed_s = time.perf_counter() - start
    return assemble(
        package, questions, rule, answers, costs, backend=backend, kv_bits=per_layer, limit=limit, seed=seed,
        max_new_tokens=max_new_tokens, elapsed_s=elapsed_s,
    )  # fmt: skip


def keep_tower(model: Model) -> None:
    """Lets `model` encode one picture after the other without loading the tower for each."""
    if model.encoder is not None:
        model.encoder.keep_tower = True


def ask_all(
    model: Model,
    questions: QuestionSet,
    chosen: Sequence[Sequence[int]],
    max_new_tokens: int,
    progress: Progress | None = None,
) -> tuple[list[Answer], list[PictureCost]]:
    """Returns the answers to the questions with these indices, one list per picture, and each picture's cost."""
    options = model.options(max_new_tokens=max_new_tokens, temperature=0.0)
    n_asked = sum(map(len, chosen))
    answers: list[Answer] = []
    costs: list[PictureCost] = []
    for indices in chosen:
        first = questions.questions[indices[0]]
        picture = model.picture(questions.picture(first))
        for index in indices:
            question = questions.questions[index]
            response, planned = ask(model, question.question, picture, options)
            text = response.text.strip()
            answers.append(Answer(index, text, is_right(text, question.answers), similarity(text, question.answers)))
            if index == indices[0]:
                plan, timings = planned.plan, response.timings
                costs.append(
                    PictureCost(
                        question.image, plan.grid_rows, plan.grid_cols, plan.n_tiles, response.n_image_tokens,
                        timings.encode_s, timings.prefill_s,
                    )
                )  # fmt: skip
            if progress is not None:
                progress("eval", len(answers), n_asked)
    return answers, costs


def ask(model: Model, text: str, picture: Picture, options: GenerationOptions) -> tuple[Response, Picture]:
    """Returns the answer to one question, and the picture as it was planned for it."""
    prompt, (planned,) = model.fitted(as_messages(text, 1), [picture], options)
    *_, last = model.answer(prompt, [planned], options)
    assert last.response is not None, "a stream ends with a response"
    return last.response, planned


def assemble(
    package: Package,
    questions: QuestionSet,
    rule: ProcessorSpec,
    answers: Sequence[Answer],
    costs: Sequence[PictureCost],
    *,
    backend: str,
    kv_bits: Sequence[tuple[int, int]] | None,
    limit: int | None,
    seed: int,
    max_new_tokens: int,
    elapsed_s: float,
) -> Evaluation:
    """Returns the evaluation that these answers make: at least one, of pictures planned by `rule`."""
    categories, groups, group_costs = _divided(answers, costs, questions.questions)
    return Evaluation(
        format=FORMAT,
        package=package.manifest.name,
        backend=backend,
        kv_bits=None if kv_bits is None else tuple(kv_bits),
        set=questions.card,
        tiling=_tiling(rule),
        limit=limit,
        seed=seed,
        max_new_tokens=max_new_tokens,
        score=_score(answers),
        categories=categories,
        groups=groups,
        group_costs=group_costs,
        cost=_mean_cost(costs),
        elapsed_s=elapsed_s,
        answers=tuple(answers),
        pictures=tuple(costs),
    )


def _divided(
    answers: Sequence[Answer], costs: Sequence[PictureCost], questions: Sequence[Question]
) -> tuple[dict[str, Score], dict[str, dict[str, Score]], dict[str, dict[str, MeanCost]]]:
    """Scores by category, scores by group, costs by group."""
    cost_of = {cost.image: cost for cost in costs}
    categories: dict[str, list[Answer]] = {}
    groups: dict[str, dict[str, list[Answer]]] = {}
    for answer in answers:
        question = questions[answer.question]
        categories.setdefault(question.category, []).append(answer)
        for group, value in question.groups.items():
            groups.setdefault(group, {}).setdefault(value, []).append(answer)

    def pictures(rows: Iterable[Answer]) -> list[PictureCost]:
        return [cost_of[image] for image in dict.fromkeys(questions[answer.question].image for answer in rows)]

    ordered = {group: {value: groups[group][value] for value in _in_order(groups[group])} for group in sorted(groups)}
    return (
        {name: _score(categories[name]) for name in _in_order(categories)},
        {group: {value: _score(rows) for value, rows in values.items()} for group, values in ordered.items()},
        {
            group: {value: _mean_cost(pictures(rows)) for value, rows in values.items()}
            for group, values in ordered.items()
        },
    )


def _in_order(names: Iterable[str]) -> list[str]:
    """Sorted by the numbers in them first: "under 10 px", "10 to 13 px", "above 13 px"."""
    return sorted(names, key=lambda name: ([float(number) for number in re.findall(r"\d+(?:\.\d+)?", name)], name))


def _score(answers: Iterable[Answer]) -> Score:
    return score((answer.right, answer.similarity) for answer in answers)


def _mean_cost(costs: Sequence[PictureCost]) -> MeanCost:
    return MeanCost(
        len(costs),
        *(
            statistics.fmean(getattr(cost, name) for cost in costs)
            for name in ("n_tiles", "n_image_tokens", "encode_s", "prefill_s")
        ),
    )


def _tiling(spec: ProcessorSpec) -> Tiling:
    alpha = spec.relaxed_alpha if spec.scheme == "relaxed" else None
    return Tiling(spec.scheme, spec.max_rows, spec.max_cols, spec.max_tiles, spec.thumbnail, alpha)
