"""Nothing leaves the machine: every command under strace, without a network, with a home of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgevlm.backends.native_library import host_arch, library_path
from edgevlm.cli.parser import COMMANDS
from tests.cli.traced import Traced, trace, why_not
from tests.edgevlm.question_sets import questions, write_set
from tests.tiny import make_bluelm_v

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

Edgevlm = Callable[..., Traced]
SHORT = ("--max-new-tokens", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands read."""
    folder = tmp_path_factory.mktemp("offline")
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    tower = {"hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 128}
    make_bluelm_v(folder / "work" / "checkpoint", text=sizes, vision=tower)  # as the engine takes them
    write_set(folder / "work" / "set", questions(2))
    Image.new("RGB", (120, 60), (200, 30, 30)).save(folder / "work" / "red.png")
    return folder


@pytest.fixture(scope="module")
def edgevlm(place: Path) -> Edgevlm:
    """Runs `edgevlm` traced, in one home for all."""

    def run(*words: str, **given: str) -> Traced:
        return trace([sys.executable, "-m", "edgevlm", *words], place / "work", place / "home", **given)

    return run


@pytest.fixture(scope="module")
def exported(edgevlm: Edgevlm) -> dict[str, Traced]:
    """`export`, then `compile`: what they did; the package is named 'package'."""
    found = {"export": edgevlm("export", "checkpoint", "-o", "package", "--scheme", "w4g32", "--no-reference")}
    found["compile"] = edgevlm("compile", "package", "--target", host_arch())
    return found


def check(traced: Traced, place: Path, code: int = 0) -> None:
    """Fails for a wrong exit code, for what was reached, and for files outside the working folder and our cache."""
    assert traced.exit_code == code, traced.err
    assert traced.reached == ()
    ours = place / "home" / ".cache" / "edgevlm"
    assert traced.outside(place / "work", ours) == []
    left = [path for path in (place / "home").rglob("*") if not path.is_dir() and not path.is_relative_to(ours)]
    assert left == [], "a home has nothing but our cache"


@pytest.mark.parametrize("command", ["export", "compile"])
def test_making_a_package(command: str, exported: dict[str, Traced], place: Path) -> None:
    check(exported[command], place)


LOADED: dict[str, tuple[str, ...]] = {
    "run with onnxruntime": ("run", "package", "Hello", "--image", "red.png", "--backend", "onnx", *SHORT),
    "run with the native engine": ("run", "package", "Hello", "--image", "red.png", "--backend", "native", *SHORT),
    "chat": ("chat", "package", "--backend", "onnx", *SHORT),
    "tiles": ("tiles", "red.png", "--package", "package", "-o", "drawn.png"),
    "inspect": ("inspect", "package", "--hash"),
    "verify": ("verify", "package", "--source", "checkpoint", "--no-reference"),
    "eval": ("eval", "package", "--set", "set", "--backend", "onnx", *SHORT),
    "bench": ("bench", "package", "--prompt-tokens", "8", "--new-tokens", "2", "--repeat", "1", "--plot", "roof.png"),
    "tune": ("tune", "--dry-run", "--slot", "decode", "--variant", "avx2"),
}
NEED_LIBRARY = ("run with the native engine", "bench")


@pytest.mark.parametrize("name", LOADED)
def test_commands(name: str, edgevlm: Edgevlm, exported: dict[str, Traced], place: Path) -> None:
    if name in NEED_LIBRARY and not library_path().is_file():
        pytest.skip("the native library is not built (make native)")
    if name == "bench":
        pytest.importorskip("matplotlib")
    if name == "tune":
        pytest.importorskip("tvm")
    said = "/image red.png\nHello\n/save said.json\n" if name == "chat" else ""
    check(edgevlm(*LOADED[name], stdin=said), place)


def test_android_without_adb(edgevlm: Edgevlm, place: Path) -> None:
    """adb is Android's own tool, with notes of its own under ~/.android; without it nothing is reached."""
    (place / "empty").mkdir(exist_ok=True)
    check(edgevlm("android", "bench", PATH=str(place / "empty")), place, code=8)


@pytest.mark.reference
def test_the_comparison_with_transformers(edgevlm: Edgevlm, exported: dict[str, Traced], place: Path) -> None:
    pytest.importorskip("transformers")
    check(edgevlm("verify", "package", "--source", "checkpoint", "--reference"), place)


def test_every_command_is_here() -> None:
    assert {words[0] for words in LOADED.values()} | {"export", "compile", "android"} == set(COMMANDS)


EARLY = "import sys{}; from edgevlm.cli.main import main; code = main(); {}; sys.exit(code)"
ASKED = ("run", "package", "Hello", "--backend", "onnx", *SHORT)


def program(*, telemetry: bool, then: str = "0") -> list[str]:
    """A Python program that runs `edgevlm` and then does `then`; with `telemetry` it imports onnxruntime first."""
    return [sys.executable, "-c", EARLY.format(", onnxruntime" if telemetry else "", then), *ASKED]


@pytest.fixture(scope="module")
def started_first(exported: dict[str, Traced], place: Path) -> Traced:
    """The negative control: a program that imports onnxruntime before edgevlm, where that build has telemetry."""
    found = trace(program(telemetry=True), place / "work", place / "other-home")
    assert found.exit_code == 0, found.err
    if not found.outside(place / "work", place / "other-home" / ".cache" / "edgevlm"):
        pytest.skip("this build of onnxruntime has no telemetry")
    return found


def test_telemetry_that_a_program_started_first_is_found_and_told(started_first: Traced, place: Path) -> None:
    assert any(name.endswith("onnxruntime.db") for name in started_first.outside(place / "work"))
    assert "before edgevlm could switch its telemetry off" in started_first.err


@pytest.mark.slow
def test_a_process_that_lives_long_looks_nothing_up(started_first: Traced, place: Path) -> None:
    """onnxruntime's telemetry looks its host up some 10 seconds after the start."""
    wait = "__import__('time').sleep(30)"
    check(trace(program(telemetry=False, then=wait), place / "work", place / "home"), place)
    with_telemetry = trace(program(telemetry=True, then=wait), place / "work", place / "other-home")
    assert any("resolv.conf" in line or "connect" in line for line in with_telemetry.reached)


@pytest.mark.parametrize(
    ("code", "reached"),
    [
        ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "AF_INET"),
        ("import socket\ntry: socket.getaddrinfo('example.org', 443)\nexcept OSError: pass", "resolv.conf"),
        ("import socket; a, b = socket.socketpair(); a.send(b'x')", ""),
    ],
)
def test_what_reaches_a_network_is_seen(code: str, reached: str, place: Path) -> None:
    found = trace([sys.executable, "-c", code], place / "work", place / "third-home")
    assert found.exit_code == 0, found.err
    assert bool(found.reached) == bool(reached) and reached in " ".join(found.reached)


def test_what_is_written_is_seen(place: Path) -> None:
    code = "import os; os.makedirs(os.path.expanduser('~/.a/b')); open('x', 'w'); open('/dev/null', 'w'); open('x')"
    found = trace([sys.executable, "-c", code], place / "work", place / "fourth-home")
    assert found.outside(place / "work") == [str(place / "fourth-home" / ".a"), str(place / "fourth-home" / ".a" / "b")]
    assert place / "work" / "x" in found.written


def test_the_android_part_asks_for_nothing() -> None:
    """No permission, so no network; no backup of conversations to a cloud; no class of the network in the sources."""
    android = Path(__file__).resolve().parents[2] / "android_demo"
    manifests = [path.read_text(encoding="utf-8") for path in android.rglob("AndroidManifest.xml")]
    assert len(manifests) >= 2
    assert not any("uses-permission" in text for text in manifests)
    assert all('android:allowBackup="false"' in text for text in manifests if "<application" in text)
    sources = [path for path in android.rglob("*.java") if "java.net" in path.read_text(encoding="utf-8")]
    assert len(list(android.rglob("*.java"))) > 20 and sources == []
