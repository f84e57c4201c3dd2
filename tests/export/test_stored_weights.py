"""Reading quantised weights back from their bytes: honest rounding passes, every fault of a wrong packer fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.package import Package
from export.stored_weights import check_weights, weight_entries
from tests import tiny
from tests.verify_case import build_package, corrupt

SCHEMES = ("w8", "w4g32", "w4g32z", "w4g64", "w4g128", "w4g128z")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_bluelm_v(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def fp32(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return build_package(source, tmp_path_factory.mktemp("fp32"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_honest_rounding_passes(scheme: str, source: Path, fp32: Package, tmp_path: Path) -> None:
    package = build_package(source, tmp_path, scheme, "w8")
    checks = check_weights(package, fp32)
    # 2 layers of 7 linears and the tied table, 2 of 6 in the tower, 3 of the projector
    assert len(checks) == 2 * 7 + 1 + 2 * 6 + 3
    assert all(entry.status == "pass" for entry in weight_entries(checks, "x"))
    reported = {error.name: error.relative_rms for error in package.manifest.quant.worst_tensors}
    for check in checks:
        assert check.relative_error == pytest.approx(reported[check.name], rel=1e-3), check.name


@pytest.mark.parametrize(
    ("scheme", "fault"),
    [
        ("w4g32", "transposed scales"),
        ("w4g32", "codes off by one"),
        ("w4g32", "nibbles swapped"),
        ("w4g32z", "transposed scales"),
        ("w4g32z", "codes off by one"),
        ("w4g32z", "lost zero points"),
        ("w4g128", "codes off by one"),
    ],
)
def test_one_faulty_tensor_fails_and_is_named(
    scheme: str, fault: str, source: Path, fp32: Package, tmp_path: Path
) -> None:
    package = build_package(source, tmp_path, scheme, "w8")
    assert corrupt(package, fault, "layers.1/mlp/down_proj") == 1
    entries = weight_entries(check_weights(package, fp32), "x")
    failed = [entry for entry in entries if entry.status == "fail"]
    assert failed and all("layers.1.mlp.down_proj" in entry.detail for entry in failed)


def test_other_weights_fail(source: Path, tmp_path: Path) -> None:
    package = build_package(source, tmp_path / "package", "w8", "w8")
    other = build_package(tiny.make_bluelm_v(tmp_path / "other", seed=1), tmp_path / "fp32")
    assert {entry.status for entry in weight_entries(check_weights(package, other), "x")} == {"fail"}


def test_float_packages_have_nothing_to_check(fp32: Package) -> None:
    assert weight_entries(check_weights(fp32, fp32), "x") == []
