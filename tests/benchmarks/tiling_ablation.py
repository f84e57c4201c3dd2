"""The paper's tiling claim on our model: rules, thumbnail, alpha and tile budget, on the questions of two sets.

    python -m tests.benchmarks.tiling_ablation PACKAGE [--limit 400] [--backend native] [--write]

Every cell is one rule on one set; its results go into build/ablation as a file of `edgevlm eval --out`, and a second
run continues where the first stopped. The cells of a set ask the same questions. A picture that two rules plan alike
has the same pixels and so the same answers: it is run once, in the first cell that meets it. `--write` puts the tables
into docs/method.md and the plots beside it; without it the tables are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from edgevlm.backends.opening import choose_backend
from edgevlm.evaluation.question_set import QuestionSet, choose, open_set
from edgevlm.evaluation.results import Answer, Evaluation, PictureCost, read_results, write_results
from edgevlm.evaluation.run import DEFAULT_MAX_NEW_TOKENS, ask_all, assemble, keep_tower
from edgevlm.evaluation.tilings import measured_tiling
from edgevlm.model import load
from edgevlm.package import Package, open_package
from edgevlm.spec import MANIFEST_NAME, ProcessorSpec
from edgevlm.tiling import TilePlan, plan_tiles
from tests.benchmarks import method_page

SETS = ("easy-vqa", "scenes")
RULES: dict[str, dict[str, Any]] = {
    "relaxed": {"name": "relaxed"},
    "llava-next": {"name": "llava-next"},
    "internvl": {"name": "internvl"},
    "fixed:1x1": {"name": "fixed:1x1"},
    "fixed:2x2": {"name": "fixed:2x2"},
}
NO_THUMBNAIL = {"relaxed, no thumbnail": {"name": "relaxed", "thumbnail": False}}
ALPHAS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
BUDGETS = (1, 2, 4, 6, 9, 12, 16)
ON_SCENES: dict[str, dict[str, Any]] = {
    **{f"alpha {alpha:g}": {"name": "relaxed", "alpha": alpha} for alpha in ALPHAS},
    **{f"at most {budget}": {"name": "relaxed", "max_tiles": budget} for budget in BUDGETS},
}
"""easy-VQA's pictures have 64 x 64 pixels: one tile at any alpha above 0 and any budget."""
Cells = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The tilings of each set, by a name of their own."""
CELLS: Cells = {
    "easy-vqa": {**RULES},
    "scenes": {**RULES, **NO_THUMBNAIL, **ON_SCENES},
}
Known = dict[tuple[int, TilePlan], tuple[Answer, PictureCost]]
"""(question, plan without the rule's name) → what came out."""


@dataclass(frozen=True)
class Bench:
    """One package on one set."""

    package: Package
    questions: QuestionSet
    chosen: list[list[int]]
    limit: int | None
    load_arguments: dict[str, Any]
    directory: Path

    def run(self, name: str, tiling: Mapping[str, Any], known: Known) -> Evaluation:
        """Returns the cell's results, from its file when there is one; adds them to `known`."""
        own = self.package.manifest.processor
        assert own is not None, "a set is asked of a package that takes pictures"
        rule = measured_tiling(own, **tiling)
        path = self.directory / f"{name.replace(':', '-').replace(' ', '-').replace(',', '')}.json"
        found = read_results(path) if path.exists() else self._ask(rule, known)
        if not path.exists():
            write_results(found, path)
        costs = {cost.image: cost for cost in found.pictures}
        for answer in found.answers:
            image = self.questions.questions[answer.question].image
            known[answer.question, self._plan(image, rule)] = (answer, costs[image])
        return found

    def _ask(self, rule: ProcessorSpec, known: Known) -> Evaluation:
        start = time.perf_counter()
        answers: list[Answer] = []
        costs: list[PictureCost] = []
        new: list[list[int]] = []
        for group in self.chosen:
            plan = self._plan(self.questions.questions[group[0]].image, rule)
            met = [known[index, plan] for index in group if (index, plan) in known]
            if len(met) == len(group):
                answers += [answer for answer, _ in met]
                costs.append(met[0][1])
            else:
                new.append(group)
        if new:
            with load(self.package.path, **self.load_arguments, tiling=rule) as model:
                keep_tower(model)
                asked = ask_all(model, self.questions, new, DEFAULT_MAX_NEW_TOKENS)
            answers += asked[0]
            costs += asked[1]
        print(f"  {len(new)} of {len(self.chosen)} pictures run", file=sys.stderr, flush=True)
        return assemble(
            self.package, self.questions, rule, sorted(answers, key=lambda answer: answer.question), costs,
            backend=self.load_arguments["backend"], kv_bits=None, limit=self.limit, seed=0,
            max_new_tokens=DEFAULT_MAX_NEW_TOKENS, elapsed_s=time.perf_counter() - start,
        )  # fmt: skip

    def _plan(self, image: str, rule: ProcessorSpec) -> TilePlan:
        with Image.open(self.questions.directory / image) as picture:
            width_px, height_px = picture.size
        # The rule's name is no part of what is painted; it is here only to be the same for all.
        return replace(plan_tiles(height_px, width_px, rule), scheme="")


def measure(
    package_dir: Path, out: Path, limit: int | None, load_arguments: dict[str, Any], sets: Cells = CELLS
) -> dict[str, dict[str, Evaluation]]:
    """Returns every cell's results, by set and cell."""
    package = open_package(package_dir)
    manifest_hash = hashlib.sha256((package.path / MANIFEST_NAME).read_bytes()).hexdigest()
    load_arguments = {**load_arguments, "backend": choose_backend(package, load_arguments["backend"])}
    results: dict[str, dict[str, Evaluation]] = {}
    for set_name, cells in sets.items():
        questions = open_set(set_name)
        size = "all" if limit is None else str(limit)
        key = f"{questions.card.sha256[:8]}-{size}-{load_arguments['backend']}"
        directory = out / f"{package.manifest.name}-{manifest_hash[:8]}" / f"{set_name}-{key}"
        directory.mkdir(parents=True, exist_ok=True)
        bench = Bench(package, questions, choose(questions.questions, limit, 0), limit, load_arguments, directory)
        known: Known = {}
        results[set_name] = {}
        for name, tiling in cells.items():
            found = results[set_name][name] = bench.run(name, tiling, known)
            print(
                f"{set_name}, {name}: {found.score.accuracy:.3f}, {found.cost.n_tiles:.2f} tiles, "
                f"{found.elapsed_s:.0f} s", file=sys.stderr, flush=True,
            )  # fmt: skip
    return results


def parse(description: str | None, *packages: str, limit: int) -> argparse.Namespace:
    """Returns the command line of a measurement of `packages`; its `load` are `measure`'s load_arguments."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for package in packages:
        parser.add_argument(package, type=Path)
    parser.add_argument("--limit", type=int, default=limit, help=f"questions of each set (default: {limit}; 0: all)")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("build/ablation"), help="where the cells' results lie")
    parser.add_argument("--write", action="store_true", help="write docs/method.md and its plots")
    options = parser.parse_args()
    options.load = {"backend": options.backend, "threads": options.threads}
    return options


def main() -> None:
    """Measures one package."""
    options = parse(__doc__, "package", limit=400)
    results = measure(options.package, options.out, options.limit or None, options.load)
    questions = {name: open_set(name).questions for name in results}
    text = method_page.ablation_tables(results, questions, ALPHAS, BUDGETS)
    if options.write:
        method_page.write_section("ablation", text)
        method_page.plot_ablation(results, ALPHAS, BUDGETS)
    else:
        print(text)


if __name__ == "__main__":
    main()
