"""Checks of a signed APK, each one line of a table; `python -m android_demo.apk.check APK`."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from android_demo.apk.archive import alignment_of, data_offset
from android_demo.apk.elf import AARCH64, SharedLibrary, read_library
from android_demo.apk.tools import require, run
from edgevlm.errors import BackendError

PAGE_BYTES = 16384
MAX_BYTES_WITHOUT_MODEL = 3_000_000
NEEDED = {"libc.so", "libm.so", "liblog.so"}
ENGINE, JNI_LIBRARY = "libedgevlm.so", "libedgevlm_jni.so"
BIONIC = Path(__file__).with_name("bionic.txt")

Row = tuple[str, bool, str]


def _libraries(path: Path) -> tuple[bool, str]:
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("lib/"))
    return names == [f"lib/arm64-v8a/{ENGINE}", f"lib/arm64-v8a/{JNI_LIBRARY}"], ", ".join(names)


def check_apk(path: Path) -> list[Row]:
    """Returns (check, passed, what was found) for each check; what cannot be run says so and does not pass."""
    require(["aapt", "apksigner", "dexdump", "java"])
    rows = [_guarded(name, check, path) for name, check in CHECKS]
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith("lib/") and name.endswith(".so"):
                rows += _library_rows(name, archive.read(name))
    return rows


def _guarded(name: str, check: Callable[[Path], tuple[bool, str]], path: Path) -> Row:
    try:
        passed, found = check(path)
    except (BackendError, ValueError, KeyError) as error:
        return name, False, str(error)[:200]
    return name, passed, found


def _badging(path: Path) -> tuple[bool, str]:
    text = run(["aapt", "dump", "badging", path], "aapt")
    package = re.search(r"package: name='([^']+)' versionCode='(\d+)'", text)
    sdk = re.search(r"sdkVersion:'(\d+)'", text)
    target = re.search(r"targetSdkVersion:'(\d+)'", text)
    activity = "launchable-activity: name='org.edgevlm.app.MainActivity'" in text
    abi = "native-code: 'arm64-v8a'" in text
    good = bool(package and package[1] == "org.edgevlm.app" and sdk and sdk[1] == "24" and activity and abi)
    found = f"{package[1] if package else '?'}, sdk {sdk[1] if sdk else '?'} to {target[1] if target else '?'}"
    return good, f"{found}, {'launchable' if activity else 'no activity'}, {'arm64-v8a' if abi else 'no native code'}"


def _permissions(path: Path) -> tuple[bool, str]:
    text = run(["aapt", "dump", "permissions", path], "aapt")
    found = re.findall(r"uses-permission: name='([^']+)'", text)
    return not found, ", ".join(found) or "none"


def _signature(path: Path) -> tuple[bool, str]:
    text = run(["apksigner", "verify", "--verbose", path], "apksigner")
    schemes = [n for n in ("v2", "v3") if re.search(rf"Verified using {n} scheme.*: true", text)]
    return schemes == ["v2", "v3"], " + ".join(schemes)


def _dex(path: Path) -> tuple[bool, str]:
    text = run(["dexdump", "-c", path], "dexdump")
    return "Checksum verified" in text, text.strip().splitlines()[-1][-60:]


def _alignment(path: Path) -> tuple[bool, str]:
    wrong, n_stored = [], 0
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                if info.filename.endswith(".so") or info.filename.startswith(("resources.arsc", "assets/package/")):
                    wrong.append(f"{info.filename} is compressed")
                continue
            n_stored += 1
            if data_offset(archive, info) % alignment_of(info.filename):
                wrong.append(f"{info.filename} begins at {data_offset(archive, info)}")
    return not wrong, "; ".join(wrong) or f"{n_stored} stored entries, libraries at {PAGE_BYTES}"


def _notice(path: Path) -> tuple[bool, str]:
    with zipfile.ZipFile(path) as archive:
        text = archive.read("assets/NOTICE").decode("utf-8")
        has_weights = any(name.startswith("assets/package/") for name in archive.namelist())
    good = "Apache License" in text or "Apache-2.0" in text
    return good and (not has_weights or "weights" in text), f"{len(text)} characters" + (
        ", weights" if has_weights else ""
    )


def _size(path: Path) -> tuple[bool, str]:
    with zipfile.ZipFile(path) as archive:
        model = sum(info.compress_size for info in archive.infolist() if info.filename.startswith("assets/package/"))
    size = path.stat().st_size - model
    return size <= MAX_BYTES_WITHOUT_MODEL, f"{size:,} bytes without the model ({model:,} bytes)"


def _androguard(path: Path) -> tuple[bool, str]:
    if importlib.util.find_spec("androguard") is None:
        return False, "androguard is not installed (pip install androguard==4.1.4); not checked"
    # In a process of its own: it writes a log of everything it reads.
    done = subprocess.run([sys.executable, "-c", _ANDROGUARD, str(path)], capture_output=True, text=True)
    words = done.stdout.strip()
    return done.returncode == 0 and words.startswith("True True True "), words or done.stderr.strip()[-200:]


_ANDROGUARD = """
import sys
from androguard.core.apk import APK
apk = APK(sys.argv[1])
good = apk.is_valid_APK(), apk.is_signed_v2(), apk.is_signed_v3()
print(*good, apk.get_package(), len(list(apk.get_files())), "files")
"""

CHECKS: tuple[tuple[str, Callable[[Path], tuple[bool, str]]], ...] = (
    ("badging", _badging),
    ("permissions", _permissions),
    ("signature", _signature),
    ("dex checksum", _dex),
    ("libraries", _libraries),
    ("alignment", _alignment),
    ("NOTICE", _notice),
    ("size", _size),
    ("androguard", _androguard),
)


def _library_rows(name: str, data: bytes) -> list[Row]:
    short = name.rsplit("/", 1)[-1]
    try:
        library = read_library(data)
    except (ValueError, KeyError) as error:
        return [(f"{short}: ELF", False, str(error))]
    foreign = sorted(set(library.undefined) - bionic_names())
    needed = set(library.needed)
    is_jni = short == JNI_LIBRARY
    if is_jni:
        foreign = [name for name in foreign if not name.startswith("ev_")]
    return [
        (
            f"{short}: machine",
            library.machine == AARCH64,
            "aarch64" if library.machine == AARCH64 else str(library.machine),
        ),
        _pages(short, library),
        (f"{short}: needed", needed <= NEEDED | ({ENGINE} if is_jni else set()), ", ".join(sorted(needed))),
        (f"{short}: undefined", not foreign, ", ".join(foreign) or f"{len(library.undefined)}, all bionic's"),
        (f"{short}: exports", _exports_well(library, is_jni), _exports(library)),
        (
            f"{short}: TEXTREL, TLS",
            not library.has_text_relocations and not library.has_tls,
            f"{library.has_text_relocations}, {library.has_tls}",
        ),
    ]


def _pages(short: str, library: SharedLibrary) -> Row:
    least = min(library.load_alignments)
    return f"{short}: pages", least >= PAGE_BYTES, f"{least}"


def _exports_well(library: SharedLibrary, is_jni: bool) -> bool:
    """The JNI part has Java's functions only, the engine its C ABI only."""
    prefix = "Java_org_edgevlm_JniEngine_" if is_jni else "ev_"
    return bool(library.defined) and all(name.startswith(prefix) for name in library.defined)


def _exports(library: SharedLibrary) -> str:
    java = sum(name.startswith("Java_") for name in library.defined)
    return f"{java} JNI functions, {len(library.defined) - java} others"


def bionic_names() -> set[str]:
    """Functions of Android's libc, libm and liblog that exist since API 24."""
    lines = BIONIC.read_text(encoding="utf-8").splitlines()
    return {name for line in lines if not line.startswith("#") for name in line.split()}


def table(rows: list[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| check | | found |", "| --- | --- | --- |"]
    return "\n".join(
        [*lines, *(f"| {name} | {'pass' if passed else 'FAIL'} | {found} |" for name, passed, found in rows)]
    )


def main(arguments: list[str]) -> int:
    """Prints the table; 1 when a check failed."""
    if len(arguments) != 1:
        print("usage: python -m android_demo.apk.check APK", file=sys.stderr)
        return 2
    try:
        rows = check_apk(Path(arguments[0]))
    except BackendError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(table(rows))
    return 0 if all(passed for _, passed, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
