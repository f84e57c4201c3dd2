"""The demo's conversation in Python, in Java on a JVM, and through the phone's libraries under qemu: stage by stage.

    python -m tests.benchmarks.phone_stages PACKAGE [--cpu max] [--write]

PACKAGE is the demo's, compiled for x86_64 and arm64. Python and Java must say the same tokens, or nothing is printed;
where arm64 differs (its vision encoder rounds elsewhere), the table says where. --write puts the table into
docs/android.md. Each of the first two runs in a process of its own, so that peaks are its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from android_demo.apk.tools import java_home
from edgevlm.backends.native_library import library_path
from edgevlm.errors import EdgeVLMError, ParityError
from edgevlm.package import Package, open_package
from tests.android_demo.arm64_library import play
from tests.android_demo.host_library import compile_classes, compile_jni, run_conversations
from tests.android_demo.phone_conversation import (
    Question,
    Turn,
    ask_python,
    demo_questions,
    java_conversation,
    jni_script,
    read_played,
    write_script,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "android.md"
N_NEW = 12
STAGES = ("load", "encode", "prefill", "decode")
_BLOCK = re.compile(r"(<!-- stages:begin -->\n).*?(<!-- stages:end -->)", re.DOTALL)


@dataclass(frozen=True)
class Column:
    """What one way to the engine took and said."""

    name: str
    milliseconds: dict[str, float]
    ids: list[tuple[int, ...]]
    peak_bytes: int | None


def python_column(package: Package, questions: list[Question]) -> tuple[Column, list[Turn]]:
    """The Python runtime on the native engine."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        turns = pool.submit(ask_python, package.path, questions, N_NEW).result()
    responses = [turn.response for turn in turns]
    sums = {stage: 1e3 * sum(getattr(r.timings, f"{stage}_s") for r in responses) for stage in STAGES}
    ids = [response.token_ids for response in responses]
    return Column("desktop, Python", sums, ids, responses[-1].peak_memory_bytes), turns


def java_column(package: Package, questions: list[Question], scratch: Path) -> Column:
    """The Java library on HotSpot."""
    classes = compile_classes(scratch / "classes")
    jni = compile_jni(java_home(), library_path(), scratch / "libedgevlm_jni.so")
    given = java_conversation(questions, N_NEW, scratch)
    (results,) = run_conversations(classes, jni, package.path, [given], scratch)
    stages = [result["stages"] for result in results]
    sums = {stage: sum(one[f"{stage}_ms"] for one in stages) for stage in STAGES}
    return Column("desktop, JVM", sums, [tuple(r["ids"]) for r in results], stages[-1]["peak_rss_bytes"])


def arm64_column(package: Package, questions: list[Question], turns: list[Turn], cpu: str, scratch: Path) -> Column:
    """The phone's libraries under qemu-aarch64."""
    script = write_script(scratch / "script", jni_script(package, "arm64", questions, turns, N_NEW, scratch))
    result = play(cpu, script)
    if result.returncode:
        raise ParityError(f"the arm64 libraries refuse the conversation: {result.stderr.strip()}")
    found = read_played(result.stdout)
    return Column(f"qemu arm64 ({cpu}, {found.variant})", found.milliseconds, list(found.ids), None)


def agreement(expected: list[tuple[int, ...]], found: list[tuple[int, ...]]) -> str:
    """Says whether the tokens are the same, or where they begin to differ."""
    for turn, (these, those) in enumerate(zip(expected, found, strict=True), start=1):
        if these != those:
            n_equal = next((i for i, (a, b) in enumerate(zip(these, those, strict=False)) if a != b), len(those))
            return f"answer {turn} differs from token {n_equal + 1} on"
    return "the same"


def table(columns: list[Column], turns: list[Turn]) -> str:
    """Returns the table. Raises ParityError when Java does not say what Python says."""
    python, java, *_ = columns
    if java.ids != python.ids:
        raise ParityError(f"{java.name} says {java.ids}, {python.name} {python.ids}")
    responses = [turn.response for turn in turns]
    # Tiles are counted for the whole prompt; a picture is encoded once.
    amounts = {
        "encode": f" ({responses[-1].n_tiles} tiles)",
        "prefill": f" ({sum(r.n_prompt_tokens - r.n_reused_tokens for r in responses)} tokens)",
        "decode": f" ({sum(max(len(r.token_ids) - 1, 0) for r in responses)} tokens)",
    }
    rows = [["stage, ms", *(column.name for column in columns)]]
    rows += [[stage + amounts.get(stage, ""), *(f"{c.milliseconds[stage]:,.0f}" for c in columns)] for stage in STAGES]
    n_tokens = sum(map(len, python.ids))
    rows.append(["tokens", f"{n_tokens}", *(agreement(python.ids, column.ids) for column in columns[1:])])
    peaks = [f"{column.peak_bytes / 1e6:,.0f} MB" if column.peak_bytes else "-" for column in columns]
    rows.append(["peak memory", *peaks])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("--cpu", default="max")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    questions = demo_questions()
    try:
        package = open_package(arguments.package)
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            python, turns = python_column(package, questions)
            columns = [python, java_column(package, questions, scratch)]
            columns.append(arm64_column(package, questions, turns, arguments.cpu, scratch))
            found = table(columns, turns)
    except EdgeVLMError as error:
        raise SystemExit(f"error: {error}") from None
    print(found)
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(_BLOCK.sub(rf"\g<1>{found}\n\g<2>", text), encoding="utf-8")


if __name__ == "__main__":
    main()
