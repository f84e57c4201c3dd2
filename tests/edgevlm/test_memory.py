"""Memory: the estimate before loading, what the machine has left, and the refusal with the numbers."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm.errors import BackendError
from edgevlm.machine_memory import available_bytes, peak_memory_bytes, resident_bytes, return_freed_memory
from edgevlm.memory import LIBRARY_BYTES, MemoryEstimate, check_memory, estimate_memory
from edgevlm.model import load
from edgevlm.package import open_package
from tests.edgevlm.tiny_package import HEAD_DIM, KV_HEADS, LAYERS

GIB = 1 << 30


def test_the_cache_grows_with_the_context_and_nothing_else_shrinks(tiny: Path) -> None:
    package = open_package(tiny)
    small, large = estimate_memory(package, 100), estimate_memory(package, 300)
    assert small.kv_bytes == 2 * LAYERS * KV_HEADS * HEAD_DIM * 100 * 4
    assert large.kv_bytes == 3 * small.kv_bytes
    assert large.language_activations_bytes > small.language_activations_bytes
    assert large.vision_activations_bytes == small.vision_activations_bytes > 0
    sizes = {entry.path: entry.size_bytes for entry in package.manifest.files}
    assert small.table_bytes == sizes["onnx/embed_tokens.onnx_data"]
    assert small.loading_bytes == sizes["onnx/decoder_model_merged.onnx_data"] >= small.packed_bytes > 0
    assert small.vision_bytes > sizes["onnx/vision_encoder.onnx_data"]


def test_loading_and_running_are_not_added_up() -> None:
    running = MemoryEstimate(1, 10, 100, 1000, 2000, 20, 0, 0, 0)
    assert running.new_bytes == LIBRARY_BYTES + 10 + 100 + 2020
    loading = replace(running, kv_bytes=500)
    assert loading.new_bytes == LIBRARY_BYTES + 10 + 100 + 1000
    assert "while it is packed" in loading.describe() and "key-value" in running.describe()


def test_a_language_model_has_no_tower_to_count(tiny_text: Path) -> None:
    estimate = estimate_memory(open_package(tiny_text), 100)
    assert estimate.vision_activations_bytes == estimate.vision_bytes == estimate.picture_bytes == 0


def test_pictures_that_are_kept_are_counted_at_their_limit(tiny: Path) -> None:
    package = open_package(tiny)
    estimate = estimate_memory(package, 100)
    with load(tiny, context=100) as model:
        assert model.encoder is not None and model.encoder.cache_bytes == estimate.picture_bytes > 0
    without = replace(estimate, picture_bytes=0)
    assert estimate.running_bytes - without.running_bytes == estimate.picture_bytes
    assert "pictures" in estimate.describe() and "pictures" not in without.describe()


def test_a_budget_is_checked_with_the_numbers(tiny: Path) -> None:
    package = open_package(tiny)
    estimate = check_memory(package, 128, 8 * GIB)
    assert estimate.total_bytes > (resident_bytes() or 0)
    with pytest.raises(BackendError, match=r"\d+ MB are needed at a context of 128 tokens .*budget is 10 MB") as caught:
        check_memory(package, 128, 10_000_000)
    assert caught.value.exit_code == 8
    assert check_memory(package, 128, estimate.total_bytes + (8 << 20))


def test_what_the_machine_has_left_is_checked(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.memory.available_bytes", lambda: 5_000_000)
    with pytest.raises(BackendError, match="5 MB are available"):
        check_memory(open_package(tiny), 128, None)
    monkeypatch.setattr("edgevlm.memory.available_bytes", lambda: None)
    check_memory(open_package(tiny), 128, None)


def machine(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root / "proc", root / "cgroup"


MEMINFO = "MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 4 * GIB),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/user/app\n",
                "cgroup/user/app/memory.max": "max\n",
                "cgroup/user/app/memory.current": "5\n",
                "cgroup/user/memory.max": f"{2 * GIB}\n",
                "cgroup/user/memory.current": f"{GIB}\n",
                "cgroup/user/memory.stat": f"anon 1\ninactive_file {GIB // 2}\n",
            },
            GIB + GIB // 2,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "5:cpu,memory:/docker/x\n",
                "cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}",
                "cgroup/memory/memory.usage_in_bytes": f"{GIB}",
            },
            2 * GIB,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
                "cgroup/memory/memory.usage_in_bytes": "1",
            },
            4 * GIB,
        ),
        ({"proc/meminfo": "nonsense", "cgroup/memory.max": "12x", "cgroup/memory.current": "1"}, None),
        ({"cgroup/memory.max": "100", "cgroup/memory.current": "900"}, 0),
    ],
)
def test_available_memory(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    assert available_bytes(*machine(tmp_path, files)) == expected


def test_the_peak_is_at_least_what_is_held() -> None:
    held = resident_bytes()
    assert held is not None and peak_memory_bytes() >= held > 1 << 20
    block = bytearray(64 << 20)
    assert peak_memory_bytes() >= held + (48 << 20)
    del block
    assert peak_memory_bytes() >= held + (48 << 20)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no malloc_trim")
def test_freed_blocks_go_back_to_the_system() -> None:
    """Blocks below one that is kept: freeing alone gives nothing back, which is the negative control."""
    blocks = [b"x" * 100_000 for _ in range(800)]
    full = resident_bytes() or 0
    kept = blocks.pop()
    del blocks
    assert (resident_bytes() or 0) > full - (20 << 20)
    return_freed_memory()
    assert (resident_bytes() or 0) < full - (60 << 20)
    assert len(kept) == 100_000
