"""Kernels of every variant of an architecture and the C engine, linked into one library.

`python -m tvm_schedules.build [--arch ARCH] [--os linux|android] [-o DIR]` makes libedgevlm-<arch>.so, or libedgevlm.so
for Android. Needs apache-tvm and a C compiler; the library needs neither. Tiles are the recorded ones of `edgevlm tune`
where they gain something, or the defaults of `targets.py` with --no-records.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import edgevlm
from edgevlm.backends.native_library import host_arch
from edgevlm.errors import BackendError, EdgeVLMError
from tvm_schedules.layouts import ROW_LAYOUTS
from tvm_schedules.object_cache import known_objects, locked, points_json, prune, sources_hash, variant_objects
from tvm_schedules.targets import VARIANTS, Variant
from tvm_schedules.toolchains import C_FLAGS, LINK_FLAGS, OperatingSystem, toolchain
from tvm_schedules.tune_record import read_record, record_path, tuned

ENGINE = Path(edgevlm.__file__).parent / "engine"
OBJECTS = Path("build/objects")
"""Where compiled kernels are kept between builds, from the working directory."""
EXPORTS = """{
  global:
    ev_abi_version; ev_last_error; ev_variants; ev_model_*; ev_context_*; ev_prefill; ev_step; ev_score;
    ev_score_tree; ev_accept; ev_truncate; ev_n_past; ev_snapshot; ev_snapshot_bytes; ev_restore;
    ev_plan_tiles; ev_upright_size; ev_image_scratch_bytes; ev_prepare_tiles; ev_sampler_*;
    ev_tower_*; ev_encode;
    ev_profile_*;
  local: *;
};
"""
"""Linker version script: the C ABI of edgevlm.h and nothing else."""


def library_path(directory: Path, arch: str, system: OperatingSystem = "linux") -> Path:
    """Where the library of `arch` stands."""
    return directory / ("libedgevlm.so" if system == "android" else f"libedgevlm-{arch}.so")


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
        layout = ROW_LAYOUTS[variant.arch]
        numbers = f"{variant.lanes}, {prefill.rows}, {prefill.blocks}, {batch.rows}, {batch.blocks}, {decode.blocks}, "
        numbers += f"{layout.copies}, {layout.sum_base}"
        lines.append(
            f'    {{"{variant.name}", {variant.name}_features, {numbers}, {variant.name}_kernels, {len(names)}}},'
        )
    lines += ["};", f"const int32_t ev_variant_count = {len(variants)};", ""]
    return "\n".join(lines)


def kernel_objects(variants: list[Variant], cache: Path) -> dict[str, dict[str, Path]]:
    """Variant name → kernel name → object file, compiled in as many processes as there are processors.

    Of several builds at the same time one compiles; the others wait, and find its objects.
    """
    sources = sources_hash()
    with locked(cache):
        missing = [variant for variant in variants if known_objects(variant, cache, sources) is None]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for job in [pool.submit(_compile_apart, variant, cache) for variant in missing]:
                job.result()
        prune(cache)
        return {variant.name: variant_objects(variant, cache, sources) for variant in variants}


def _compile_apart(variant: Variant, cache: Path) -> None:
    words = [variant.name, str(cache.resolve()), points_json(variant)]
    command = [sys.executable, "-m", "tvm_schedules.object_cache", *words]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


def built_variants(arch: str, records: bool = True) -> list[Variant]:
    """The variants of `arch`, best first, as a library carries them: with the recorded tiles, or the defaults."""
    record = read_record(record_path(arch), arch) if records else None
    defaults = [variant for variant in VARIANTS if variant.arch == arch]
    return [variant if record is None else tuned(variant, record) for variant in defaults]


def build_library(
    arch: str, directory: Path, system: OperatingSystem = "linux", cache: Path = OBJECTS, only: str | None = None,
    records: bool = True,
) -> Path:  # fmt: skip
    """Builds the library of `arch` into `directory` and returns its path.

    `only` names one variant and leaves the others out; without `records` all tiles are the defaults. Raises
    subprocess.CalledProcessError when the compiler refuses a source; its message is on stderr. Raises BackendError when
    a tool is missing.
    """
    variants = [variant for variant in built_variants(arch, records) if only in (None, variant.name)]
    if not variants:
        raise BackendError(f"{arch} has no variant {only!r}")
    directory.mkdir(parents=True, exist_ok=True)
    target = library_path(directory, arch, system)
    with tempfile.TemporaryDirectory(dir=directory) as scratch_name:
        scratch = Path(scratch_name)
        tools = toolchain(arch, system, scratch)
        objects = kernel_objects(variants, cache)
        table = [(variant, sorted(objects[variant.name])) for variant in variants]
        (scratch / "kernel_table.c").write_text(table_source(table))
        (scratch / "exports.map").write_text(EXPORTS)
        files = _object_list(objects, scratch)
        sources = [str(path) for path in (*sorted(ENGINE.glob("*.c")), scratch / "kernel_table.c")]
        command = [tools.compiler, *C_FLAGS, *tools.flags, f"-I{ENGINE}", *LINK_FLAGS, *sources, *files]
        command += [*tools.link_flags, f"-Wl,--version-script={scratch / 'exports.map'}"]
        subprocess.run([*command, "-o", str(scratch / target.name)], check=True)
        (scratch / target.name).replace(target)
    return target


def _object_list(objects: Mapping[str, Mapping[str, Path]], scratch: Path) -> list[str]:
    """A response file that names all objects: there are hundreds."""
    paths = [path.resolve() for kernels in objects.values() for path in kernels.values()]
    (scratch / "objects.rsp").write_text("".join(f'"{path}"\n' for path in paths), encoding="utf-8")
    return [f"@{scratch / 'objects.rsp'}"]


def main() -> int:
    """Builds what the arguments name and prints the library's path."""
    parser = argparse.ArgumentParser(prog="python -m tvm_schedules.build", description=__doc__)
    arches = sorted({variant.arch for variant in VARIANTS})
    parser.add_argument("--arch", choices=arches, default=host_arch())
    parser.add_argument("--os", choices=("linux", "android"), default="linux")
    parser.add_argument("--only", choices=sorted(variant.name for variant in VARIANTS), help="one variant")
    parser.add_argument("--no-records", action="store_true", help="the default tiles, not those that tuning found")
    parser.add_argument("--objects", type=Path, default=OBJECTS, help="directory of compiled kernels")
    parser.add_argument("-o", "--output", type=Path, default=Path("build"))
    arguments = parser.parse_args()
    try:
        print(
            build_library(
                arguments.arch, arguments.output, arguments.os, arguments.objects, arguments.only,
                records=not arguments.no_records,
            )
        )  # fmt: skip
    except EdgeVLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except subprocess.CalledProcessError as error:
        print(f"error: {Path(error.cmd[0]).name} failed; its own words are above", file=sys.stderr)
        return BackendError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
