"""The arm64 engine under emulation: the same tokens as x86-64's, on every CPU and with every variant."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import NativeLibrary, host_arch, library_path
from edgevlm.cancel import CancelToken
from edgevlm.errors import BackendError, UsageError
from edgevlm.model import load
from edgevlm.package import Package, open_package
from edgevlm.tokenizer import Tokenizer
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.tvm_schedules.arm64 import emulator
from tests.weights import demo_checkpoint, smollm2_135m
from tvm_schedules.compile import compile_package

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it"),
    pytest.mark.skipif(host_arch() != "x86_64", reason="compares arm64 with an x86-64 host"),
]

CPUS = ("max", "cortex-a76", "cortex-a53")
N_NEW = 12
SIZES = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 64}  # fmt: skip


@functools.cache
def engine_main(library: Path) -> Path:
    """engine_main.c linked with `library`."""
    target = library.with_name(f"engine_main-{library.stem}")
    more = [str(library), "-Wl,-rpath,$ORIGIN", "-Wl,--allow-shlib-undefined"]
    emulator.compile_program([emulator.HERE / "engine_main.c"], target, more)
    return target


def run_engine(
    cpu: str, directory: Path, segments: Sequence[str], *, variant: str = "-", threads: int = 2, logits: str = "-",
    n_new: int = N_NEW, android: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs engine_main on an emulated CPU."""
    command = [emulator.qemu(), "-cpu", cpu, "-L", emulator.SYSROOT]
    if android:
        command += ["-E", f"LD_LIBRARY_PATH={emulator.stand_ins()}"]
    command.append(str(engine_main(emulator.android_library() if android else emulator.library())))
    arguments = [str(directory), variant, str(threads), str(n_new), logits, *segments]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def tokens_of(result: subprocess.CompletedProcess[str]) -> tuple[str, list[int]]:
    """(variant, tokens) that engine_main printed."""
    assert result.returncode == 0, result.stderr
    variant, *lines = result.stdout.split()
    return variant, [int(line) for line in lines]


def ids_segment(ids: np.ndarray) -> str:
    return "ids:" + ",".join(map(str, ids.tolist()))


def greedy_on_host(package: Package, ids: np.ndarray, n_new: int = N_NEW) -> tuple[list[int], np.ndarray]:
    """Tokens and their logits (n_new, vocab) of this machine's engine."""
    session = NativeSession(package, context=len(ids) + n_new)
    logits = [session.prefill([ids], np.arange(len(ids)))]
    tokens = [int(logits[0].argmax())]
    while len(tokens) < n_new:
        logits.append(session.step(tokens[-1], len(ids) + len(tokens) - 1))
        tokens.append(int(logits[-1].argmax()))
    session.close()
    return tokens, np.array(logits)


@pytest.fixture(scope="module", params=["w4g32", "w4g64z", "w8"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    emulator.qemu()
    directory = tmp_path_factory.mktemp("arm64")
    source = tiny.make_llama(directory / "checkpoint", **SIZES)
    path = export_package(source, directory / "package", ExportOptions(scheme=request.param, verify=False))
    for arch in ("x86_64", "arm64"):
        compile_package(path, arch, probes.text()[:2000])
    return open_package(path)


def prompt(package: Package) -> np.ndarray:
    return np.random.default_rng(3).integers(0, package.manifest.decoder.vocab_size, 150)


@pytest.mark.parametrize("cpu", CPUS)
def test_same_tokens_as_x86(package: Package, cpu: str, tmp_path: Path) -> None:
    ids = prompt(package)
    expected, expected_logits = greedy_on_host(package, ids)
    file = tmp_path / "logits"
    result = run_engine(cpu, package.path / "lib/arm64", [ids_segment(ids)], logits=str(file))
    variant, tokens = tokens_of(result)
    assert emulator.CPUS[variant] == cpu
    assert tokens == expected
    if NativeLibrary(library_path()).variants()[0] == "avx512vnni":  # sums of 16 lanes in the same order: the same bits
        found = np.fromfile(file, np.float32).reshape(expected_logits.shape)
        np.testing.assert_array_equal(found, expected_logits)
    other = run_engine(cpu, package.path / "lib/arm64", [ids_segment(ids[::-1])])
    assert tokens_of(other)[1] != expected  # negative control: another prompt, other tokens


def test_variants_and_threads_give_the_same_bits(package: Package, tmp_path: Path) -> None:
    results = []
    for variant, threads in (("i8mm", 1), ("i8mm", 3), ("dotprod", 2), ("neon", 2)):
        file = tmp_path / "logits"
        segments = [ids_segment(prompt(package))]
        result = run_engine("max", package.path / "lib/arm64", segments, variant=variant, threads=threads,
                            logits=str(file), n_new=4)  # fmt: skip
        assert tokens_of(result)[0] == variant
        results.append(np.fromfile(file, np.float32))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_the_library_for_android(package: Package, cpu: str, tmp_path: Path) -> None:
    """Its own code on glibc in bionic's place: the same bits; a wrong file gives its message, from errno."""
    segments = [ids_segment(prompt(package))]
    results = []
    for android in (False, True):
        file = tmp_path / "logits"
        result = run_engine(cpu, package.path / "lib/arm64", segments, logits=str(file), n_new=4, android=android)
        results.append((tokens_of(result), file.read_bytes()))
    assert results[0] == results[1]
    missing = run_engine(cpu, tmp_path / "nothing", segments, android=True)
    assert missing.returncode == 3
    assert "No such file or directory" in missing.stderr


LACKING = [("cortex-a76", "i8mm"), ("cortex-a53", "i8mm"), ("cortex-a53", "dotprod")]


@pytest.mark.parametrize(("cpu", "variant"), LACKING)
def test_a_variant_that_the_cpu_lacks_is_refused(package: Package, cpu: str, variant: str) -> None:
    result = run_engine(cpu, package.path / "lib/arm64", ["ids:1"], variant=variant)
    assert result.returncode == BackendError.exit_code
    assert f"lacks a feature that the variant '{variant}' needs" in result.stderr
    unknown = run_engine(cpu, package.path / "lib/arm64", ["ids:1"], variant="sve")
    assert unknown.returncode == UsageError.exit_code


def test_the_other_architecture_is_refused(package: Package) -> None:
    result = run_engine("max", package.path / "lib/x86_64", ["ids:1"])
    assert result.returncode == 3
    assert "compile the package for this target" in result.stderr


class Recorded:
    """A conversation on this machine's engine: what engine_main needs to repeat it, and what came of it."""

    def __init__(
        self, package: Package, questions: Sequence[str], picture: Path, directory: Path, n_new: int = N_NEW
    ) -> None:
        self.segments: list[str] = []
        self.files: list[Path] = []
        self.features: list[np.ndarray] = []
        self.tokens: list[int] = []
        self.answers: list[str] = []
        pixels: list[np.ndarray] = []
        with load(package.path, backend="native") as model:
            session = model.session
            encode, prefill, step, truncate = session.encode, session.prefill, session.step, session.truncate

            def encode_recorded(tiles: np.ndarray, cancel: CancelToken | None = None) -> np.ndarray:
                pixels.append(np.array(tiles, np.float32))
                self.features.append(encode(tiles, cancel))
                return self.features[-1]

            def prefill_recorded(
                segments: Sequence[np.ndarray], positions: np.ndarray, cancel: CancelToken | None = None
            ) -> np.ndarray:
                for segment in segments:
                    if segment.ndim == 1:
                        self.segments.append(ids_segment(segment))
                        continue
                    tiles, per_tile = np.concatenate(pixels), self.features[0].shape[1]
                    n_tiles = len(segment) // per_tile
                    self.files.append(directory / f"tiles{len(self.files)}")
                    self.files[-1].write_bytes(tiles[:n_tiles].tobytes())
                    self.segments.append(f"tiles:{self.files[-1]}")
                    pixels[:] = [tiles[n_tiles:]]
                return said(prefill(segments, positions, cancel))

            def step_recorded(token: int, position: int, cancel: CancelToken | None = None) -> np.ndarray:
                assert token == self.tokens[-1]
                return said(step(token, position, cancel))

            def truncate_recorded(n_tokens: int) -> None:
                self.segments.append(f"keep:{n_tokens}")
                truncate(n_tokens)

            def said(logits: np.ndarray) -> np.ndarray:
                self.tokens.append(int(logits.argmax()))
                return logits

            with pytest.MonkeyPatch.context() as patch:
                for call in (encode_recorded, prefill_recorded, step_recorded, truncate_recorded):
                    patch.setattr(session, call.__name__.removesuffix("_recorded"), call)
                conversation = model.chat()
                conversation.attach(picture)
                for question in questions:
                    before = len(self.tokens)
                    chunks = conversation.send(question, max_new_tokens=n_new, temperature=0)
                    self.answers.append("".join(chunk.text for chunk in chunks))
                    self.segments.append(f"say:{len(self.tokens) - before}")


def check_turns(package: Package, recorded: Recorded, cpu: str, least_cosine: float = 0.999) -> None:
    """The emulated engine encodes the same picture to nearly the same features and gives the same first answer; with
    this machine's features, whose last digits are not arm64's, it repeats every turn."""
    directory = package.path / "lib/arm64"
    expected = np.concatenate(recorded.features)
    first = next(i for i, segment in enumerate(recorded.segments) if segment.startswith("say:")) + 1
    variant, tokens = tokens_of(run_engine(cpu, directory, recorded.segments[:first], n_new=0))
    assert variant in emulator.CPUS
    assert tokens == recorded.tokens[: len(tokens)] and len(tokens) == int(recorded.segments[first - 1][4:])
    found = np.concatenate([np.fromfile(f"{file}.features", np.float32) for file in recorded.files])
    found = found.reshape(expected.shape)
    cosines = (found * expected).sum(axis=2) / np.linalg.norm(found, axis=2) / np.linalg.norm(expected, axis=2)
    assert cosines.mean() > 0.9995 and cosines.min() > least_cosine
    if len(recorded.answers) == 1 or NativeLibrary(library_path()).variants()[0] != "avx512vnni":
        return  # arm64 has AVX-512's bits, not AVX2's
    rows = list(expected)
    segments = []
    for segment in recorded.segments:
        kind, _, value = segment.partition(":")
        if kind == "tiles":
            n_tiles = np.fromfile(f"{value}.features", np.float32).size // expected[0].size
            Path(f"{value}.host").write_bytes(np.stack(rows[:n_tiles]).tobytes())
            del rows[:n_tiles]
        segments.append(f"features:{value}.host" if kind == "tiles" else segment)
    _, tokens = tokens_of(run_engine(cpu, directory, segments, n_new=0))
    assert tokens == recorded.tokens


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Recorded]:
    """A tiny bluelm_v with a picture and two questions."""
    emulator.qemu()
    directory = tmp_path_factory.mktemp("seeing")
    source = tiny.make_bluelm_v(directory / "checkpoint", vision={"hidden_size": 128}, text=SIZES)
    options = ExportOptions(scheme="w4g32", max_tiles=1, verify=False)
    path = export_package(source, directory / "package", options)
    for arch in ("x86_64", "arm64"):
        compile_package(path, arch, probes.text()[:2000])
    picture = emulator.ROOT / "assets/blue-rectangle.png"
    return open_package(path), Recorded(open_package(path), ["What is this?", "And its color?"], picture, directory)


@pytest.mark.parametrize("cpu", CPUS)
def test_pictures_are_seen_alike(seeing: tuple[Package, Recorded], cpu: str) -> None:
    package, recorded = seeing
    assert any(segment.startswith("tiles:") for segment in recorded.segments)
    check_turns(package, recorded, cpu)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Recorded]:
    """The demo's model and its question."""
    emulator.qemu()
    directory = tmp_path_factory.mktemp("demo")
    path = export_package(str(demo_checkpoint()), directory / "package", ExportOptions(max_tiles=1, verify=False))
    for arch in ("x86_64", "arm64"):
        compile_package(path, arch, probes.text())
    picture = emulator.ROOT / "assets/blue-rectangle.png"
    return open_package(path), Recorded(open_package(path), ["What color is the shape?"], picture, directory)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_the_demo_answers_alike(demo: tuple[Package, Recorded], cpu: str) -> None:
    """The Linux library; the phone's two are asked in tests/android_demo/test_arm64_jni.py."""
    package, recorded = demo
    assert "blue" in recorded.answers[0].lower()
    check_turns(package, recorded, cpu)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_a_whole_conversation_is_alike(cpu: str, tmp_path: Path) -> None:
    """The demo's package as it is exported by default, all ten tiles of a picture, three questions.

    The tower's features agree to a cosine only (its attention has 7-bit probabilities here), so the questions are of
    the kind that the model answers with a margin.
    """
    emulator.qemu()
    path = export_package(str(demo_checkpoint()), tmp_path / "package", ExportOptions(verify=False))
    for arch in ("x86_64", "arm64"):
        compile_package(path, arch, probes.text())
    questions = ["What color is the star?", "What shape is gray?", "Describe the picture."]
    recorded = Recorded(open_package(path), questions, emulator.ROOT / "assets/three-shapes.png", tmp_path, n_new=24)
    assert recorded.answers[:2] == ["gray", "star"] and len(recorded.tokens) >= 9
    # The worst of 640 tokens has .9986 (7-bit probabilities against 8-bit, 2026-11-27).
    check_turns(open_package(path), recorded, cpu, least_cosine=0.997)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """SmolLM2-135M in w4g32, compiled for both architectures."""
    emulator.qemu()
    path = tmp_path_factory.mktemp("smollm2") / "package"
    export_package(str(smollm2_135m()), path, ExportOptions(scheme="w4g32", verify=False))
    for arch in ("x86_64", "arm64"):
        compile_package(path, arch, probes.text())
    return open_package(path)


@pytest.mark.weights
@pytest.mark.parametrize("cpu", ["max", "cortex-a53"])
def test_a_real_model_answers(smollm2: Package, cpu: str) -> None:
    tokenizer = Tokenizer.open(smollm2)
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = np.array(tokenizer.encode(text, allow_special=True), np.int64)
    expected, _ = greedy_on_host(smollm2, ids)
    _, tokens = tokens_of(run_engine(cpu, smollm2.path / "lib/arm64", [ids_segment(ids)]))
    assert tokens == expected
    assert "Paris" in tokenizer.decode(tokens)
