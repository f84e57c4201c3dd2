"""The JNI part for phones: `python -m android_demo.apk.library --engine DIR/libedgevlm.so -o DIR`.

libedgevlm_jni.so holds the Java_* functions and needs libedgevlm.so, the engine, which is built by
`python -m tvm_schedules.build --arch arm64 --os android`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from android_demo.apk.build import ROOT
from android_demo.apk.tools import run
from edgevlm.errors import BackendError, EdgeVLMError, UsageError

NAME, ENGINE_NAME = "libedgevlm_jni.so", "libedgevlm.so"
JNI_HEADER = Path("/usr/include/android/nativehelper/jni.h")
JNI_PACKAGE = "android-libnativehelper-dev"
SOURCES = ROOT / "library" / "src" / "main" / "c"
ENGINE_HEADERS = ROOT.parent / "edgevlm" / "engine"
EXPORTS = "{ global: Java_*; local: *; };\n"


def build_jni(engine: Path, directory: Path) -> Path:
    """Links the JNI part against `engine` for arm64 Android and returns it.

    Raises BackendError when a tool is missing.
    """
    from tvm_schedules.toolchains import C_FLAGS, LINK_FLAGS, toolchain

    if engine.name != ENGINE_NAME or not engine.is_file():
        raise UsageError(f"{engine}: there is no {ENGINE_NAME} here; build it with `make android-library`")
    if not JNI_HEADER.exists():
        raise BackendError(f"{JNI_HEADER} is missing; type: apt-get install -y {JNI_PACKAGE}")
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / NAME
    with tempfile.TemporaryDirectory(dir=directory) as name:
        scratch = Path(name)
        tools = toolchain("arm64", "android", scratch)
        (scratch / "exports.map").write_text(EXPORTS, encoding="ascii")
        link = [flag for flag in tools.link_flags if not flag.startswith("-Wl,-soname")]
        run(
            [
                tools.compiler, *C_FLAGS, "-Werror", *tools.flags, f"-I{ENGINE_HEADERS}", f"-I{JNI_HEADER.parent}",
                *sorted(SOURCES.glob("*.c")), *LINK_FLAGS, *link, engine, f"-Wl,-soname,{NAME}",
                f"-Wl,--version-script={scratch / 'exports.map'}", "-o", scratch / NAME,
            ],
            "the compiler",
        )  # fmt: skip
        (scratch / NAME).replace(target)
    return target


def main() -> int:
    """Builds and prints the path."""
    parser = argparse.ArgumentParser(prog="python -m android_demo.apk.library", description=__doc__)
    parser.add_argument("--engine", type=Path, required=True, help="libedgevlm.so for Android")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/android"))
    arguments = parser.parse_args()
    try:
        print(build_jni(arguments.engine, arguments.output))
    except EdgeVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
