"""The kernels of a benchmark under the machine's roof: operations per second over operations per byte, as a picture."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.errors import UsageError
from edgevlm.telemetry import own_cache
from edgevlm.whole_file import check_writable, write_whole

if TYPE_CHECKING:
    from edgevlm.bench import BenchResult

COLOURS = {"encode": "#2ca02c", "prefill": "#1f77b4", "decode": "#d62728"}
NO_KERNELS = "there are no kernels to draw: only the native backend has them; compile the package"
MIN_SHARE = 0.01
"""Kernels below this share of their stage are left out."""


def check_plot(path: Path) -> None:
    """Raises UsageError for a name that is not a PNG's or cannot be written, or when matplotlib is not installed."""
    if path.suffix.lower() != ".png":
        raise UsageError(
            f"--plot writes a PNG, {path.name} has another suffix; name it {path.with_suffix('.png').name}"
        )
    check_writable(path, "the plot")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'edgevlm[plot]'")


def draw_roofline(result: BenchResult, path: Path) -> None:
    """Writes the picture. Raises UsageError when the backend has measured no kernels, or it cannot be written."""
    with own_cache(MPLCONFIGDIR="matplotlib"):  # it lists the machine's fonts there
        from matplotlib.figure import Figure

    if result.limits is None:
        raise UsageError(NO_KERNELS)
    roof, slope = result.limits.giga_operations_per_s, result.limits.giga_bytes_per_s
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    shown = [
        k for k in result.kernels if k.giga_operations_per_s > 0 and k.giga_bytes_per_s > 0 and k.share >= MIN_SHARE
    ]
    intensities = [k.giga_operations_per_s / k.giga_bytes_per_s for k in shown]
    left, right = min([*intensities, roof / slope]) / 2, max([*intensities, roof / slope]) * 2
    axis.loglog([left, roof / slope, right], [left * slope, roof, roof], color="#333333")
    axis.annotate(f"{slope:.1f} GB/s", (left, left * slope), xytext=(4, 8), textcoords="offset points", fontsize=8)
    axis.annotate(f"{roof:.0f} GOPS", (right, roof), xytext=(-60, 5), textcoords="offset points", fontsize=8)
    for kernel, intensity in zip(shown, intensities, strict=True):
        axis.scatter(intensity, kernel.giga_operations_per_s, s=20 + 400 * kernel.share, alpha=0.6,
                     color=COLOURS[kernel.stage])  # fmt: skip
        outer = intensity > roof / slope
        axis.annotate(f"{kernel.kernel} ({kernel.share:.0%})", (intensity, kernel.giga_operations_per_s), fontsize=7,
                      textcoords="offset points", xytext=(-8 if outer else 8, -10),
                      ha="right" if outer else "left")  # fmt: skip
    axis.set_xlabel("operations per byte")
    axis.set_ylabel("giga-operations per second")
    legend = "encode (green), prefill (blue), decode (red)"
    axis.set_title(f"{Path(result.package).name}, {result.backend}: {legend}", fontsize=9)
    axis.grid(visible=True, which="both", alpha=0.2)
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=120, format="png")
    write_whole(path, drawing.getvalue(), "the plot")
