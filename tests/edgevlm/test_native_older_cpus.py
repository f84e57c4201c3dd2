"""The x86-64 library on processors that lack something, under qemu-x86_64: exit 8 below AVX2, never a SIGILL."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import host_arch, library_path
from edgevlm.package import Package, open_package
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tests.edgevlm.engine_build import ENGINE, compile_c
from tvm_schedules.compile import compile_package

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it"),
    pytest.mark.skipif(host_arch() != "x86_64", reason="the library is another architecture's"),
    pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="qemu-x86_64 is missing; `make deps` installs it"),
]

ENGINE_MAIN = Path(__file__).parents[1] / "tvm_schedules" / "arm64" / "engine_main.c"
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
N_NEW = 6
AVX2_ADDITION = """
#include <immintrin.h>
int main(int argc, char **argv) {
    (void)argv;
    const __m256i sum = _mm256_add_epi32(_mm256_set1_epi32(argc), _mm256_set1_epi32(argc));
    return _mm256_extract_epi32(sum, 3) != 2 * argc;
}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    directory = tmp_path_factory.mktemp("older")
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 1}
    source = tiny.make_llama(directory / "checkpoint", **sizes)
    path = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(path, "x86_64", probes.text()[:2000])
    return open_package(path)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """engine_main.c linked with this machine's library."""
    library = library_path().resolve()
    target = tmp_path_factory.mktemp("program") / "engine_main"
    return compile_c(target, [ENGINE_MAIN, library], "-O1", f"-I{ENGINE}", f"-Wl,-rpath,{library.parent}")


def run(cpu: str, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["qemu-x86_64", "-cpu", cpu, *map(str, command)], capture_output=True, text=True, timeout=600, check=False
    )


def run_engine(cpu: str, program: Path, package: Package, variant: str = "-") -> subprocess.CompletedProcess[str]:
    ids = "ids:" + ",".join(map(str, IDS))
    return run(cpu, program, package.path / "lib/x86_64", variant, 2, N_NEW, "-", ids)


def test_the_emulated_processors_differ(tmp_path: Path) -> None:
    """The control of what follows: an instruction of AVX2 ends a program on one of them."""
    source = tmp_path / "add.c"
    source.write_text(AVX2_ADDITION)
    program = compile_c(tmp_path / "add", [source], "-mavx2")
    assert run("SandyBridge", program).returncode in (-signal.SIGILL, 128 + signal.SIGILL)
    assert run("Haswell", program).returncode == 0


@pytest.mark.parametrize("cpu", ["Nehalem", "SandyBridge"])
@pytest.mark.parametrize("variant", ["-", "avx2", "avx512vnni"])
def test_below_avx2_the_engine_refuses(cpu: str, variant: str, program: Path, package: Package) -> None:
    result = run_engine(cpu, program, package, variant)
    assert result.returncode == 8
    wanted = "below the oldest variant of this library ('avx2')" if variant == "-" else f"the variant '{variant}' needs"
    assert wanted in result.stderr


def test_below_avx2_the_command_ends_with_8(package: Package) -> None:
    """With AVX, which numpy takes where it is."""
    result = run("SandyBridge", sys.executable, "-m", "edgevlm", "run", package.path, "Hi", "--backend", "native")
    assert result.returncode == 8, result.stderr
    assert "edgevlm: error: this CPU is below the oldest variant" in result.stderr


def test_avx2_alone_gives_the_same_tokens(program: Path, package: Package) -> None:
    result = run_engine("Haswell", program, package)
    assert result.returncode == 0, result.stderr
    variant, *words = result.stdout.split()
    assert variant == "avx2"
    session = NativeSession(package, context=len(IDS) + N_NEW, variant="avx2")
    tokens = [int(session.prefill([np.array(IDS)], np.arange(len(IDS))).argmax())]
    while len(tokens) < N_NEW:
        tokens.append(int(session.step(tokens[-1], len(IDS) + len(tokens) - 1).argmax()))
    session.close()
    assert [int(word) for word in words] == tokens
