"""Quantised against fp32: healthy schemes pass their bounds, faults of a wrong exporter do not. No torch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.onnx import OnnxSession
from edgevlm.backends.session import Float32
from edgevlm.cancel import CancelToken
from edgevlm.errors import UsageError
from edgevlm.package import Package
from edgevlm.spec import ParityEntry
from export import fidelity
from export.divergence import BOUNDS, Bound, DivergenceMeter, bound_for, token_cosines
from export.quant.scheme import parse_language_scheme
from tests import tiny, weights
from tests.tolerances import REAL_MEAN_KL, REAL_TOP1, TINY_MEAN_KL, TINY_TOP1
from tests.verify_case import CONTEXT, build_package, corrupt, image_token_id, session_of

N_POSITIONS = 300


@pytest.fixture(scope="module", params=["bluelm_v", "smolvlm"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.MAKERS[request.param](tmp_path_factory.mktemp("source") / request.param)


@pytest.fixture(scope="module")
def teacher(source: Path, tmp_path_factory: pytest.TempPathFactory) -> fidelity.Teacher:
    package = build_package(source, tmp_path_factory.mktemp("fp32"))
    return fidelity.run_teacher(session_of(package), package, tmp_path_factory.mktemp("logits"), N_POSITIONS)


def by_name(entries: list[ParityEntry]) -> dict[tuple[str, str], ParityEntry]:
    return {(entry.stage, entry.metric): entry for entry in entries}


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8", "w4g32", "w4g32z"])
def test_healthy_schemes_pass(scheme: str, source: Path, teacher: fidelity.Teacher, tmp_path: Path) -> None:
    package = build_package(source, tmp_path, scheme, "fp32" if scheme == "fp32" else "w8")
    entries = by_name(fidelity.compare_student(session_of(package), package, teacher))
    assert all(entry.status == "pass" for entry in entries.values()), entries
    assert list(entries) == [
        ("text", "mean KL"),
        ("text", "top-1 agreement"),
        ("vision features", "mean cosine"),
        ("picture prompts", "mean KL"),
        ("picture prompts", "top-1 agreement"),
    ]
    kl = entries["text", "mean KL"]
    assert kl.value is not None
    for stage in ("text", "picture prompts"):
        assert int(entries[stage, "mean KL"].detail.split()[0]) >= N_POSITIONS
    if scheme in TINY_MEAN_KL:
        assert kl.value <= TINY_MEAN_KL[scheme].bound
    if scheme in TINY_TOP1:
        top1 = entries["text", "top-1 agreement"].value
        assert top1 is not None and top1 >= TINY_TOP1[scheme].bound


@pytest.mark.parametrize(
    ("scheme", "fault"),
    [
        ("w4g32", "transposed scales"),
        ("w4g32", "codes off by one"),
        ("w4g32", "nibbles swapped"),
        ("w4g32z", "lost zero points"),
    ],
)
def test_faults_fail(scheme: str, fault: str, source: Path, teacher: fidelity.Teacher, tmp_path: Path) -> None:
    package = build_package(source, tmp_path, scheme, "w8")
    assert corrupt(package, fault) == 2 * 7 + 1  # the head too; the embedding is read from the same bytes
    entries = by_name(fidelity.compare_student(session_of(package), package, teacher))
    assert entries["text", "mean KL"].status == "fail", entries["text", "mean KL"]
    assert entries["text", "top-1 agreement"].status == "fail", entries["text", "top-1 agreement"]
    assert entries["picture prompts", "mean KL"].status == "fail", entries["picture prompts", "mean KL"]


class NoisyTower(OnnxSession):
    """A tower with 4 % of noise: cosine about .9992."""

    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        features = super().encode(tiles, cancel)
        noise = np.random.default_rng(0).standard_normal(features.shape).astype(np.float32)
        return features + 0.04 * features.std() * noise


def test_a_tower_below_the_cosine_bound_fails(source: Path, teacher: fidelity.Teacher, tmp_path: Path) -> None:
    package = build_package(source, tmp_path, "w8", "fp32")
    session = NoisyTower(package, context=CONTEXT, threads=1)
    entries = by_name(fidelity.compare_student(session, package, teacher))
    assert entries["vision features", "mean cosine"].status == "fail"
    assert entries["text", "mean KL"].status == "pass"


class BlindTower(OnnxSession):
    def encode(self, tiles: Float32, cancel: CancelToken | None = None) -> Float32:
        return np.zeros_like(super().encode(tiles, cancel))


def test_a_model_that_does_not_see_the_picture_fails_behind_it(
    source: Path, teacher: fidelity.Teacher, tmp_path: Path
) -> None:
    """The passages of text between picture and question do not hide it."""
    package = build_package(source, tmp_path, "w8", "w8")
    entries = by_name(fidelity.compare_student(BlindTower(package, context=CONTEXT, threads=1), package, teacher))
    assert entries["picture prompts", "mean KL"].status == "fail", entries["picture prompts", "mean KL"]
    assert entries["text", "mean KL"].status == "pass"


def test_kl_is_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    teacher, student = random.standard_normal((2, 40, 50)).astype(np.float32) * 3
    p = np.exp(teacher.astype(np.float64)) / np.exp(teacher.astype(np.float64)).sum(1, keepdims=True)
    q = np.exp(student.astype(np.float64)) / np.exp(student.astype(np.float64)).sum(1, keepdims=True)
    meter = DivergenceMeter(bound_for("w8"))
    meter.add(teacher[:13], student[:13])
    meter.add(teacher[13:], student[13:])
    assert meter.n_positions == 40
    assert meter.mean_kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-12)
    assert meter.top1 == (teacher.argmax(1) == student.argmax(1)).mean()


def test_kl_of_equal_and_of_infinite_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    meter = DivergenceMeter(bound_for("w8"))
    meter.add(logits, logits)
    assert meter.mean_kl == 0 and meter.top1 == 1
    broken = logits.copy()
    broken[2, 3] = np.nan
    meter.add(logits, broken)
    assert fidelity.divergence_entries("text", ("w8",), meter)[0].status == "fail"
    with pytest.raises(UsageError, match="cannot be compared"):
        meter.add(logits, logits[:, :-1])


def test_cosines() -> None:
    a = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], np.float32)
    b = np.array([[2.0, 0.0], [1.0, -1.0], [1.0, 0.0]], np.float32)
    assert token_cosines(a, b).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "scheme",
    ["fp32", "fp16", "w8", "w8g64", "w8g32", "w4g32-mix", *(f"w4g{g}{z}" for g in (32, 64, 128) for z in ("", "z"))],
)
def test_every_scheme_has_a_bound(scheme: str) -> None:
    parse_language_scheme(scheme)
    assert bound_for(scheme).mean_kl > 0


def test_bounds_tighten_with_bits_and_unknown_schemes_are_refused() -> None:
    kls = [bound.mean_kl for _, bound in BOUNDS]
    assert kls == sorted(kls)
    with pytest.raises(UsageError, match="w3g32"):
        bound_for("w3g32")


def logits_of(spread: float, n_rows: int = 400, vocab: int = 500, seed: int = 1) -> Float32:
    return (spread * np.random.default_rng(seed).standard_normal((n_rows, vocab))).astype(np.float32)


def compared(teacher: Float32, noise: float, bound: Bound) -> dict[str, str]:
    """The status of a student that is the teacher with noise of `noise` times its spread."""
    meter = DivergenceMeter(bound)
    meter.add(teacher, teacher + logits_of(noise * float(teacher.std()), len(teacher), teacher.shape[1], seed=2))
    return {entry.metric: entry.status for entry in fidelity.divergence_entries("text", ("w4g32",), meter)}


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_flat_teachers_allow_the_noise_of_the_scheme_and_no_more(spread: float) -> None:
    bound, teacher = bound_for("w4g32"), logits_of(spread)
    assert compared(teacher, 0.9 * bound.noise, bound) == {"mean KL": "pass", "top-1 agreement": "pass"}
    assert compared(teacher, 1.8 * bound.noise, bound) == {"mean KL": "fail", "top-1 agreement": "fail"}


def test_a_decided_teacher_must_be_agreed_with() -> None:
    """Logits as a trained model has them, one far above the rest: noise explains no other choice."""
    flat = logits_of(1.0)
    decided = flat.copy()
    decided[np.arange(len(decided)), np.arange(len(decided)) % 7] += 12
    student = decided.copy()
    student[:40] = np.roll(student[:40], 1, axis=1)  # a tenth of the positions names another token
    meters = {}
    for name, teacher in (("flat", flat), ("decided", decided)):
        meters[name] = DivergenceMeter(bound_for("w4g32"))
        meters[name].add(teacher, student)
    assert meters["flat"].smallest_top1 < 0.5 < 0.95 < meters["decided"].smallest_top1
    assert meters["decided"].top1 == 0.9
    assert fidelity.divergence_entries("text", ("w4g32",), meters["decided"])[1].status == "fail"


def test_kl_is_capped_however_wide_the_logits_are() -> None:
    meter = DivergenceMeter(bound_for("w4g32"))
    meter.add(logits_of(20.0), logits_of(20.0))
    assert meter.largest_mean_kl == pytest.approx(bound_for("w4g32").mean_kl)


def test_a_model_that_repeats_itself_gives_few_independent_positions() -> None:
    rows = logits_of(1.0, n_rows=3)
    short, repeated = DivergenceMeter(bound_for("w4g32")), DivergenceMeter(bound_for("w4g32"))
    short.add(logits_of(1.0, 300), logits_of(1.0, 300))
    repeated.add(np.tile(rows, (100, 1)), np.tile(rows, (100, 1)))
    assert repeated.smallest_top1 < short.smallest_top1


def test_the_table_of_limits_is_that_of_the_code() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "quantisation.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `(\S+)` \| ([\d.]+) \| ([\d.]+) \|$", page.partition("## What fails an export")[2], re.MULTILINE
    )
    assert len(rows) == len(BOUNDS) - 1  # fp32 is no quantisation
    for scheme, mean_kl, noise in rows:
        assert bound_for(scheme) == Bound(float(mean_kl), float(noise))


def test_windows_do_not_depend_on_the_model_but_its_context(source: Path, tmp_path: Path) -> None:
    package: Package = build_package(source, tmp_path)
    windows = fidelity.text_windows(package, 1000)
    assert sum(len(window.ids) - window.skip for window in windows) >= 1000
    assert all(len(window.ids) <= fidelity.WINDOW_TOKENS for window in windows)


def test_picture_prompts_go_round_the_pictures_with_text_that_goes_on(source: Path, tmp_path: Path) -> None:
    package = build_package(source, tmp_path)
    pictures = fidelity.picture_probes(package)
    prompts = fidelity.picture_prompts(package, pictures, 4000)
    assert len(pictures) < len(prompts) and [prompt.picture for prompt in prompts] == [
        index % len(pictures) for index in range(len(prompts))
    ]
    limit = package.manifest.decoder.max_position_embeddings - fidelity.N_ANSWER_TOKENS
    assert all(len(prompt.ids) <= limit for prompt in prompts)
    assert len({prompt.ids for prompt in prompts}) == len(prompts)


def test_a_context_without_room_for_text_still_asks_about_each_picture(source: Path, tmp_path: Path) -> None:
    package = build_package(source, tmp_path)
    pictures = fidelity.picture_probes(package)
    image_token = image_token_id(package)
    largest = max(prompt.ids.count(image_token) for prompt in fidelity.picture_prompts(package, pictures, 1))
    context = largest + fidelity.N_ANSWER_TOKENS + 64  # room for the question, not for a passage
    decoder = replace(package.manifest.decoder, max_position_embeddings=context)
    small = Package(package.path, replace(package.manifest, decoder=decoder))
    prompts = fidelity.picture_prompts(small, pictures, 4000)
    assert [prompt.picture for prompt in prompts] == list(range(len(pictures)))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, fidelity.Teacher]:
    source = weights.smollm2_135m()
    package = build_package(source, tmp_path_factory.mktemp("fp32"))
    session = OnnxSession(package, context=fidelity.WINDOW_TOKENS)
    return source, fidelity.run_teacher(session, package, tmp_path_factory.mktemp("logits"), 512)


def real_entries(real: tuple[Path, fidelity.Teacher], package: Package) -> dict[tuple[str, str], ParityEntry]:
    session = OnnxSession(package, context=fidelity.WINDOW_TOKENS)
    return by_name(fidelity.compare_student(session, package, real[1]))


@pytest.mark.weights
@pytest.mark.parametrize("scheme", ["w8", "w4g32"])
def test_a_real_model_passes_strict_bounds(scheme: str, real: tuple[Path, fidelity.Teacher], tmp_path: Path) -> None:
    entries = real_entries(real, build_package(real[0], tmp_path, scheme))
    kl, top1 = entries["text", "mean KL"], entries["text", "top-1 agreement"]
    assert kl.status == top1.status == "pass"
    assert kl.value is not None and top1.value is not None and kl.bound is not None and top1.bound is not None
    assert kl.value <= REAL_MEAN_KL[scheme].bound and kl.bound <= REAL_MEAN_KL[scheme].bound * 1.001
    assert top1.value >= REAL_TOP1[scheme].bound and top1.bound >= REAL_TOP1[scheme].bound - 0.1


@pytest.mark.weights
@pytest.mark.parametrize("fault", ["transposed scales", "codes off by one"])
def test_a_fault_in_one_layer_of_a_real_model_fails(
    fault: str, real: tuple[Path, fidelity.Teacher], tmp_path: Path
) -> None:
    package = build_package(real[0], tmp_path, "w4g32")
    assert corrupt(package, fault, "layers.0") == 7
    entries = real_entries(real, package)
    assert entries["text", "mean KL"].status == entries["text", "top-1 agreement"].status == "fail", entries
