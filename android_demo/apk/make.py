"""The signed APK: `python -m android_demo.apk.make --library FILE --library FILE [--package DIR] [-o DIR]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import edgevlm
from android_demo.apk.build import build_apk, check_version
from android_demo.apk.check import check_apk, table
from android_demo.apk.sign import sign
from edgevlm.errors import EdgeVLMError, UsageError

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(prog="python -m android_demo.apk.make", description=__doc__)
    parser.add_argument(
        "--library", type=Path, action="append", required=True, help="arm64 libedgevlm.so, and libedgevlm_jni.so"
    )
    parser.add_argument("--package", type=Path, help="package to bundle, compiled for arm64")
    parser.add_argument("--keystore", type=Path, help="sign with this one; its password: EDGEVLM_KEYSTORE_PASSWORD")
    parser.add_argument("--version", default=f"{edgevlm.__version__}", help="three numbers (default: edgevlm's)")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/apk"))
    return parser.parse_args(arguments)


def notice(package: Path | None) -> str:
    """Returns the NOTICE of the app, with the words about the weights inside."""
    text = (REPOSITORY / "NOTICE").read_text(encoding="utf-8") + "\nLicence: Apache-2.0 (Apache License, version 2.0)\n"
    if package is None:
        return text
    card = package / "README.md"
    words = card.read_text(encoding="utf-8") if card.is_file() else "The package has no model card.\n"
    return f"{text}\nThe weights bundled with this app, from their model card:\n\n{words}"


def make(options: argparse.Namespace) -> Path:
    """Builds and signs; returns the APK."""
    version = check_version(options.version)
    libraries = {path.name: path for path in options.library}
    for path in libraries.values():
        if not path.is_file():
            raise UsageError(f"{path}: there is no library; build it with `make android-library`")
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    unsigned, signed = output / "edgevlm-unsigned.apk", output / "edgevlm.apk"
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        build_apk(unsigned, Path(scratch), libraries, options.package, version, notice(options.package))
        partial = Path(scratch) / signed.name
        sign(unsigned, partial, options.keystore)
        partial.replace(signed)
    return signed


def main() -> int:
    """Makes the APK, prints its checks and its path."""
    start = time.perf_counter()
    try:
        apk = make(parse())
        rows = check_apk(apk)
    except EdgeVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(rows))
    print(f"\n{apk}: {apk.stat().st_size:,} bytes in {time.perf_counter() - start:.1f} s")
    return 0 if all(passed for _, passed, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
