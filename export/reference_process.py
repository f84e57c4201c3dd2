"""What transformers says about a checkpoint, computed in a process of its own.

torch's libraries and the checkpoint's weights in torch are gone before ours are loaded, so that the peak of an export
is that of one model. Request and answer are files in a scratch directory:

    request.json   source, package directory, manifest, chat template
    answer.json    parity entries, or the error's class and message
    expected.npz   `parity.Expected`, one array per field that is not None
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm import errors
from edgevlm.package import Package
from edgevlm.spec import Manifest, ParityEntry
from edgevlm.strict_json import from_json, to_json
from edgevlm.telemetry import SWITCHES
from export import parity
from export.reference.load import load_reference

REQUEST, ANSWER, EXPECTED = "request.json", "answer.json", "expected.npz"

log = logging.getLogger(__name__)


def ask_reference(
    package: Package, source: str | Path, chat_template: str | None, scratch: Path
) -> tuple[list[ParityEntry], parity.Expected]:
    """Returns the entries of pictures and prompts, and what `parity.compare` needs.

    Raises what loading the checkpoint in transformers raises; BackendError when the process ends in another way.
    """
    request = {
        "source": str(source),
        "package": str(package.path),
        "manifest": to_json(package.manifest),
        "chat_template": chat_template,
    }
    (scratch / REQUEST).write_text(json.dumps(request), encoding="utf-8")
    # the parent has fetched what comes from the Hub; transformers has nothing to ask there
    offline = {**SWITCHES, "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    command = [sys.executable, "-m", __name__, str(scratch)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    log.debug("%s", done.stderr)
    if done.returncode or not (scratch / ANSWER).is_file():
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise errors.BackendError(
            f"the comparison with transformers ended with exit code {done.returncode}: {last}; "
            "--no-reference leaves it out."
        )
    answer = json.loads((scratch / ANSWER).read_text(encoding="utf-8"))
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    entries = [from_json(ParityEntry, entry, "parity") for entry in answer["entries"]]
    return entries, read_expected(scratch / EXPECTED)


def write_expected(expected: parity.Expected, path: Path) -> None:
    """Writes every field that is not None."""
    fields = {field.name: getattr(expected, field.name) for field in dataclasses.fields(expected)}
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in fields.items() if value is not None}
    np.savez(path, **arrays)


def read_expected(path: Path) -> parity.Expected:
    """Reads what `write_expected` wrote."""
    found: dict[str, Any] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.ndim == 0:
                found[name] = str(array)
            else:
                found[name] = tuple(array.astype(int).tolist()) if array.ndim == 1 else array
    return parity.Expected(**found)


def _answer(scratch: Path) -> dict[str, Any]:
    request = json.loads((scratch / REQUEST).read_text(encoding="utf-8"))
    package = Package(Path(request["package"]), from_json(Manifest, request["manifest"], "manifest"))
    try:
        reference = load_reference(
            request["source"],
            chat_template=request["chat_template"],
            tie_embeddings=package.manifest.quant.tied_at_import,
        )
        entries = [*parity.check_pictures(package, reference), *parity.check_prompt_ids(package, reference)]
        write_expected(parity.expect(reference), scratch / EXPECTED)
    except errors.EdgeVLMError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"entries": to_json(entries)}


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    (directory / ANSWER).write_text(json.dumps(_answer(directory)), encoding="utf-8")
