"""Quantised against fp32: healthy schemes pass their bounds, faults of a wrong exporter do not. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevlm.backends.onnx import OnnxSession
from edgevlm.backends.session import Float32
from edgevlm.errors import UsageError
from edgevlm.package import Package
from edgevlm.spec import ParityEntry
from export import fidelity
from export.divergence import BOUNDS, DivergenceMeter, bound_for, token_cosines
from export.quant.scheme import parse_language_scheme
from tests import tiny
from tests.tolerances import TINY_MEAN_KL
from tests.verify_case import CONTEXT, build_package, corrupt, session_of

N_POSITIONS = 300


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_bluelm_v(tmp_path_factory.mktemp("source"))


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
    assert kl.value is not None and kl.detail.split()[0].isdigit() and int(kl.detail.split()[0]) >= N_POSITIONS
    if scheme in TINY_MEAN_KL:
        assert kl.value <= TINY_MEAN_KL[scheme].bound


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


class NoisyTower(OnnxSession):
    """A tower with 4 % of noise: cosine about .9992."""

    def encode(self, tiles: Float32) -> Float32:
        features = super().encode(tiles)
        noise = np.random.default_rng(0).standard_normal(features.shape).astype(np.float32)
        return features + 0.04 * features.std() * noise


def test_a_tower_below_the_cosine_bound_fails(source: Path, teacher: fidelity.Teacher, tmp_path: Path) -> None:
    package = build_package(source, tmp_path, "w8", "fp32")
    session = NoisyTower(package, context=CONTEXT, threads=1)
    entries = by_name(fidelity.compare_student(session, package, teacher))
    assert entries["vision features", "mean cosine"].status == "fail"
    assert entries["text", "mean KL"].status == "pass"


def test_kl_is_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    teacher, student = random.standard_normal((2, 40, 50)).astype(np.float32) * 3
    p = np.exp(teacher.astype(np.float64)) / np.exp(teacher.astype(np.float64)).sum(1, keepdims=True)
    q = np.exp(student.astype(np.float64)) / np.exp(student.astype(np.float64)).sum(1, keepdims=True)
    meter = DivergenceMeter()
    meter.add(teacher[:13], student[:13])
    meter.add(teacher[13:], student[13:])
    assert meter.n_positions == 40
    assert meter.mean_kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-12)
    assert meter.top1 == (teacher.argmax(1) == student.argmax(1)).mean()


def test_kl_of_equal_and_of_infinite_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    meter = DivergenceMeter()
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


def test_windows_do_not_depend_on_the_model_but_its_context(source: Path, tmp_path: Path) -> None:
    package: Package = build_package(source, tmp_path)
    windows = fidelity.text_windows(package, 1000)
    assert sum(len(window.ids) - window.skip for window in windows) >= 1000
    assert all(len(window.ids) <= fidelity.WINDOW_TOKENS for window in windows)
