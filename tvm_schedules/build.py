"""Kernels of every variant of an architecture and the C engine, linked into libedgevlm-<arch>.so.

`python -m tvm_schedules.build [--arch x86_64] [-o DIR]`. Needs apache-tvm and a C compiler; the library needs neither.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import edgevlm
from tvm_schedules.codegen import build_object
from tvm_schedules.kernel_set import kernel_set
from tvm_schedules.targets import VARIANTS, Variant

ENGINE = Path(edgevlm.__file__).parent / "engine"
C_FLAGS = ("-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE", "-Wall", "-Wextra")


EXPORTS = """{
  global:
    ev_abi_version; ev_last_error; ev_variants; ev_model_*; ev_context_*; ev_prefill; ev_step; ev_score;
    ev_score_tree; ev_accept; ev_truncate; ev_n_past; ev_snapshot; ev_snapshot_bytes; ev_restore; ev_cancel;
    ev_plan_tiles; ev_upright_size; ev_image_scratch_bytes; ev_prepare_tiles; ev_sampler_*;
    ev_tower_*; ev_encode;
    ev_profile_*;
  local: *;
};
"""
"""Linker version script: the C ABI of edgevlm.h and nothing else."""


def library_path(directory: Path, arch: str) -> Path:
    """Where the library of `arch` stands."""
    return directory / f"libedgevlm-{arch}.so"


def table_source(variants: list[tuple[Variant, list[str]]]) -> str:
    """C source of `ev_variant_table`: the kernels of each variant, sorted by name, best variant first."""
    lines = ['#include "kernels.h"', ""]
    for variant, names in variants:
        lines += [f"extern void ev_{variant.name}_{name}(void);" for name in names]
        lines.append(f"static const ev_kernel {variant.name}_kernels[] = {{")
        lines += [f'    {{"{name}", ev_{variant.name}_{name}}},' for name in names]
        features = ", ".join(f'"{feature}"' for feature in variant.features)
        lines += ["};", f"static const char *const {variant.name}_features[] = {{{features}, 0}};", ""]
    lines.append("const ev_variant ev_variant_table[] = {")
    for variant, names in variants:
        prefill, batch, decode = variant.prefill_tile, variant.batch_tile, variant.decode_tile
        numbers = f"{variant.lanes}, {prefill.rows}, {prefill.blocks}, {batch.rows}, {batch.blocks}, {decode.blocks}"
        lines.append(
            f'    {{"{variant.name}", {variant.name}_features, {numbers}, {variant.name}_kernels, {len(names)}}},'
        )
    lines += ["};", f"const int32_t ev_variant_count = {len(variants)};", ""]
    return "\n".join(lines)


def build_library(arch: str, directory: Path, compiler: str = "cc") -> Path:
    """Builds the library of `arch` into `directory` and returns its path.

    Raises subprocess.CalledProcessError when the compiler refuses a source; its message is on stderr.
    """
    directory.mkdir(parents=True, exist_ok=True)
    target = library_path(directory, arch)
    with tempfile.TemporaryDirectory(dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        objects: list[Path] = []
        table: list[tuple[Variant, list[str]]] = []
        for variant in (variant for variant in VARIANTS if variant.arch == arch):
            kernels = kernel_set(variant)
            path = scratch / f"{variant.name}.o"
            build_object({f"ev_{variant.name}_{name}": function for name, function in kernels.items()}, variant, path)
            objects.append(path)
            table.append((variant, sorted(kernels)))
        (scratch / "kernel_table.c").write_text(table_source(table))
        (scratch / "exports.map").write_text(EXPORTS)
        sources = [*sorted(ENGINE.glob("*.c")), scratch / "kernel_table.c"]
        command = [compiler, *C_FLAGS, f"-I{ENGINE}", "-shared", "-o", str(scratch / target.name)]
        command += [str(path) for path in (*sources, *objects)]
        command += ["-pthread", "-Wl,--no-undefined", "-Wl,--gc-sections", "-Wl,-z,max-page-size=16384"]
        command += [f"-Wl,--version-script={scratch / 'exports.map'}", "-s"]
        subprocess.run(command, check=True)
        (scratch / target.name).replace(target)
    return target


def main() -> int:
    """Builds what the arguments name and prints the library's path."""
    parser = argparse.ArgumentParser(prog="python -m tvm_schedules.build", description=__doc__)
    parser.add_argument("--arch", choices=sorted({variant.arch for variant in VARIANTS}), default="x86_64")
    parser.add_argument("-o", "--output", type=Path, default=Path("build"))
    arguments = parser.parse_args()
    print(build_library(arguments.arch, arguments.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
