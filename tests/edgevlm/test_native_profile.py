"""Kernel times and machine limits of the native backend, and the roofline drawn from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import library_path
from edgevlm.backends.native_tower import NativeTower
from edgevlm.bench import measure
from edgevlm.errors import UsageError
from edgevlm.package import open_package
from edgevlm.roofline import check_plot, draw_roofline
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tvm_schedules.compile import compile_package

pytestmark = pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it")
LAYERS, HIDDEN, WIDE = 2, 128, 192
PATCH_PX = 8


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("profile")
    sizes = {"hidden_size": HIDDEN, "intermediate_size": WIDE}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    source = tiny.make_llama(directory / "checkpoint", **sizes, **heads)
    path = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(path, "x86_64", probes.text()[:1000])
    return path


@pytest.fixture(scope="module")
def picture_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    text = {"hidden_size": HIDDEN, "intermediate_size": WIDE, "num_attention_heads": 2, "num_key_value_heads": 1}
    source = tiny.make_bluelm_v(directory / "checkpoint", vision={"hidden_size": HIDDEN}, text=text)
    path = export_package(source, directory / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(path, "x86_64", probes.text()[:1000])
    return path


def test_counts_operations_exactly(package: Path) -> None:
    """The linears of one token, counted by hand from the shapes."""
    session = NativeSession(open_package(package), context=128)
    session.profile(on=True)
    session.step(1, 0)
    kernels = {kernel.kernel: kernel for kernel in session.kernel_times()}
    swiglu = kernels["gemm_w4g32_swiglu_decode"]
    assert swiglu.calls == LAYERS
    assert swiglu.operations == LAYERS * 2 * HIDDEN * 2 * WIDE
    assert swiglu.bytes == LAYERS * HIDDEN * 2 * WIDE * (0.5 + 2 / 32)
    attend = kernels["attend_e64_k8v8"]
    assert attend.calls == LAYERS
    assert all(kernel.seconds > 0 for kernel in kernels.values())
    session.profile(on=False)
    session.step(1, 1)
    assert session.kernel_times() == ()


def test_counts_the_tower_exactly(picture_package: Path) -> None:
    """Attention over three tiles counts three times that over one; the language model's profile stays empty."""
    session = NativeSession(open_package(picture_package), context=128)
    assert isinstance(session.tower, NativeTower)
    session.tower.profile(on=True)
    info = session.tower.info
    session.encode(np.zeros((1, info.n_channels, info.tile_px, info.tile_px), np.float32))
    kernels = {kernel.kernel: kernel for kernel in session.tower.kernel_times()}
    attend = next(kernel for name, kernel in kernels.items() if name.startswith("attend_all"))
    assert attend.calls == LAYERS
    tokens = (info.tile_px // PATCH_PX) ** 2 + 1  # and the CLS token
    assert attend.operations == LAYERS * 4 * HIDDEN * tokens**2
    once = attend.operations
    session.encode(np.zeros((2, info.n_channels, info.tile_px, info.tile_px), np.float32))
    again = next(kernel for kernel in session.tower.kernel_times() if kernel.kernel.startswith("attend_all"))
    assert again.operations == 3 * once
    assert session.kernel_times() == ()


def test_limits_are_above_what_kernels_reach(package: Path) -> None:
    """A limit in the wrong unit, or of one thread for all, would lie below a product's own rate, or absurdly above."""
    session = NativeSession(open_package(package), context=192)
    session.profile(on=True)
    session.prefill([np.arange(128) % 50], np.arange(128))
    products = [kernel for kernel in session.kernel_times() if kernel.kernel.startswith("gemm")]
    fastest = max(kernel.operations / kernel.seconds / 1e9 for kernel in products)
    limits = session.machine_limits()
    assert fastest < limits.giga_operations_per_s < 1e5
    assert 0.1 < limits.giga_bytes_per_s < 1e4


def test_benchmark_and_plot(package: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result = measure(package, n_prompt_tokens=40, n_new_tokens=3, repeat=1, load_arguments={"backend": "native"})
    assert {kernel.stage for kernel in result.kernels} == {"prefill", "decode"}
    for stage in ("prefill", "decode"):
        assert np.isclose(sum(kernel.share for kernel in result.kernels if kernel.stage == stage), 1)
    picture = tmp_path / "roof.png"
    draw_roofline(result, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plot_names_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"roof\.png"):
        check_plot(tmp_path / "roof.pdf")
    with pytest.raises(UsageError, match="does not exist"):
        check_plot(tmp_path / "missing" / "roof.png")
