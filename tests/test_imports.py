"""Which package may import which, and what `import edgevlm` may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("edgevlm", "export", "tvm_schedules")
ALLOWED = {"edgevlm": {"edgevlm"}, "export": {"edgevlm", "export"}, "tvm_schedules": {"edgevlm", "tvm_schedules"}}
HEAVY = ("torch", "transformers", "tvm", "onnx", "onnxruntime", "gguf", "export")


def imported(tree: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Yields (top-level package, is inside a function) of each import that runs; TYPE_CHECKING blocks do not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], inside_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            yield node.module.split(".")[0], inside_function
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        else:
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from imported(node, inside_function or is_function)


def wrong_direction(package: str, path: str, source: str) -> list[str]:
    """Returns the imports of `source` that the rule forbids in this file of `package`."""
    in_cli = path.startswith("edgevlm/cli/")
    return [
        name
        for name, inside_function in imported(ast.parse(source))
        if name in OURS and name not in ALLOWED[package] and not (in_cli and inside_function)
    ]


@pytest.mark.parametrize("package", OURS)
def test_direction(package: str) -> None:
    found = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if wrong := wrong_direction(package, path, file.read_text()):
            found[path] = wrong
    assert not found


def test_direction_finds_a_wrong_import() -> None:
    inside = "def f():\n    import export.pipeline\n"
    assert wrong_direction("edgevlm", "edgevlm/model.py", inside) == ["export"]
    assert wrong_direction("edgevlm", "edgevlm/cli/run.py", inside) == []
    assert wrong_direction("edgevlm", "edgevlm/cli/run.py", "from export import pipeline") == ["export"]
    assert wrong_direction("export", "export/pipeline.py", "import tvm_schedules.plan") == ["tvm_schedules"]


@pytest.mark.parametrize(
    "statement",
    [
        "import edgevlm",
        "import edgevlm.spec, edgevlm.errors",
        "from edgevlm.cli.parser import build_parser; build_parser()",
    ],
)
def test_import_loads_nothing_heavy(statement: str) -> None:
    program = f"import sys; {statement}; print(*sorted(set(m.split('.')[0] for m in sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_export_package_loads_no_torch() -> None:
    names = [p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for p in (ROOT / "export").rglob("*.py")]
    modules = sorted(name.removesuffix(".__init__") for name in names)
    program = f"import sys, {', '.join(modules)}; print(*sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_torch_and_transformers_stand_in_the_reference_only() -> None:
    statement = re.compile(r"^\s*(?:import|from) (?:torch|transformers|safetensors\.torch)\b", re.MULTILINE)
    files = [path for package in ("edgevlm", "export", "tvm_schedules") for path in (ROOT / package).rglob("*.py")]
    named = {path.relative_to(ROOT).as_posix() for path in files if statement.search(path.read_text(encoding="utf-8"))}
    modules = ("bluelm_v", "idefics3", "language", "load", "model", "pictures", "relaxed", "towers", "weights")
    assert named == {f"export/reference/{name}.py" for name in modules}


def imports_of_onnxruntime(source: str) -> list[str]:
    """Returns the statements that import onnxruntime or a part of it, but for type checkers."""
    kinds = r"^[ \t]*(?:import|from) onnxruntime\b.*$|import_module\([\"']onnxruntime\b.*$"
    statement = re.compile(kinds, re.MULTILINE)
    return [line.strip() for line in statement.findall(source)]


def test_one_module_imports_onnxruntime() -> None:
    """Its telemetry starts with the import; edgevlm.telemetry switches it off before. Parts of it come after that."""
    folders = ("edgevlm", "export", "tvm_schedules", "android_demo", "assets", "docs", "tests")
    found = {}
    for file in sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        source = file.read_text(encoding="utf-8")
        seam = source.find("= import_onnxruntime()")
        outside = imports_of_onnxruntime(source if seam < 0 else source[:seam])
        if outside and file != Path(__file__).resolve():
            found[file.relative_to(ROOT).as_posix()] = outside
    assert found == {
        "edgevlm/telemetry.py": ["import onnxruntime"],
        "tests/benchmarks/peers/gemm.py": ["import onnxruntime as ort"],  # in an environment without edgevlm
    }


def test_an_import_of_onnxruntime_is_seen() -> None:
    inside = "def f():\n    import onnxruntime\n    from onnxruntime.quantization import quantize_dynamic\n"
    assert len(imports_of_onnxruntime(inside)) == 2
    assert imports_of_onnxruntime("import onnxruntime_qnn\nfrom edgevlm import telemetry\n") == []
