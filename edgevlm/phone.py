"""The demo app on a phone: packages pushed to it, its benchmark started and read.

The app takes what stands in its `incoming` folder when it comes to the front: hashes first, then a rename, then it
removes the copy. Its numbers stand in benchmark.json beside that folder. Both are in the app's own part of the shared
storage, which adb may read and write and no other app may.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from edgevlm.adb import Device
from edgevlm.errors import BackendError
from edgevlm.package import PARTIAL_SUFFIX, Package

APP = "org.edgevlm.app"
ABI, ARCH = "arm64-v8a", "arm64"
MIN_SDK = 24
FILES = f"/sdcard/Android/data/{APP}/files"
INCOMING = f"{FILES}/incoming"
BENCHMARK_FILE = f"{FILES}/benchmark.json"
IMPORT_ACTION, BENCHMARK_ACTION = f"{APP}.IMPORT", f"{APP}.BENCHMARK"
COPIES = 2
"""What was pushed, and what the app makes of it before it removes that."""
MARGIN_BYTES = 32 << 20
POLL_S = 2.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PhoneFacts:
    """What a phone says about itself."""

    serial: str
    model: str
    android: str


def check_phone(device: Device) -> PhoneFacts:
    """Returns the facts of a phone that has the app. Raises BackendError for one that cannot run it or lacks it."""
    model, android, sdk, abis = (
        device.shell("getprop", name).strip()
        for name in ("ro.product.model", "ro.build.version.release", "ro.build.version.sdk", "ro.product.cpu.abilist")
    )
    if ABI not in abis.split(","):
        raise BackendError(f"{device.serial} ({model}) has {abis or 'an unknown CPU'}; the app needs {ABI}")
    if not sdk.isdigit() or int(sdk) < MIN_SDK:
        raise BackendError(f"{device.serial} ({model}) has Android {android}, API {sdk}; the app needs API {MIN_SDK}")
    if device.try_shell("pm", "path", APP).returncode:
        advice = "make it with `make apk`, then type: adb install build/apk/edgevlm.apk"
        raise BackendError(f"{device.serial} ({model}) does not have the app; {advice}")
    return PhoneFacts(device.serial, model, android)


def push_package(device: Device, package: Package, progress: Progress | None = None) -> tuple[str, int]:
    """Copies what a phone reads of a package, and lets the app import it. Returns (its folder's name, its bytes).

    Nothing that is not whole has the package's name. Raises PackageError for a package that is not made for phones,
    BackendError when there is too little space or the connection ends.
    """
    names = package.device_files(ARCH)
    sizes = {name: package.file(name).stat().st_size for name in names}
    total = sum(sizes.values())
    folder = re.sub(r"[^A-Za-z0-9._+-]", "-", package.manifest.name).lstrip(".-") or "package"
    target, partial = f"{INCOMING}/{folder}", f"{INCOMING}/.{folder}{PARTIAL_SUFFIX}"
    device.shell("rm", "-rf", partial)
    device.shell("mkdir", "-p", partial)
    whole = False
    try:
        _check_space(device, total)
        for parent in sorted({str(PurePosixPath(name).parent) for name in names} - {"."}):
            device.shell("mkdir", "-p", f"{partial}/{parent}")
        done = 0
        for name in names:
            device.push(package.file(name), f"{partial}/{name}")
            done += sizes[name]
            if progress is not None:
                progress("push", done, total)
        _check_sizes(device, partial, sizes)
        device.shell("rm", "-rf", target)
        device.shell("mv", partial, target)
        whole = True
    finally:
        if not whole:
            _clean_up(device, partial)
    start_app(device, IMPORT_ACTION)
    return folder, total


def _check_space(device: Device, total: int) -> None:
    lines = device.shell("df", "-k", INCOMING).splitlines()
    column = lines[0].split().index("Available") if lines and "Available" in lines[0].split() else -1
    # The name of the file system may hold spaces, what follows it does not.
    words = lines[-1].split() if len(lines) > 1 else []
    from_the_end = len(lines[0].replace("Mounted on", "Mounted").split()) - column if column >= 0 else 0
    if not 0 < from_the_end <= len(words) or not words[-from_the_end].isdigit():
        raise BackendError(f"{device.serial} does not say how much space is free; df says {' '.join(lines)[:200]!r}")
    free, needed = int(words[-from_the_end]) * 1024, COPIES * total + MARGIN_BYTES
    if free < needed:
        raise BackendError(
            f"the package needs {needed / 1e6:.0f} MB on {device.serial} (twice its size, until the app has taken it), "
            f"{free / 1e6:.0f} MB are free"
        )


def _check_sizes(device: Device, directory: str, sizes: dict[str, int]) -> None:
    names = list(sizes)
    found = device.shell("stat", "-c", "%s", *(f"{directory}/{name}" for name in names)).split()
    for name, size in zip(names, found, strict=True):
        if size != str(sizes[name]):
            raise BackendError(f"{name} has {size} bytes on {device.serial}, expected {sizes[name]}; push it again")


def _clean_up(device: Device, directory: str) -> None:
    """Removes what was copied; a phone that is gone keeps it under the name of a partial copy."""
    try:
        device.try_shell("rm", "-rf", directory)
    except BackendError:
        return


def start_app(device: Device, action: str) -> None:
    """Brings the app to the front. Raises BackendError when the phone refuses."""
    words = device.shell("am", "start", "-n", f"{APP}/.MainActivity", "-a", action)
    # `am` ends with 0 after an error, too.
    if "Error" in words:
        raise BackendError(f"the app does not start on {device.serial}: {words.strip().splitlines()[-1]}")


def run_benchmark(device: Device, timeout_s: float) -> dict[str, Any]:
    """Runs the app's benchmark page on the phone and returns its JSON.

    Raises BackendError when the app refuses, ends, or takes longer than `timeout_s`.
    """
    device.shell("rm", "-f", BENCHMARK_FILE)
    start_app(device, BENCHMARK_ACTION)
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        time.sleep(POLL_S)
        found = device.try_shell("cat", BENCHMARK_FILE)
        if not found.returncode:
            return _read_benchmark(found.stdout)
        if device.try_shell("pidof", APP).returncode:
            raise BackendError(f"the app has ended on {device.serial} before its benchmark; `adb logcat` may say why")
    raise BackendError(f"the benchmark has not ended after {timeout_s:.0f} s; give it longer with --timeout")


def _read_benchmark(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BackendError(f"the app's benchmark.json is not valid JSON ({error})") from None
    if not isinstance(value, dict) or value.get("format") != 1:
        raise BackendError("the app's benchmark.json has another form; build app and command from one version")
    if value.get("error"):
        raise BackendError(f"the app says: {value['error']}")
    return value
