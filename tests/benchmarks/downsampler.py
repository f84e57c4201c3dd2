"""What the 2x2 downsampler costs and saves: a model trained with it beside one trained on without it.

    python -m tests.benchmarks.downsampler MERGED UNMERGED [--limit 220] [--write]

MERGED is the demo's package; UNMERGED is exported from what `assets/demo/unmerged.py` and the training it names leave.
Both are asked under relaxed matching, so the tiles are the same and only their tokens differ. The cells lie where
tiling_ablation keeps its own, and are taken from there; `--write` puts the tables into docs/method.md.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm.errors import UsageError
from edgevlm.package import open_package
from tests.benchmarks import method_page, tiling_ablation

CELLS = {name: {"relaxed": tiling_ablation.RULES["relaxed"]} for name in tiling_ablation.SETS}


def tile_tokens(package_dir: Path) -> int:
    """Returns how many tokens a tile becomes. Raises UsageError for a package that takes no pictures."""
    prompt = open_package(package_dir).manifest.prompt
    if prompt is None:
        raise UsageError(f"{package_dir} takes no pictures")
    return prompt.tokens_per_tile


def main() -> None:
    """Measures both packages, in turn."""
    options = tiling_ablation.parse(__doc__, "merged", "unmerged", limit=220)
    results = {
        tile_tokens(package): tiling_ablation.measure(
            package, options.out, options.limit or None, options.load, CELLS
        )
        for package in (options.merged, options.unmerged)
    }  # fmt: skip
    text = method_page.downsampler_tables(results)
    if options.write:
        method_page.write_section("downsampler", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
