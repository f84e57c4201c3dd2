"""The process that asks transformers: answers and errors come back whole. What it computes: tests/reference."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgevlm.errors import BackendError, PackageError, UnsupportedModelError
from export import reference_process
from export.parity import Expected
from export.reference.installed import is_available
from tests import tiny
from tests.verify_case import build_package, copy_with_config

ROOT = Path(__file__).resolve().parents[2]
needs_torch = pytest.mark.skipif(not is_available(), reason="needs torch and transformers")


def test_what_is_expected_survives_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    found = Expected(
        "transformers 1.2 (fp32)",
        text_ids=(3, 1, 2),
        text_logits=random.standard_normal((3, 5)).astype(np.float32),
        text_greedy=(4,),
        features=random.standard_normal((1, 2, 3)).astype(np.float32),
    )
    reference_process.write_expected(found, tmp_path / "expected.npz")
    back = reference_process.read_expected(tmp_path / "expected.npz")
    for field in dataclasses.fields(Expected):
        a, b = getattr(found, field.name), getattr(back, field.name)
        assert type(a) is type(b)
        np.testing.assert_array_equal(a, b)


def test_a_process_that_dies_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = build_package(tiny.make_llama(tmp_path / "source"), tmp_path / "package")
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho first >&2; echo out of memory >&2; exit 9\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(BackendError, match=r"ended with exit code 9: out of memory; --no-reference leaves it out"):
        reference_process.ask_reference(package, "source", None, tmp_path)


@pytest.mark.reference
@needs_torch
def test_errors_come_back_with_their_class(tmp_path: Path) -> None:
    source = tiny.make_llama(tmp_path / "source")
    package = build_package(source, tmp_path / "package")
    with pytest.raises(UnsupportedModelError, match="no transformers reference for model type 'mamba'"):
        reference_process.ask_reference(
            package, copy_with_config(source, tmp_path / "other", model_type="mamba"), None, tmp_path
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageError, match=r"no config\.json in empty"):
        reference_process.ask_reference(package, tmp_path / "empty", None, tmp_path)


@pytest.mark.reference
@needs_torch
def test_torch_never_comes_into_the_exporting_process(tmp_path: Path) -> None:
    source = tiny.make_llama(tmp_path / "source")
    program = (
        "import json, sys\nfrom export.pipeline import ExportOptions, export_package\n"
        "from edgevlm.package import open_package\n"
        "path = export_package(sys.argv[1], sys.argv[2], ExportOptions(scheme='w8', reference=True))\n"
        "parity = open_package(path).manifest.parity\n"
        "print(json.dumps([sorted({'torch', 'transformers'} & set(sys.modules)), sorted({e.against for e in parity})]))"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "package")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    modules, against = json.loads(done.stdout)
    assert modules == [] and [name.split()[0] for name in against] == ["own", "transformers"]
