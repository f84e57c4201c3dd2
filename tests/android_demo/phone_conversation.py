"""A conversation on three ways to the same engine: Python's runtime, the Java library, the JNI library by itself."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgevlm
from edgevlm.backends.native_picture import image_spec
from edgevlm.cancel import CancelToken
from edgevlm.generate import Response
from edgevlm.image import load_image
from edgevlm.package import Package

ASSETS = Path(__file__).resolve().parents[2] / "assets"
Run = tuple[str, int, int, tuple[int, ...]]
"""Of a prompt: ("ids", 0, n, ids), or ("rows", first row of all pictures' rows, n, ())."""


@dataclass(frozen=True)
class Question:
    """A question, the picture (H, W, 3) that it is the first to come with, and the memory that is given back before."""

    text: str
    picture: NDArray[np.uint8] | None = None
    trim: str = ""


@dataclass(frozen=True)
class Turn:
    """What the Python runtime answered, and what it gave to the engine for it."""

    response: Response
    n_past: int
    runs: tuple[Run, ...]
    pixels: int
    """adler32 of the normalised pixels that were encoded for it, float32."""


@dataclass(frozen=True)
class Played:
    """What the JNI library said to a script."""

    variant: str
    plans: tuple[tuple[int, int, int], ...]
    pixels: tuple[int, ...]
    """adler32 of each picture's normalised pixels."""
    ids: tuple[tuple[int, ...], ...]
    """Tokens of each turn."""
    milliseconds: dict[str, float]
    """Sum over the conversation: load, encode, prefill, decode."""


def demo_questions() -> list[Question]:
    """A conversation for the demo's model: two pictures, the second of nine tiles; a cache put down and read back."""
    first, second = (load_image(ASSETS / name).copy() for name in ("blue-rectangle.png", "phone-screen.png"))
    return [
        Question("What color is the shape?", first),
        Question("What shape is in the image?"),
        Question("Which number is shown?", second),
        Question("What color is the triangle?", trim="KEY_VALUES"),
    ]


def ask_python(package: Path, questions: Sequence[Question], max_new_tokens: int) -> list[Turn]:
    """Asks greedily on this machine's native engine."""
    turns: list[Turn] = []
    with edgevlm.load(package, backend="native", threads=2) as model:
        session = model.session
        encode, prefill = session.encode, session.prefill
        features: list[NDArray[np.float32]] = []
        pixels: list[bytes] = []
        given: list[tuple[int, tuple[Run, ...]]] = []

        def encode_recorded(tiles: NDArray[np.float32], cancel: CancelToken) -> NDArray[np.float32]:
            pixels.append(np.asarray(tiles, np.float32).tobytes())
            features.append(encode(tiles, cancel))
            return features[-1]

        def prefill_recorded(
            segments: Sequence[NDArray[Any]], positions: NDArray[np.int64], cancel: CancelToken
        ) -> NDArray[np.float32]:
            rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in features]) if features else None
            given.append((int(positions[0]), tuple(_run(segment, rows) for segment in segments)))
            return prefill(segments, positions, cancel)

        # mypy knows methods only as what the class says.
        setattr(session, "encode", encode_recorded)  # noqa: B010
        setattr(session, "prefill", prefill_recorded)  # noqa: B010
        chat = model.chat()
        for question in questions:
            if question.picture is not None:
                chat.attach(question.picture)
            *_, last = chat.send(question.text, max_new_tokens=max_new_tokens)
            assert last.response is not None
            turns.append(Turn(last.response, *given[-1], zlib.adler32(b"".join(pixels))))
            pixels.clear()
    return turns


def _run(segment: NDArray[Any], rows: NDArray[np.float32] | None) -> Run:
    if segment.ndim == 1:
        return "ids", 0, len(segment), tuple(segment.tolist())
    assert rows is not None
    (first, *_) = np.flatnonzero((rows == segment[0]).all(axis=1))
    np.testing.assert_array_equal(rows[first : first + len(segment)], segment)
    return "rows", int(first), len(segment), ()


def java_conversation(questions: Sequence[Question], max_new_tokens: int, scratch: Path) -> dict[str, Any]:
    """Returns the conversation as ConversationRunner reads it; pictures become files in `scratch`."""
    turns = []
    for index, question in enumerate(questions):
        turn: dict[str, Any] = {"text": question.text}
        if question.picture is not None:
            path = scratch / f"picture{index}.rgb"
            path.write_bytes(question.picture.tobytes())
            turn["picture"] = [str(path), question.picture.shape[1], question.picture.shape[0]]
        if question.trim:
            turn["trim"] = question.trim
        turns.append(turn)
    return {"max_new_tokens": max_new_tokens, "turns": turns}


def jni_script(
    package: Package, arch: str, questions: Sequence[Question], turns: Sequence[Turn], max_new_tokens: int,
    scratch: Path,
) -> list[str]:  # fmt: skip
    """Returns the lines that jni_host.c plays: the same prompts, the pictures from their pixels on.

    Every second picture stands as a phone has it: four bytes a pixel, upside down with EXIF's orientation 3.
    """
    manifest = package.manifest
    lines = [f"open {package.path / 'lib' / arch} 2 {manifest.decoder.default_context}"]
    if manifest.processor is not None:
        lines.append(_spec_line(package))
    eos = manifest.generation.eos_token_ids
    n_pictures = 0
    for question, turn in zip(questions, turns, strict=True):
        if question.picture is not None:
            path = scratch / f"stored{n_pictures}.raw"
            lines.append(_picture_line(question.picture, path, upside_down=n_pictures % 2 == 1))
            n_pictures += 1
        if question.trim == "KEY_VALUES":
            lines.append("keep")
        words = [f"{kind} {n}" if kind == "ids" else f"{kind} {first} {n}" for kind, first, n, _ in turn.runs]
        runs = [" ".join([word, *map(str, run[3])]) for word, run in zip(words, turn.runs, strict=True)]
        ends = " ".join(map(str, [len(eos), *eos]))
        lines.append(f"turn {turn.n_past} {max_new_tokens} {ends} {len(runs)} {' '.join(runs)}")
    return lines


def _spec_line(package: Package) -> str:
    processor = package.manifest.processor
    assert processor is not None
    spec = image_spec(processor)
    names = ("scheme", "tile_px", "resample", "thumbnail", "max_rows", "max_cols", "max_tiles", "longest_edge_px",
             "n_pinpoints")  # fmt: skip
    integers = [getattr(spec, name) for name in names]
    integers += [side for pair in list(spec.grid_pinpoints)[: spec.n_pinpoints] for side in pair]
    reals = [spec.relaxed_alpha, spec.rescale_factor, *spec.image_mean, *spec.image_std]
    return " ".join(["spec", str(len(integers)), *map(str, integers), *map(repr, reals)])


def _picture_line(picture: NDArray[np.uint8], path: Path, *, upside_down: bool) -> str:
    stored = picture
    if upside_down:
        stored = np.concatenate([picture, np.full_like(picture[..., :1], 7)], axis=2)[::-1, ::-1]
    path.write_bytes(np.ascontiguousarray(stored).tobytes())
    height_px, width_px, pixel_bytes = stored.shape
    return f"picture {path} {height_px} {width_px} {pixel_bytes} {3 if upside_down else 1}"


def read_played(output: str) -> Played:
    """Returns what jni_host.c printed."""
    variant, plans, pixels, ids = "", [], [], []
    milliseconds = dict.fromkeys(("load", "encode", "prefill", "decode"), 0.0)
    turn: list[int] = []
    for line in output.splitlines():
        name, first, *rest = line.split()
        if name == "variant":
            variant = first
        elif name == "plan":
            plans.append((int(first), int(rest[0]), int(rest[1])))
        elif name == "pixels":
            pixels.append(int(first))
        elif name == "token":
            turn.append(int(first))
        else:
            milliseconds[name] += float(first)
        if name == "decode":
            ids.append(tuple(turn))
            turn = []
    return Played(variant, tuple(plans), tuple(pixels), tuple(ids), milliseconds)


def write_script(path: Path, lines: Sequence[str]) -> Path:
    """Writes a script and returns its path."""
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path
