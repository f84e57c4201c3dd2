"""The generated pages and README's tree are what the source says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("edgevlm", "export", "tvm_schedules")


def test_package_format_is_current() -> None:
    spec = importlib.util.spec_from_file_location("make_package_format", ROOT / "docs" / "make_package_format.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "package-format.md").read_text(encoding="utf-8") == module.render(), "run: make docs"


def test_npu_tables_are_current() -> None:
    from docs import make_npu_tables

    page = make_npu_tables.PAGE.read_text(encoding="utf-8")
    assert page == make_npu_tables.page_with(make_npu_tables.render()), "run: make docs"


def test_quoted_code_of_adding_a_model_is_real() -> None:
    quoted = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "adding-a-model.md").read_text(), re.DOTALL)
    source = "".join(file.read_text() for file in (ROOT / "export" / "archs").glob("*.py"))
    assert quoted
    assert not [block for block in quoted if block not in source]


def tree_paths() -> list[str]:
    """Returns the paths named in README's annotated tree; indentation of two spaces is one level."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- tree:begin -->\n```\n(.*?)```\n<!-- tree:end -->", readme, re.DOTALL)
    assert block, "README.md has no tree between its markers"
    paths, folders = [], []
    for line in block.group(1).splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"  +", line.strip())[0].split(" ")
        folders = folders[:indent]
        paths += ["".join(folders) + name for name in names]
        if names[0].endswith("/"):
            folders.append(names[0])
    return paths


def test_tree_names_only_what_exists() -> None:
    missing = [path for path in tree_paths() if not (ROOT / path).exists()]
    assert not missing, f"README.md's tree names what is not there: {missing}"


def test_tree_names_every_module_and_folder() -> None:
    named = set(tree_paths())
    modules = [
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__init__.py"
    ]
    missing = sorted(set(modules) - named)
    assert not missing, f"README.md's tree has no place for {missing}"



def test_links_of_the_pages_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    targets = [
        (page.relative_to(ROOT).as_posix(), target)
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    ]
    assert targets
    assert not [(page, target) for page, target in targets if not (ROOT / page).parent.joinpath(target).exists()]
