"""The APK: the parts of its build, and its checker, which must fail where something is wrong."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from android_demo.apk import make, sign, tools
from android_demo.apk.archive import data_offset, write_archive
from android_demo.apk.build import build_apk, check_version
from android_demo.apk.check import check_apk, table
from android_demo.apk.elf import X86_64, read_library
from edgevlm.errors import BackendError, UsageError

SOURCE = """
#include <stddef.h>
void *malloc(size_t); double sqrt(double); int __android_log_print(int, const char *, const char *, ...);
int Java_org_edgevlm_JniEngine_abiVersion(void *env, void *self)
{
    (void)env; (void)self;
    return malloc(4) && __android_log_print(4, "x", "y");
}
"""


def test_archive_is_the_same_every_time(tmp_path: Path) -> None:
    stored = {"lib/arm64-v8a/libx.so": b"\x7fELF" * 1000, "resources.arsc": b"abc"}
    for name in ("a.apk", "b.apk"):
        write_archive(tmp_path / name, stored, {"classes.dex": b"dex" * 500, "AndroidManifest.xml": b"<x/>"})
    assert (tmp_path / "a.apk").read_bytes() == (tmp_path / "b.apk").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.apk") as archive:
        assert archive.testzip() is None
        offsets = {info.filename: data_offset(archive, info) for info in archive.infolist()}
        data = (tmp_path / "a.apk").read_bytes()
        assert data[offsets["lib/arm64-v8a/libx.so"] :][:4] == b"\x7fELF"
    assert offsets["lib/arm64-v8a/libx.so"] % 16384 == 0 and offsets["resources.arsc"] % 4 == 0


def test_elf_facts(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    assert compiler, "the tests need a C compiler"
    (tmp_path / "x.c").write_text(SOURCE.replace("__android_log_print(4", "(int)sqrt(2) || __android_log_print(4"))
    flags = ["-shared", "-fPIC", "-nostdlib", "-Wl,-z,max-page-size=16384", "-Wl,--unresolved-symbols=ignore-all"]
    subprocess.run([compiler, *flags, str(tmp_path / "x.c"), "-o", str(tmp_path / "x.so")], check=True)
    library = read_library((tmp_path / "x.so").read_bytes())
    assert library.machine == X86_64 and min(library.load_alignments) == 16384
    assert "malloc" in library.undefined and "Java_org_edgevlm_JniEngine_abiVersion" in library.defined
    assert library.needed == () and not library.has_text_relocations and not library.has_tls
    for data in (b"", b"MZ" * 50, b"\x7fELF\x01\x01" + b"\0" * 60):
        with pytest.raises(ValueError, match="ELF"):
            read_library(data)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BackendError, match=r"apt-get install -y aapt .*openjdk-17-jdk-headless"):
        tools.require(["javac", "aapt2"])
    with pytest.raises(BackendError, match="there is no javac"):
        tools.java_home()


def test_wrong_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1.0", "1.0.x", "1.0.1000", ""):
        with pytest.raises(UsageError, match="three numbers"):
            check_version(version)
    options = make.parse(["--library", str(tmp_path / "none.so"), "-o", str(tmp_path / "out")])
    with pytest.raises(UsageError, match="there is no library"):
        make.make(options)
    if shutil.which("apksigner") is None:
        pytest.skip("apksigner is not installed; `make deps`")
    with pytest.raises(UsageError, match="no keystore"):
        sign.sign(tmp_path / "a", tmp_path / "b", tmp_path / "none.jks")
    (tmp_path / "key.jks").touch()
    monkeypatch.delenv(sign.PASSWORD_VARIABLE, raising=False)
    with pytest.raises(UsageError, match="EDGEVLM_KEYSTORE_PASSWORD"):
        sign.sign(tmp_path / "a", tmp_path / "b", tmp_path / "key.jks")


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small arm64 libraries in the form of the real ones."""
    clang, directory = shutil.which("clang-19"), tmp_path_factory.mktemp("arm64")
    if clang is None or shutil.which("ld.lld-19") is None:
        pytest.skip("clang-19 and lld-19 are not installed; `make deps`")
    base = [
        clang,
        "--target=aarch64-linux-android24",
        "-fuse-ld=lld-19",
        "-nostdlib",
        "-shared",
        "-fPIC",
        f"-L{directory}",
    ]
    base += ["-Wl,-z,max-page-size=16384"]
    sources = {
        "libc": ("void malloc(void) {}", []),
        "liblog": ("void __android_log_print(void) {}", []),
        "libedgevlm": (SOURCE.replace("Java_org_edgevlm_JniEngine_abiVersion", "ev_abi_version"), ["-lc", "-llog"]),
        "libedgevlm_jni": (SOURCE, ["-lc", "-llog", "-ledgevlm"]),
    }
    for name, (source, needed) in sources.items():
        (directory / f"{name}.c").write_text(f"{source}\n")
        command = [*base, "-w", "-fno-builtin", f"-Wl,-soname,{name}.so", str(directory / f"{name}.c"), *needed]
        subprocess.run([*command, "-o", str(directory / f"{name}.so")], check=True)
    return {name: directory / name for name in ("libedgevlm.so", "libedgevlm_jni.so")}


@pytest.fixture(scope="session")
def unsigned(libraries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The app with that library, without a signature."""
    jar = tools.cache_directory() / Path(tools.D8_MEMBER).name
    if not jar.exists():
        pytest.skip(f"{jar} is not there; `make apk` downloads it")
    try:
        tools.require(["javac", "aapt2", "aapt", "apksigner", "dexdump"])
    except BackendError as error:
        pytest.skip(str(error))
    directory = tmp_path_factory.mktemp("apk")
    (directory / "scratch").mkdir()
    return build_apk(directory / "unsigned.apk", directory / "scratch", libraries, None, "0.1.0", make.notice(None))


def test_app_builds_and_passes(unsigned: Path, tmp_path: Path) -> None:
    signed = tmp_path / "signed.apk"
    sign.sign(unsigned, signed, None)
    rows = check_apk(signed)
    failed = [row for row in rows if not row[1] and row[0] != "androguard"]
    assert failed == [], table(rows)
    assert {row[0] for row in rows} >= {"badging", "permissions", "signature", "libedgevlm_jni.so: undefined"}
    with zipfile.ZipFile(signed) as first, zipfile.ZipFile(unsigned) as second:
        assert [info.filename for info in first.infolist()] == [info.filename for info in second.infolist()]


def _rewritten(unsigned: Path, target: Path, stored: dict[str, bytes], deflated: dict[str, bytes]) -> Path:
    """The APK with other entries, or with others deflated; what it stores stays stored."""
    with zipfile.ZipFile(unsigned) as archive:
        kept = {info.filename: (info.compress_type, archive.read(info)) for info in archive.infolist()}
    plain = {name: data for name, (how, data) in kept.items() if how == zipfile.ZIP_STORED and name not in deflated}
    packed = {name: data for name, (how, data) in kept.items() if how != zipfile.ZIP_STORED}
    write_archive(target, {**plain, **stored}, {**packed, **deflated})
    return target


def test_checker_fails_where_something_is_wrong(unsigned: Path, libraries: dict[str, Path], tmp_path: Path) -> None:
    """The controls: no signature, a compressed library, a library of this machine with a foreign symbol."""
    name = "lib/arm64-v8a/libedgevlm.so"
    foreign = libraries["libedgevlm.so"].read_bytes().replace(b"malloc\0", b"mallok\0")
    changed = _rewritten(unsigned, tmp_path / "changed.apk", {}, {name: foreign, "assets/NOTICE": b"none"})
    failed = {row[0] for row in check_apk(changed) if not row[1]}
    weights = {"assets/package/lib/arm64/weights.bin": b"w" * 100}
    assert ("alignment", False) not in {row[:2] for row in check_apk(_rewritten(unsigned, tmp_path / "s", weights, {}))}
    assert ("alignment", False) in {row[:2] for row in check_apk(_rewritten(unsigned, tmp_path / "d", {}, weights))}
    assert {"signature", "alignment", "NOTICE", "libedgevlm.so: undefined"} <= failed
    damaged = _rewritten(
        unsigned, tmp_path / "damaged.apk", {}, {name: b"\x7fELF", "classes.dex": b"dex\n037\0" + b"x" * 200}
    )
    failed = {row[0] for row in check_apk(damaged) if not row[1]}
    assert {"dex checksum", "libedgevlm.so: ELF"} <= failed
