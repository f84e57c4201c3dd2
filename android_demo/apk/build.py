"""Sources to an unsigned APK: resources, Java, dex, one zip that is the same byte for byte on every run."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from android_demo.apk.archive import write_archive
from android_demo.apk.tools import FRAMEWORK, d8_jar, java_home, require, run
from edgevlm.errors import UsageError
from edgevlm.package import open_package

ROOT = Path(__file__).resolve().parent.parent
MIN_SDK, TARGET_SDK = 24, 34
ABI, PACKAGE_ARCH = "arm64-v8a", "arm64"
APP = ROOT / "app" / "src" / "main"
JAVA = (ROOT / "library" / "src" / "main" / "java", ROOT / "library" / "src" / "android" / "java", APP / "java")


def java_sources(*roots: Path) -> list[Path]:
    """Returns the Java files under `roots`, sorted."""
    return sorted(path for root in roots for path in root.rglob("*.java"))


def javac(sources: Iterable[Path], classes: Path, *classpath: Path, warnings: bool = True) -> None:
    """Compiles for Java 8. Every warning is an error, but in stubs."""
    classes.mkdir(parents=True, exist_ok=True)
    lint = ["-Xlint:all", "-Werror"] if warnings else ["-nowarn"]
    path = ["-cp", ":".join(map(str, classpath))] if classpath else []
    run(["javac", "--release", "8", *lint, *path, "-d", classes, *sources], "javac")


def jar(classes: Path, target: Path) -> Path:
    """Packs classes for D8, which reads libraries from jars."""
    files = {path.relative_to(classes).as_posix(): path.read_bytes() for path in classes.rglob("*.class")}
    write_archive(target, {}, files)
    return target


def build_apk(
    target: Path, scratch: Path, libraries: Mapping[str, Path], package: Path | None, version: str, notice: str
) -> Path:
    """Writes the unsigned APK and returns it. `libraries`: name in lib/arm64-v8a → file."""
    require(["javac", "java", "aapt2"])
    home = java_home()
    stubs, classes, generated = scratch / "stubs", scratch / "classes", scratch / "generated"
    javac(java_sources(ROOT / "stubs" / "src"), stubs, warnings=False)
    stub_jar = jar(stubs, scratch / "stubs.jar")
    base = _resources(scratch, generated, version)
    javac(java_sources(*JAVA, generated), classes, stubs)
    dex = _dex(classes, stub_jar, home, scratch)
    with zipfile.ZipFile(base) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    stored = {"resources.arsc": entries.pop("resources.arsc")}
    stored |= {f"lib/{ABI}/{name}": path.read_bytes() for name, path in libraries.items()}
    if package is not None:
        stored |= _bundled(package)
    write_archive(target, stored, {**entries, "classes.dex": dex, "assets/NOTICE": notice.encode("utf-8")})
    return target


def _resources(scratch: Path, generated: Path, version: str) -> Path:
    compiled, base = scratch / "resources.zip", scratch / "base.apk"
    run(["aapt2", "compile", "--dir", APP / "res", "-o", compiled], "aapt2 compile")
    numbers = [int(part) for part in version.split(".")]
    code = sum(number * 1000**power for power, number in enumerate(reversed(numbers)))
    run(
        [
            "aapt2", "link", "-I", FRAMEWORK, "--manifest", APP / "AndroidManifest.xml",
            "--min-sdk-version", str(MIN_SDK), "--target-sdk-version", str(TARGET_SDK),
            "--version-code", str(code), "--version-name", version, "--java", generated, "-o", base, compiled,
        ],
        "aapt2 link",
    )  # fmt: skip
    return base


def _dex(classes: Path, stub_jar: Path, home: Path, scratch: Path) -> bytes:
    output = scratch / "dex"
    output.mkdir()
    files = sorted(classes.rglob("*.class"))
    command: list[str | Path] = ["java", "-cp", d8_jar(), "com.android.tools.r8.D8", "--release"]
    command += ["--min-api", str(MIN_SDK)]
    run([*command, "--lib", stub_jar, "--lib", home, "--output", output, *files], "D8")
    return (output / "classes.dex").read_bytes()


def _bundled(path: Path) -> dict[str, bytes]:
    """The files of a package that a phone reads, as assets. Raises PackageError when it is not compiled for phones."""
    package = open_package(path)
    return {f"assets/package/{name}": package.file(name).read_bytes() for name in package.device_files(PACKAGE_ARCH)}


def check_version(version: str) -> str:
    """Returns `version`. Raises UsageError when it is not three numbers."""
    parts = version.split(".")
    if len(parts) != 3 or not all(part.isdigit() and int(part) < 1000 for part in parts):
        raise UsageError(f"the version is {version!r}, expected three numbers such as 0.1.0")
    return version
