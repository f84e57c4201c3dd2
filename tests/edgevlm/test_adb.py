"""Phones through adb: the states that adb tells of; and the real adb on a phone that speaks its protocol."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_phone import FakePhone

from edgevlm import phone as driver
from edgevlm.adb import Device, find_device, parse_devices
from edgevlm.cli.android import JSON_FIELDS
from edgevlm.cli.main import main
from edgevlm.errors import BackendError, EdgeVLMError, PackageError, UsageError
from edgevlm.package import Package, open_package
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tvm_schedules.compile import compile_package

DAEMON = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"
LISTED = """\
List of devices attached
emulator-5554          device product:sdk_gphone64_arm64 model:sdk_gphone64 device:emu64a transport_id:1
R58M12ABCDE            unauthorized usb:1-1 transport_id:2
????????????           no permissions (user in plugdev group; are your udev rules wrong?); see [http://developer.android.com]
192.168.1.7:5555       offline transport_id:9

"""
STATES = [
    ("", None, BackendError, "sees no phone; plug one in"),
    ("A1\tdevice\nB2\tdevice\n", None, UsageError, "several phones (A1, B2); name one with --serial"),
    ("A1\tunauthorized\n", None, BackendError, "'unauthorized'; unlock it and accept"),
    ("A1\tno permissions (udev); see [http://x]\n", None, BackendError, "may not open USB devices"),
    ("A1\toffline\n", None, BackendError, "unplug it"),
    ("A1\trecovery\n", None, BackendError, "start Android on it"),
    ("A1\tdevice\nB2\toffline\n", "B2", BackendError, "B2 takes no commands"),
    ("A1\tdevice\n", "C3", BackendError, "sees no phone 'C3'; it sees: A1"),
]


def fake_adb(directory: Path, listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adb on PATH that knows one answer, in the form of the real one's."""
    script = directory / "adb"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{DAEMON}List of devices attached\n{listed}\nEND\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)


def test_states_of_a_list() -> None:
    assert parse_devices(DAEMON + LISTED) == {
        "emulator-5554": "device",
        "R58M12ABCDE": "unauthorized",
        "????????????": "no permissions",
        "192.168.1.7:5555": "offline",
    }
    assert parse_devices("List of devices attached\n\n") == parse_devices("adb: usage") == {}


@pytest.mark.parametrize(("listed", "serial", "error", "words"), STATES)
def test_phones_that_cannot_be_used(
    listed: str, serial: str | None, error: type[EdgeVLMError], words: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fake_adb(tmp_path, listed, monkeypatch)
    choice = ["--serial", serial] if serial else []
    assert main(["android", "bench", *choice]) == error.exit_code == (2 if error is UsageError else 8)
    assert words in capsys.readouterr().err


def test_the_one_that_is_named_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_adb(tmp_path, "A1\tdevice\nB2\tdevice\nC3\toffline", monkeypatch)
    assert find_device("B2").serial == "B2"
    monkeypatch.setenv("ANDROID_SERIAL", "A1")
    assert find_device().serial == "A1"
    fake_adb(tmp_path, "B2\tdevice\nC3\toffline", monkeypatch)
    assert find_device().serial == "B2"


def test_no_adb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["android", "bench"]) == 8
    assert "apt-get install -y adb" in capsys.readouterr().err


@pytest.fixture(scope="module")
def adb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """The real adb with a server of its own."""
    program = shutil.which("adb")
    if program is None:
        pytest.skip("adb is not installed; `make deps`")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("ANDROID_SERIAL", raising=False)

        def run(*words: str) -> str:
            return subprocess.run([program, *words], check=True, capture_output=True, text=True, timeout=60).stdout

        run("start-server")
        yield run
        run("kill-server")


@pytest.fixture
def phone(adb: Callable[..., str], tmp_path: Path) -> Iterator[tuple[FakePhone, Device]]:
    """A phone that adb is connected to."""
    made = FakePhone(tmp_path / "phone")
    serial = f"127.0.0.1:{made.port}"
    assert "connected to" in adb("connect", serial)
    yield made, find_device()
    adb("disconnect", serial)
    made.close()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A tiny package compiled for phones."""
    directory = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    source = tiny.make_llama(directory / "checkpoint", **sizes)
    path = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(path, "arm64", probes.text()[:2000])
    return open_package(path)


def test_nothing_is_plugged_in(adb: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    """The real adb's own words for no phone."""
    assert adb("devices").strip() == "List of devices attached"
    assert main(["android", "bench"]) == 8
    assert "adb sees no phone" in capsys.readouterr().err


def test_push(phone: tuple[FakePhone, Device], package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    """What a phone reads arrives, byte for byte, under the package's name, and the app is told."""
    fake, device = phone
    (fake.files / "incoming" / package.manifest.name).mkdir(parents=True)
    assert main(["android", "push", str(package.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == set(JSON_FIELDS)
    assert found["phone"] == {"serial": device.serial, "model": "Fake 9", "android": "14"}
    (target,) = (fake.files / "incoming").iterdir()
    assert target.name == found["folder"]
    arrived = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert arrived == {name: package.file(name).read_bytes() for name in package.device_files("arm64")}
    assert found["size_bytes"] == sum(map(len, arrived.values()))
    assert not [name for name in arrived if name.startswith("onnx/")]
    assert fake.started() == ["start -n org.edgevlm.app/.MainActivity -a org.edgevlm.app.IMPORT"]


PHONES = {
    "no app": ((lambda fake: (fake.root / "app").unlink()), "does not have the app"),
    "a 32-bit phone": (
        (lambda fake: (fake.root / "props/ro.product.cpu.abilist").write_text("armeabi-v7a,armeabi\n")),
        "the app needs arm64-v8a",
    ),
    "an old phone": (
        (lambda fake: (fake.root / "props/ro.build.version.sdk").write_text("23\n")), "API 23; the app needs API 24",
    ),
    "the storage is full": ((lambda fake: setattr(fake, "full", True)), "No space left on device"),
    "too little space": (
        (lambda fake: (fake.root / "bin/df").symlink_to(_script(fake, "df"))), "16 MB are free",
    ),
    "the app does not start": (
        (lambda fake: (fake.root / "am-answer").write_text("Error type 3\nError: Activity does not exist.\n")),
        "Activity does not exist",
    ),
}  # fmt: skip


def _script(fake: FakePhone, name: str) -> Path:
    """toybox's df, nearly full."""
    path = fake.root / name
    path.write_text(
        "#!/bin/sh\necho 'Filesystem     1K-blocks     Used Available Use% Mounted on'\n"
        "echo '/dev/fuse      115609584 93455492     16000  81% /storage/emulated'\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("case", PHONES)
def test_a_push_that_fails_leaves_nothing(case: str, phone: tuple[FakePhone, Device], package: Package) -> None:
    fake, device = phone
    change, words = PHONES[case]
    change(fake)
    with pytest.raises(BackendError, match=words):
        driver.check_phone(device)
        driver.push_package(device, package)
    left = [path for path in (fake.files / "incoming").rglob("*") if path.is_file()]
    assert bool(left) == (case == "the app does not start")


def test_a_phone_that_is_pulled_out(phone: tuple[FakePhone, Device], package: Package) -> None:
    fake, device = phone
    seen: list[int] = []

    def pull_out(stage: str, done: int, total: int) -> None:
        seen.append(done)
        fake.close()

    with pytest.raises(BackendError, match=r"is gone|does not arrive"):
        driver.push_package(device, package, pull_out)
    assert len(seen) == 1
    assert [path.name for path in (fake.files / "incoming").iterdir()] == [f".{package.manifest.name}.partial"]


def test_a_package_that_is_not_for_phones(tmp_path: Path, package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PackageError, match="--target x86_64"):
        package.device_files("x86_64")
    assert main(["android", "push", str(tmp_path / "none")]) == 3
    assert main(["android", "push"]) == main(["android", "bench", str(package.path)]) == 2


STAGES = {"encode_ms": 812.0, "prefill_ms": 950.5, "prefill_tok_per_s": 210.4, "decode_ms": 3100.0,
          "decode_tok_per_s": 20.3, "peak_rss_bytes": 240_000_000}  # fmt: skip
NUMBERS = {"format": 1, "package": "p", "device": "Fake", "kernels": "i8mm", "threads": 4,
           "runs": [{"thermal_before": "none", "thermal_after": "light", "stages": STAGES}] * 3}  # fmt: skip


def test_bench(
    phone: tuple[FakePhone, Device], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of an earlier run are not taken for these; the table has a line a run."""
    fake, _ = phone
    monkeypatch.setattr(driver, "POLL_S", 0.01)
    (fake.files / "benchmark.json").write_text("an old one")
    (fake.root / "benchmark").write_text(json.dumps(NUMBERS))
    assert main(["android", "bench"]) == 0
    out = capsys.readouterr().out
    assert out.count("240  none") == 3 and "210.4" in out and "kernels i8mm, 4 threads" in out
    assert main(["android", "bench", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["benchmark"] == NUMBERS


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"format": 1, "error": "there is no package on the phone", "runs": []}', "there is no package on the phone"),
        ('{"format": 1,', "not valid JSON"),
        ('{"format": 2}', "another form"),
        ("", "has ended"),
        (None, "has not ended after 0 s"),
    ],
)
def test_a_bench_that_fails(
    answer: str | None, words: str, phone: tuple[FakePhone, Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, device = phone
    monkeypatch.setattr(driver, "POLL_S", 0.01)
    if answer:
        (fake.root / "benchmark").write_text(answer)
    elif answer == "":
        (fake.root / "alive").unlink()
    with pytest.raises(BackendError, match=words):
        driver.run_benchmark(device, timeout_s=0.3)
