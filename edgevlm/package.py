"""Opens a package directory; refuses, by file and reason, what is missing, damaged, unsafe or of another version.

`open_package` reads the manifest, sizes and ONNX headers only; hashes are `Package.check_hashes`, on demand. After it
returns, every path used later is a regular file inside the package, and no graph points outside.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgevlm.errors import PackageError
from edgevlm.manifest_values import wrong_values
from edgevlm.onnx_file import stored_tensors
from edgevlm.spec import MANIFEST_NAME, SCHEMA_VERSION, CompiledEntry, GraphEntry, Manifest, NpuEntry
from edgevlm.strict_json import from_json, parse_json

PARTIAL_SUFFIX = ".partial"
"""Ends the name of the directory that a writer renames when the package is whole."""
MAX_MANIFEST_BYTES = 32 << 20
MAX_GRAPH_BYTES = (1 << 31) - 1
"""protobuf's own limit; weights are external data."""
_HASH_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Package:
    """A validated package on disk."""

    path: Path
    manifest: Manifest

    def file(self, relative: str) -> Path:
        """Returns the path of a file of the package.

        Raises PackageError when `relative` is unsafe or no such regular file exists.
        """
        target = _safe_join(self.path, relative)
        _regular_file_size(self.path, target, relative)
        return target

    def has_file(self, relative: str) -> bool:
        """Returns whether the manifest lists `relative`."""
        return any(entry.path == relative for entry in self.manifest.files)

    def has_graph(self, name: str) -> bool:
        """Returns whether the package holds the ONNX graph `name`."""
        return any(graph.name == name for graph in self.manifest.graphs)

    def graph(self, name: str) -> Path:
        """Returns the .onnx file of graph `name`. Raises PackageError when the package has none."""
        return self.file(self.graph_entry(name).path)

    def graph_entry(self, name: str) -> GraphEntry:
        """Returns the manifest's entry of graph `name`. Raises PackageError when the package has none."""
        for graph in self.manifest.graphs:
            if graph.name == name:
                return graph
        held = ", ".join(graph.name for graph in self.manifest.graphs) or "none (a package for one device only)"
        raise PackageError(f"{self.path}: the package has no graph {name!r} (it holds: {held}); export it again")

    def compiled(self, arch: str) -> CompiledEntry | None:
        """Returns the manifest's entry of what was compiled for `arch`, or None."""
        return next((entry for entry in self.manifest.compiled if entry.arch == arch), None)

    def device_files(self, arch: str) -> tuple[str, ...]:
        """Returns the files that a device reads: manifest, tokenizer, template, compiled form, the words about it.

        Raises PackageError when the package is not compiled for `arch` or a device cannot read its texts.
        """
        compiled, device = self.compiled(arch), self.manifest.device
        if compiled is None or device is None or device.tokenizer is None or device.chat is None:
            missing = "" if device is None or not device.missing else f" ({'; '.join(device.missing)})"
            raise PackageError(
                f"{self.path}: it is not ready for phones{missing}; run `edgevlm compile {self.path} --target {arch}`"
            )
        folders = (f"{PurePosixPath(device.tokenizer).parent}/", f"{PurePosixPath(compiled.plan).parent}/")
        names = [entry.path for entry in self.manifest.files if entry.path.startswith(folders)]
        return (MANIFEST_NAME, *names, *(name for name in ("README.md", "NOTICE") if self.has_file(name)))

    @property
    def has_vision(self) -> bool:
        """Whether pictures can be given."""
        return self.manifest.processor is not None

    def check_hashes(self, progress: Callable[[str, int], None] | None = None) -> None:
        """Compares every listed file with its sha256; `progress(path, n_bytes)` is called as bytes are read.

        Raises PackageError naming the first file that differs.
        """
        for entry in self.manifest.files:
            digest = hashlib.sha256()
            with self.file(entry.path).open("rb") as file:
                while block := file.read(_HASH_BLOCK_BYTES):
                    digest.update(block)
                    if progress is not None:
                        progress(entry.path, len(block))
            if digest.hexdigest() != entry.sha256:
                raise PackageError(
                    f"{self.path / entry.path}: sha256 is {digest.hexdigest()[:16]}…, the manifest says "
                    f"{entry.sha256[:16]}…; the file is damaged or was changed, copy or export the package again"
                )


def open_package(path: str | Path) -> Package:
    """Returns the validated package in directory `path`.

    Raises PackageError for anything that is missing, unsafe, damaged or of another schema version.
    """
    root = Path(path)
    if not root.exists():
        raise PackageError(f"{root}: no such package directory; export one with `edgevlm export`")
    if not root.is_dir():
        raise PackageError(f"{root}: a package is a directory with {MANIFEST_NAME}, this is a file")
    if root.resolve().name.endswith(PARTIAL_SUFFIX):
        raise PackageError(
            f"{root}: this is the unfinished output of an interrupted export; delete it and export again"
        )
    manifest = _read_manifest(root)
    package = Package(root, manifest)
    _check_values(root, manifest)
    sizes = _check_files(root, manifest)
    for graph in manifest.graphs:
        _check_graph(root, graph, sizes)
    for entry in manifest.compiled:
        _check_compiled(root, entry, sizes)
    if manifest.npu is not None:
        _check_npu(root, manifest.npu, sizes)
    if manifest.device is not None:
        for relative in (manifest.device.tokenizer, manifest.device.chat):
            if relative is not None and relative not in sizes:
                raise PackageError(
                    f"{root / MANIFEST_NAME}: 'device' names {relative!r}, which 'files' lacks; export it again"
                )
    return package


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST_NAME
    if not path.exists() and not path.is_symlink():
        raise PackageError(
            f"{root}: no {MANIFEST_NAME} here, so this is not a package; export one with `edgevlm export`"
        )
    size = _regular_file_size(root, path, MANIFEST_NAME)
    if size > MAX_MANIFEST_BYTES:
        raise PackageError(f"{path}: {size} bytes is more than a manifest may have ({MAX_MANIFEST_BYTES})")
    try:
        data = parse_json(path.read_bytes())
    except ValueError as error:
        raise PackageError(f"{path}: the manifest {error}; copy or export the package again") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int:
        raise PackageError(f"{path}: no integer 'schema_version', so this is not a package manifest")
    if version > SCHEMA_VERSION:
        raise PackageError(
            f"{path}: the package has schema version {version}, this edgevlm reads {SCHEMA_VERSION}; upgrade edgevlm"
        )
    if version < SCHEMA_VERSION:
        raise PackageError(
            f"{path}: the package has schema version {version}, this edgevlm reads {SCHEMA_VERSION}; export it again"
        )
    try:
        return from_json(Manifest, data, MANIFEST_NAME)
    except ValueError as error:
        raise PackageError(f"{path}: {error}; copy or export the package again") from None


def _check_values(root: Path, manifest: Manifest) -> None:
    """Refuses fields that parse but that no exporter writes: they would turn into allocations or divisions."""
    for what in wrong_values(manifest):
        raise PackageError(f"{root / MANIFEST_NAME}: {what}; export the package again")


def _check_files(root: Path, manifest: Manifest) -> dict[str, int]:
    """Returns path -> size of every listed file, all of them present."""
    sizes: dict[str, int] = {}
    for entry in manifest.files:
        if entry.path in sizes:
            raise PackageError(f"{root / MANIFEST_NAME}: file {entry.path!r} is listed twice")
        found = _regular_file_size(root, _safe_join(root, entry.path), entry.path)
        if found != entry.size_bytes:
            raise PackageError(
                f"{root / entry.path}: {found} bytes, the manifest says {entry.size_bytes}; the copy is not whole, "
                "copy or export the package again"
            )
        sizes[entry.path] = found
    return sizes


def _check_compiled(root: Path, entry: CompiledEntry, sizes: dict[str, int]) -> None:
    files = [(entry.plan, "plan.bin"), (entry.weights, "weights.bin")]
    if entry.vision is not None:
        files.append((entry.vision, "vision.bin"))
    for relative, name in files:
        if relative not in sizes or PurePosixPath(relative) != PurePosixPath(entry.plan).with_name(name):
            raise PackageError(
                f"{root / MANIFEST_NAME}: what is compiled for {entry.arch!r} uses {relative!r}, expected a listed "
                f"{name} beside {entry.plan!r}; compile the package again"
            )


def _check_npu(root: Path, entry: NpuEntry, sizes: dict[str, int]) -> None:
    compiled = [path for target in entry.targets for path in (*target.binaries, *(g.path for g in target.graphs))]
    for relative in (entry.weights, entry.ranges, *(graph.path for graph in entry.graphs), *compiled):
        if relative not in sizes:
            raise PackageError(
                f"{root / MANIFEST_NAME}: 'npu' uses {relative!r}, which 'files' lacks; compile the package again"
            )
    for graph in entry.graphs:
        _check_stored(root, graph.path, (entry.weights,), sizes)


def _check_graph(root: Path, graph: GraphEntry, sizes: dict[str, int]) -> None:
    for relative in (graph.path, *graph.data):
        _safe_join(root, relative)
        if relative not in sizes:
            raise PackageError(f"{root / MANIFEST_NAME}: graph {graph.name!r} uses {relative!r}, which 'files' lacks")
    _check_stored(root, graph.path, graph.data, sizes)


def _check_stored(root: Path, relative_path: str, data: tuple[str, ...], sizes: dict[str, int]) -> None:
    """An ONNX file may only read the data files that the manifest gives it."""
    path = root / relative_path
    if sizes[relative_path] > MAX_GRAPH_BYTES:
        raise PackageError(f"{path}: {sizes[relative_path]} bytes is more than an ONNX file may have")
    try:
        tensors = stored_tensors(path)
    except ValueError as error:
        raise PackageError(f"{path}: not a readable ONNX file ({error}); copy or export the package again") from None
    folder = PurePosixPath(relative_path).parent
    allowed = set(data)
    for tensor in tensors:
        if tensor.location is None:
            continue
        relative = (folder / tensor.location).as_posix()
        _safe_join(root, tensor.location)
        if relative not in allowed:
            raise PackageError(
                f"{path}: tensor {tensor.name!r} reads {tensor.location!r}, which is not among the graph's data files "
                f"({', '.join(sorted(allowed)) or 'none'}); export the package again"
            )
        end = tensor.offset + (tensor.length or 0)
        if end > sizes[relative]:
            raise PackageError(
                f"{path}: tensor {tensor.name!r} ends at byte {end} of {relative!r}, which has {sizes[relative]} "
                "bytes; copy or export the package again"
            )


def _safe_join(root: Path, relative: str) -> Path:
    parts = relative.split("/")
    unsafe = (
        not relative
        or "\\" in relative
        or ":" in relative
        or any(ord(character) < 32 for character in relative)
        or any(part in ("", ".", "..") for part in parts)
    )
    if unsafe:
        raise PackageError(f"{root}: unsafe path {relative!r}; paths in a package are relative, without '..' or links")
    return root.joinpath(*parts)


def _regular_file_size(root: Path, path: Path, relative: str) -> int:
    """Returns the size of `path`. Raises PackageError for a missing file, a link on the way or a special file."""
    current = root
    parts = path.relative_to(root).parts
    for index, part in enumerate(parts):
        current = current / part
        try:
            status = current.lstat()
        except OSError as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise PackageError(f"{root / relative}: the file {reason}; copy or export the package again") from None
        if stat.S_ISLNK(status.st_mode):
            raise PackageError(f"{current}: links are refused in a package; put the file itself there")
        is_last = index == len(parts) - 1
        if is_last and not stat.S_ISREG(status.st_mode):
            raise PackageError(f"{current}: expected a regular file")
    return status.st_size
