"""The engine's C files under the address, undefined-behaviour and thread sanitizers, fed random and damaged input."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from edgevlm.backends.native_library import host_arch
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.edgevlm.engine_build import ENGINE, compile_c
from tvm_schedules.compile import compile_package

SOURCES = Path(__file__).parent / "sanitizers"
ADDRESS = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-g", "-O1", "-fsanitize=thread")


FILES = {
    "fuzz_pictures": ["cpu", "error", "image", "resample", "sampler", "sine", "tiling"],
    "fuzz_plan": [file.stem for file in ENGINE.glob("*.c")],
    "race_pool": ["affinity", "threads"],
}
"""What is compiled into each program."""


def build(directory: Path, name: str, *flags: str) -> Path:
    """Returns the program of tests/edgevlm/sanitizers/`name`.c; skips when the compiler has no such sanitizer."""
    probe = directory / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    sanitizer = [flag for flag in flags if "sanitize" in flag]
    if subprocess.run(["cc", *sanitizer, "-o", directory / "probe", probe], capture_output=True).returncode:
        pytest.skip(f"this compiler has no {sanitizer[0]}")
    return compile_c(directory / name, program_sources(name), *flags, f"-I{SOURCES}")


def program_sources(name: str) -> list[Path]:
    return [*(ENGINE / f"{file}.c" for file in sorted(FILES[name])), SOURCES / f"{name}.c"]


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs with a fixed address layout, which the thread sanitizer of GCC 12 needs on newer kernels."""
    command = ["setarch", "-R", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def counts(result: subprocess.CompletedProcess[str]) -> list[int]:
    assert result.returncode == 0, result.stderr[-3000:]
    return [int(word) for word in result.stdout.split()]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of plan.bin and weights.bin of a tiny llama."""
    if host_arch() != "x86_64":
        pytest.skip("the plan is compiled for x86_64")
    directory = tmp_path_factory.mktemp("plans")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    source = tiny.make_llama(directory / "checkpoint", hidden_size=128, intermediate_size=192, **heads)
    path = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(path, "x86_64", probes.text()[:2000])
    return path / "lib" / "x86_64"


@pytest.mark.parametrize("trials", [1_500, pytest.param(40_000, marks=pytest.mark.slow)])
def test_pictures_and_samplers(trials: int, tmp_path: Path) -> None:
    prepared, refused_plans, refused_tiles, drawn, refused_draws, _ = counts(
        run(build(tmp_path, "fuzz_pictures", *ADDRESS), trials)
    )
    assert prepared > trials / 10 and drawn > trials / 10
    assert min(refused_plans, refused_tiles, refused_draws) > trials / 50


def test_a_buffer_shorter_than_told_is_seen(tmp_path: Path) -> None:
    """Negative control: one byte."""
    result = run(build(tmp_path, "fuzz_pictures", *ADDRESS, "-DLIE"), 1_000)
    assert result.returncode != 0 and "heap-buffer-overflow" in result.stderr


@pytest.mark.emulated
@pytest.mark.parametrize("compiler", ["aarch64-linux-gnu-gcc", "clang-19 --target=aarch64-linux-gnu -fuse-ld=lld"])
def test_pixels_and_tokens_on_arm64(compiler: str, tmp_path: Path) -> None:
    """Plans, pixels and tokens of 600 random calls have the same digest on arm64, fused multiply-adds or not."""
    for tool in (compiler.split()[0], "qemu-aarch64"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed; see make deps")
    sources = program_sources("fuzz_pictures")
    include = f"-I{SOURCES}"
    host = compile_c(tmp_path / "host", sources, "-O2", include)
    arm64 = compile_c(tmp_path / "arm64", sources, "-O2", "-static", include, compiler=compiler)
    command = ["qemu-aarch64", arm64, "600"]
    found = counts(subprocess.run(command, capture_output=True, text=True, timeout=600))
    assert found == counts(run(host, 600))
    assert found != counts(run(host, 600, 2))  # negative control: another seed


@pytest.mark.parametrize("trials", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_plans(trials: int, compiled: Path, tmp_path: Path) -> None:
    refused, ran = counts(run(build(tmp_path, "fuzz_plan", *ADDRESS), compiled, trials, 1))
    assert refused > trials / 4 and ran > trials / 10


def test_threads_of_a_context(compiled: Path, tmp_path: Path) -> None:
    """Plans run on three threads while a fourth cancels."""
    result = run(build(tmp_path, "fuzz_plan", *THREAD), compiled, 24, 3)
    refused, ran = counts(result)
    assert refused + ran == 24 and ran >= 3


def test_threads_of_the_pool(tmp_path: Path) -> None:
    assert counts(run(build(tmp_path, "race_pool", *THREAD), 400)) == [80_200]


def test_a_race_is_seen(tmp_path: Path) -> None:
    """Negative control: one number that all threads add to."""
    result = run(build(tmp_path, "race_pool", *THREAD, "-DRACE"), 400)
    assert result.returncode != 0 and "data race" in result.stderr
