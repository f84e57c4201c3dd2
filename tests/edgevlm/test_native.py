"""The native engine against onnxruntime on the same codes, and against itself: threads, variants, rewinds, damage."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.native import NativeSession
from edgevlm.backends.native_library import ModelOptions, NativeLibrary, host_arch, library_path
from edgevlm.backends.native_library import Segment as NativeSegment
from edgevlm.backends.onnx import OnnxSession
from edgevlm.backends.ort import cancellable
from edgevlm.cli.main import main
from edgevlm.errors import BackendError, ContextFullError, PackageError, UnsupportedModelError, UsageError
from edgevlm.model import load
from edgevlm.package import Package, open_package
from export import probes
from export.pipeline import ExportOptions, export_package
from tests import tiny
from tvm_schedules.compile import compile_package

pytestmark = pytest.mark.skipif(not library_path().exists(), reason="no native library here; `make native` builds it")

SIZES = {"hidden_size": 128, "intermediate_size": 192}
WIDE_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
CASES: dict[str, tuple[Callable[..., Path], str]] = {
    "llama-w4g32": (tiny.make_llama, "w4g32"),
    "llama-w4g64z": (tiny.make_llama, "w4g64z"),
    "qwen2-w8": (tiny.make_qwen2, "w8"),
}
N_LAYERS = 2
FLOAT_CACHE = [(16, 16)] * N_LAYERS
LENGTH = 300


@pytest.fixture(scope="module", params=CASES)
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Package:
    make, scheme = CASES[request.param]
    directory = tmp_path_factory.mktemp("native")
    heads = WIDE_HEADS if make is tiny.make_llama else {"num_attention_heads": 2, "num_key_value_heads": 1}
    source = make(directory / "checkpoint", **SIZES, **heads)
    path = export_package(source, directory / "package", ExportOptions(scheme=scheme, verify=False))
    compile_package(path, "x86_64", probes.text()[:2000])
    return open_package(path)


def tokens(package: Package) -> np.ndarray:
    vocab = package.manifest.decoder.vocab_size
    return np.random.default_rng(3).integers(0, vocab, LENGTH)


def test_logits_equal_onnxruntime(package: Package) -> None:
    """Same codes, activations rounded by the same rule: what differs is the order of float sums."""
    ids = tokens(package)
    native = NativeSession(package, context=400, kv_bits=FLOAT_CACHE)
    reference = OnnxSession(package, context=400)
    expected = [reference.prefill([ids[:-10]], np.arange(LENGTH - 10))]
    found = [native.prefill([ids[:-10]], np.arange(LENGTH - 10))]
    for place in range(LENGTH - 10, LENGTH):
        expected.append(reference.step(int(ids[place]), place))
        found.append(native.step(int(ids[place]), place))
    difference = np.linalg.norm(np.array(found) - expected) / np.linalg.norm(expected)
    assert difference < 2e-2
    shifted = NativeSession(package, context=400, kv_bits=FLOAT_CACHE)  # negative control: positions off by a few
    other = shifted.prefill([ids[:-10]], np.arange(LENGTH - 10)[::-1].copy())
    assert np.linalg.norm(other - expected[0]) / np.linalg.norm(expected[0]) > 2e-2


def test_threads_do_not_change_a_bit(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.machine_cpus.machine_cpus", lambda: 3)
    ids = tokens(package)
    results = []
    for n_threads in (1, 2, 3):
        session = NativeSession(package, context=400, threads=n_threads)
        results.append(session.prefill([ids], np.arange(LENGTH)))
        results.append(session.step(5, LENGTH))
    for i in range(2, len(results)):
        np.testing.assert_array_equal(results[i], results[i % 2])


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (4, 8), (4, 4), (16, 16)], ids=str)
def test_how_a_prompt_is_split_does_not_change_a_bit(package: Package, bits: tuple[int, int]) -> None:
    """Rows computed one at a time, few or many together, over one unit of keys and several: the same logits."""
    ids, places = tokens(package), np.arange(LENGTH)
    for variant in NativeLibrary(library_path()).variants():
        session = NativeSession(package, context=400, kv_bits=[bits] * N_LAYERS, variant=variant)
        whole = session.prefill([ids], places)
        for cut in (1, 5, 16, 17, 127, 128, 140, 255, 256, 257, 270, 283, 284, 292, 298, 299):
            session.truncate(0)
            session.prefill([ids[:cut]], places[:cut])
            np.testing.assert_array_equal(session.prefill([ids[cut:]], places[cut:]), whole, err_msg=f"{variant} {cut}")
            np.testing.assert_array_equal(session.truncate(cut) or session.prefill([ids[cut:]], places[cut:]), whole)
        session.truncate(0)
        session.prefill([ids[:230]], places[:230])
        for place in range(230, 290):  # past the end of the first unit of 256 keys
            last = session.step(int(ids[place]), place)
        np.testing.assert_array_equal(session.prefill([ids[290:]], places[290:]), whole)
        session.truncate(0)
        np.testing.assert_array_equal(session.prefill([ids[:290]], places[:290]), last)
        session.truncate(0)  # negative control: one earlier token is another
        session.prefill([np.array([*ids[:40], ids[40] + 1, *ids[41:290]]) % ids.max()], places[:290])
        assert (session.prefill([ids[290:]], places[290:]) != whole).any()


def test_heads_of_128_channels_in_a_long_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units of 128 keys; with many threads and a long context fewer rows are computed together, to the same bits."""
    monkeypatch.setattr("edgevlm.machine_cpus.machine_cpus", lambda: 8)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128, "max_position_embeddings": 8192}
    source = tiny.make_llama(tmp_path / "checkpoint", **SIZES, **heads)
    path = export_package(source, tmp_path / "package", ExportOptions(scheme="w4g32", verify=False))
    compile_package(path, "x86_64", probes.text()[:2000])
    package = open_package(path)
    ids, places = tokens(package), np.arange(LENGTH)
    small, large = NativeSession(package, context=400, threads=1), NativeSession(package, context=8192, threads=8)
    whole = small.prefill([ids], places)
    for session in (small, large):
        for cut in (0, 100, 128, 129, 250, 290, 299):
            session.truncate(0)
            if cut:
                session.prefill([ids[:cut]], places[:cut])
            np.testing.assert_array_equal(session.prefill([ids[cut:]], places[cut:]), whole)


def test_conversations_in_two_threads_share_a_models_threads(package: Package) -> None:
    """Two contexts of one model at once: each finds what it finds alone."""
    library = NativeLibrary(library_path())
    directory = package.file(package.compiled(host_arch()).plan).parent  # type: ignore[union-attr]
    model, vocab = ctypes.c_void_p(), package.manifest.decoder.vocab_size
    options = ModelOptions(2)
    library.call("ev_model_open", str(directory).encode(), ctypes.byref(options), ctypes.byref(model))
    places = np.arange(LENGTH, dtype=np.int32)

    def logits(seed: int, rounds: int) -> list[np.ndarray]:
        context, found = ctypes.c_void_p(), []
        library.call("ev_context_new", model, 400, None, ctypes.byref(context))
        ids = np.random.default_rng(seed).integers(0, vocab, LENGTH).astype(np.int32)
        for _ in range(rounds):
            row = np.empty(vocab, np.float32)
            segment = NativeSegment(ids.ctypes.data, None, LENGTH)
            library.call("ev_truncate", context, 0)
            library.call(
                "ev_prefill", context, ctypes.byref(segment), 1, places.ctypes.data, row.ctypes.data, None
            )  # fmt: skip
            found.append(row.copy())
            for place in range(LENGTH, LENGTH + 8):
                library.call("ev_step", context, 5, place, row.ctypes.data, None)
            found.append(row)
        library.call("ev_context_free", context)
        return found

    alone = [logits(seed, 1) for seed in (1, 2)]
    assert (alone[0][0] != alone[1][0]).any()
    with ThreadPoolExecutor(2) as pool:
        for seed, found in enumerate(pool.map(lambda seed: logits(seed, 12), (1, 2))):
            for i, row in enumerate(found):
                np.testing.assert_array_equal(row, alone[seed][i % 2])
    library.call("ev_model_close", model)


def test_variants_agree(package: Package) -> None:
    ids = tokens(package)[:140]
    found = [
        NativeSession(package, context=256, variant=variant).prefill([ids], np.arange(140))
        for variant in NativeLibrary(library_path()).variants()
    ]
    for other in found[1:]:
        assert np.linalg.norm(other - found[0]) / np.linalg.norm(found[0]) < 2e-2


def test_int8_cache_stays_near_float(package: Package) -> None:
    ids = tokens(package)
    int8 = NativeSession(package, context=400).prefill([ids], np.arange(LENGTH))
    exact = NativeSession(package, context=400, kv_bits=FLOAT_CACHE).prefill([ids], np.arange(LENGTH))
    assert 0 < np.linalg.norm(int8 - exact) / np.linalg.norm(exact) < 5e-2


def test_rewinds_and_drafts(package: Package) -> None:
    ids = tokens(package)
    session = NativeSession(package, context=400)
    session.prefill([ids[:200]], np.arange(200))
    saved = session.snapshot()
    chain = [session.step(int(ids[200 + i]), 200 + i) for i in range(3)]
    session.truncate(200)
    np.testing.assert_array_equal(session.step(int(ids[200]), 200), chain[0])
    session.restore(saved)
    assert session.n_past == 200
    tree_ids = np.array([ids[200], ids[201], 7, ids[202]])
    tree = session.score(tree_ids, np.array([-1, 0, 0, 1]), np.array([200, 201, 201, 202]))
    assert session.n_past == 200
    for node, logits in ((0, chain[0]), (1, chain[1]), (3, chain[2])):
        assert np.linalg.norm(tree[node] - logits) / np.linalg.norm(logits) < 2e-2
    session.accept(np.array([0, 1]))
    assert session.n_past == 202
    with pytest.raises(UsageError, match="no drafted tree"):
        session.accept(np.array([0]))
    with pytest.raises(UsageError, match="not a path"):
        session.score(tree_ids, np.array([-1, 0, 0, 1]), np.array([202, 203, 203, 204]))
        session.accept(np.array([1]))
    with pytest.raises(UsageError, match="must stand before its child"):
        session.score(tree_ids, np.array([1, -1, 0, 1]), np.array([202, 203, 203, 204]))
    with pytest.raises(UsageError, match="more than the 16"):
        session.score(np.zeros(17, np.int64), np.arange(17) - 1, np.arange(202, 219))


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (4, 8), (4, 4), (16, 16)], ids=str)
def test_an_accepted_branch_is_as_if_it_alone_had_been_run(package: Package, bits: tuple[int, int]) -> None:
    """The tree's third branch is committed: its keys and values move behind the prompt, in every cache form."""
    ids = tokens(package)
    tree_ids, parents = np.array([5, 6, ids[200], 7, ids[201], 8]), np.array([-1, -1, -1, 0, 2, 2])
    depths = np.array([0, 0, 0, 1, 1, 1])
    drafted, plain = (NativeSession(package, context=400, kv_bits=[bits] * N_LAYERS) for _ in range(2))
    for session in (drafted, plain):
        session.prefill([ids[:200]], np.arange(200))
    plain.score(np.array([ids[200], ids[201]]), np.array([-1, 0]), np.array([200, 201]))
    plain.accept(np.array([0, 1]))
    expected = plain.step(int(ids[202]), 202)

    def error(nodes: list[int]) -> float:
        drafted.truncate(200)
        drafted.score(tree_ids, parents, 200 + depths)
        drafted.accept(np.array(nodes))
        return float(np.linalg.norm(drafted.step(int(ids[202]), 202) - expected) / np.linalg.norm(expected))

    assert error([2, 4]) < 1e-2
    assert error([0, 3]) > 2e-2  # negative control: another branch


def test_four_bit_values_cost_less_than_four_bit_keys(package: Package) -> None:
    ids = tokens(package)
    exact = NativeSession(package, context=400, kv_bits=FLOAT_CACHE).prefill([ids], np.arange(LENGTH))

    def error(bits: tuple[int, int]) -> float:
        session = NativeSession(package, context=400, kv_bits=[bits] * N_LAYERS)
        return float(np.linalg.norm(session.prefill([ids], np.arange(LENGTH)) - exact) / np.linalg.norm(exact))

    assert 0 < error((8, 8)) < error((8, 4)) < error((4, 4)) < 1


def test_pictures_and_text_mix_in_one_prompt(package: Package) -> None:
    """Features that are the embeddings of the ids give the logits of the ids."""
    ids = tokens(package)[:160]
    plain = NativeSession(package, context=256).prefill([ids], np.arange(160))
    reference = OnnxSession(package, context=256)
    with cancellable(None) as running:
        reference._ids[0, :90] = ids[30:120]
        reference._embed_rows(90, 0, running)
    features = reference._embeds[0, :90].copy()
    mixed = NativeSession(package, context=256).prefill([ids[:30], features, ids[120:]], np.arange(160))
    assert np.linalg.norm(mixed - plain) / np.linalg.norm(plain) < 2e-2


def test_refusals(package: Package) -> None:
    session = NativeSession(package, context=64)
    with pytest.raises(ContextFullError, match="capacity is 64"):
        session.prefill([np.zeros(65, np.int64)], np.arange(65))
    with pytest.raises(UsageError, match="outside 0"):
        session.prefill([np.array([package.manifest.decoder.vocab_size])], np.arange(1))
    with pytest.raises(UsageError, match="no variant 'sse'"):
        NativeSession(package, context=64, variant="sse")
    with pytest.raises(UsageError, match="not one of 8/8, 8/4"):
        NativeSession(package, context=64, kv_bits=[(3, 3)] * 2)


def test_auto_prefers_the_native_engine(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {}
    for backend, kind in (("auto", NativeSession), ("native", NativeSession), ("onnx", OnnxSession)):
        with load(package.path, backend=backend) as model:
            assert type(model.session) is kind
            ids[backend] = model.generate("Hello", max_new_tokens=16).token_ids
    assert ids["auto"] == ids["native"]
    monkeypatch.setattr("edgevlm.backends.opening.library_path", lambda: package.path / "no-library.so")
    with load(package.path) as model:
        assert type(model.session) is OnnxSession
        assert model.generate("Hello", max_new_tokens=16).token_ids == ids["onnx"]


def test_the_manifest_says_what_the_cache_holds(package: Package) -> None:
    """The bits that compile wrote down are those at the end of plan.bin, and those of the cache that is made."""
    compiled = package.compiled(host_arch())
    assert compiled is not None and compiled.kv_bits == ((8, 8),) * N_LAYERS
    assert package.file(compiled.plan).read_bytes()[-2 * N_LAYERS :] == bytes([8, 8] * N_LAYERS)
    by_bits = {}
    for bits in (None, (8, 8), (8, 4), (16, 16)):
        session = NativeSession(package, context=400, kv_bits=bits and [bits] * N_LAYERS)
        session.prefill([tokens(package)], np.arange(LENGTH))
        by_bits[bits] = session.memory().kv_bytes
        session.close()
    assert by_bits[None] == by_bits[8, 8] != by_bits[8, 4] != by_bits[16, 16]


def test_uncompiled_packages_are_refused_by_name(tmp_path: Path) -> None:
    path = export_package(tiny.make_llama(tmp_path / "c"), tmp_path / "p", ExportOptions(scheme="fp32", verify=False))
    with pytest.raises(BackendError, match="edgevlm compile"):
        load(path, backend="native")
    with pytest.raises(UnsupportedModelError, match="quantised embedding table"):
        compile_package(path, "x86_64", "a b c")
    open_package(path)  # a failed compile leaves the package as it was
    assert not any((path / "lib").glob("*"))


def test_compile_on_the_command_line(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(package.path)]) == 0
    assert capsys.readouterr().out.strip().endswith("lib/x86_64/plan.bin")
    open_package(package.path).check_hashes()
    assert main(["compile", str(package.path), "--target", "riscv"]) == UsageError.exit_code


FUZZ = """
import sys, numpy as np
from pathlib import Path
from edgevlm.backends.native import NativeSession
from edgevlm.errors import EdgeVLMError
from edgevlm.package import open_package
package = open_package(sys.argv[1])
plan = package.path / "lib/x86_64/plan.bin"
whole, rng, refused = plan.read_bytes(), np.random.default_rng(0), 0
for trial in range(400):
    damaged = bytearray(whole)
    for place in rng.integers(0, len(whole), rng.integers(1, 4)):
        damaged[place] = rng.integers(0, 256)
    plan.write_bytes(damaged[: rng.integers(1, len(whole) + 1)] if trial % 5 == 0 else damaged)
    try:
        session = NativeSession(package, context=128, threads=1)
        session.prefill([np.arange(20)], np.arange(20))
        session.step(1, 20)
    except EdgeVLMError:
        refused += 1
plan.write_bytes(whole)
print(refused)
"""


def test_damaged_plans_never_crash(package: Package) -> None:
    """400 plans with bytes changed or cut off, in a process of their own: refused or run, never a signal."""
    command = [sys.executable, "-c", FUZZ, str(package.path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) > 100


def test_a_plan_for_another_version_is_refused(package: Package) -> None:
    plan = package.path / "lib/x86_64/plan.bin"
    whole = plan.read_bytes()
    try:
        plan.write_bytes(whole[:4] + struct.pack("<I", 99) + whole[8:])
        with pytest.raises(PackageError, match="version 99"):
            NativeSession(package, context=64)
        with pytest.raises(PackageError, match="version 99"):  # refused, and not run in onnxruntime instead
            load(package.path)
    finally:
        plan.write_bytes(whole)
    assert np.isfinite(NativeSession(package, context=64).prefill([np.arange(4)], np.arange(4))).all()


def test_the_cache_form_is_an_option_of_load(package: Package) -> None:
    with load(package.path, backend="native", kv_bits=(8, 4)) as narrow, load(package.path, backend="native") as plain:
        plain_bytes = plain.session.memory().kv_bytes
        assert narrow.session.memory().kv_bytes < plain_bytes
    with load(package.path, backend="native", kv_bits=[(16, 16), (8, 8)]) as mixed:
        assert mixed.session.memory().kv_bytes > plain_bytes
    with pytest.raises(UsageError, match="native backend"):
        load(package.path, backend="onnx", kv_bits=(8, 8))
    with pytest.raises(UsageError, match="kv_bits has 3 layers"):
        load(package.path, backend="native", kv_bits=[(8, 8)] * 3)


def test_the_native_estimate_holds(package: Package) -> None:
    """The cache to the byte, and the weights as they are mapped: not onnxruntime's packed copies and float cache."""
    with (
        load(package.path, backend="native", context=256) as native,
        load(package.path, backend="onnx", context=256) as onnx,
    ):
        estimate = native.memory_estimate
        assert isinstance(native.session, NativeSession)
        assert estimate.packed_bytes == native.session.memory().weights_bytes
        layers = package.manifest.decoder
        slots = layers.num_key_value_heads * 256 * N_LAYERS
        assert estimate.kv_bytes == slots * (2 * layers.head_dim + 8)
        assert estimate.kv_bytes < onnx.memory_estimate.kv_bytes / 3
    with load(package.path, backend="native", context=256, kv_bits=(8, 4)) as narrow:
        assert narrow.memory_estimate.kv_bytes == slots * (1.5 * layers.head_dim + 8)
    with pytest.raises(BackendError, match="memory budget"):
        load(package.path, backend="native", memory_budget_bytes=1 << 20)


def test_a_package_for_one_device(package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The copy has no ONNX graphs and answers as the whole package does; onnxruntime refuses it with the reason."""
    target = tmp_path / "device"
    assert main(["compile", str(package.path), "--target", host_arch(), "--device-only", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target / f"lib/{host_arch()}/plan.bin")
    assert not (target / "onnx").exists() and (package.path / "onnx").is_dir()
    open_package(target).check_hashes()
    with load(package.path, backend="native") as whole, load(target) as device:
        expected = whole.generate("Hello", max_new_tokens=8).token_ids
        assert device.generate("Hello", max_new_tokens=8).token_ids == expected
    with pytest.raises(BackendError, match=f"holds no ONNX graphs, only what the native engine of {host_arch()} needs"):
        load(target, backend="onnx")
    assert main(["compile", str(package.path), "--device-only", str(target)]) == UsageError.exit_code


def test_a_device_package_of_another_architecture(package: Package, tmp_path: Path) -> None:
    target = tmp_path / "phone"
    assert main(["compile", str(package.path), "--target", "arm64", "--device-only", str(target)]) == 0
    with pytest.raises(BackendError, match="only what the native engine of arm64 needs"):
        load(target)


def test_export_compiles_as_the_last_step(tmp_path: Path) -> None:
    source = tiny.make_llama(tmp_path / "c", **SIZES, **WIDE_HEADS)
    command = ["export", str(source), "-o", str(tmp_path / "p"), "--scheme", "w4g32", "--no-verify", "--target"]
    assert main([*command, "riscv"]) == UsageError.exit_code
    assert not (tmp_path / "p").exists()
    assert main([*command, "arm64"]) == 0
    assert [entry.arch for entry in open_package(tmp_path / "p").manifest.compiled] == ["arm64"]
