"""Android's two libraries under qemu-aarch64, on glibc in bionic's place, played by jni_host.c."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest

from android_demo.apk.library import JNI_HEADER, build_jni
from tests.tvm_schedules.arm64 import emulator

HERE = Path(__file__).parent / "arm64"


@functools.cache
def jni_library() -> Path:
    """The JNI library for Android, as the APK has it, beside its engine."""
    if not JNI_HEADER.exists():
        pytest.skip(f"{JNI_HEADER} is missing; `make deps` installs it")
    engine = emulator.android_library()
    return build_jni(engine, engine.parent)


@functools.cache
def jni_host() -> Path:
    """The program of jni_host.c."""
    target = emulator.ROOT / "build/arm64/jni_host"
    target.parent.mkdir(parents=True, exist_ok=True)
    emulator.compile_program([HERE / "jni_host.c", HERE / "stub_env.c"], target, [], include=JNI_HEADER.parent)
    return target


def play(cpu: str, script: Path) -> subprocess.CompletedProcess[str]:
    """Plays a script on an emulated CPU."""
    library = jni_library()
    path = f"LD_LIBRARY_PATH={emulator.stand_ins()}:{library.parent}"
    command = [emulator.qemu(), "-cpu", cpu, "-L", emulator.SYSROOT, "-E", path, str(jni_host()), str(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
