"""What a file is that is not one of our pictures, told from its first bytes, and what to do with it.

Two of the kinds would pass for pictures: HEIC shares AVIF's brand `mif1`, and a camera's raw file is a TIFF whose first
picture is a thumbnail. So kinds are looked up before a decoder is tried. A kind without a signature of its own is
found by what its text begins with.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 4096
"""Enough for the brands and items of a HEIF file, and for a tar archive's mark at 257."""

_SAVE = "save it as JPEG or PNG first"
_EXPORT = "export it as JPEG or PNG first"
_TONE_MAP = "tone-map it to PNG first"
_FRAME = "take a frame of it as JPEG or PNG first"
_RENDER = "render a page to PNG first"
_UNPACK = "unpack it and give the picture inside"
_DEVELOP = "develop it, or take the camera's JPEG"
_DOWNLOAD = "download the picture itself"


@dataclass(frozen=True)
class _Kind:
    """A file format: `name` with its article, what to do with it, and its signatures (offset, bytes)."""

    name: str
    advice: str
    signatures: tuple[tuple[int, bytes], ...]

    def matches(self, head: bytes) -> bool:
        return any(head.startswith(mark, offset) for offset, mark in self.signatures)


_KINDS = (
    _Kind("a JPEG XL picture", _SAVE, ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL \r\n\x87\n"))),
    _Kind("a JPEG XR picture", _SAVE, ((0, b"II\xbc"), (0, b"MM\xbc"))),
    _Kind("a JPEG-LS picture", _SAVE, ((0, b"\xff\xd8\xff\xf7"),)),
    _Kind("an icon or cursor (ICO)", "save the size that you want as PNG first", ((0, b"\0\0\1\0"), (0, b"\0\0\2\0"))),
    _Kind("a Mac icon (ICNS)", "save the size that you want as PNG first", ((0, b"icns"),)),
    _Kind("a Photoshop document (PSD)", _EXPORT, ((0, b"8BPS"),)),
    _Kind("a GIMP document (XCF)", _EXPORT, ((0, b"gimp xcf"),)),
    _Kind("a Krita document", _EXPORT, ((30, b"mimetypeapplication/x-krita"),)),
    _Kind("an OpenRaster document", _EXPORT, ((30, b"mimetypeimage/openraster"),)),
    _Kind("an OpenEXR picture of floating-point light", _TONE_MAP, ((0, b"v/1\x01"),)),
    _Kind("a Radiance HDR picture of floating-point light", _TONE_MAP, ((0, b"#?RADIANCE"), (0, b"#?RGBE"))),
    _Kind("a PFM picture of floating-point samples", _TONE_MAP, ((0, b"PF\n"), (0, b"PF "))),
    _Kind("a PAM picture", "save it as PNG or PPM first", ((0, b"P7\n"),)),
    _Kind("a QOI picture", _SAVE, ((0, b"qoif"),)),
    _Kind("a DirectDraw texture (DDS)", _SAVE, ((0, b"DDS "),)),
    _Kind("a KTX texture", _SAVE, ((0, b"\xabKTX "),)),
    _Kind("a PCX picture", _SAVE, tuple((0, bytes((10, version, 1))) for version in (0, 2, 3, 4, 5))),
    _Kind("an ILBM picture", _SAVE, ((8, b"ILBM"),)),
    _Kind("a BPG picture", _SAVE, ((0, b"BPG\xfb"),)),
    _Kind("a FLIF picture", _SAVE, ((0, b"FLIF"),)),
    _Kind("an XPM or XBM picture", _SAVE, ((0, b"/* XPM */"),)),
    _Kind("a Sun raster picture", _SAVE, ((0, b"\x59\xa6\x6a\x95"),)),
    _Kind("an SGI picture", _SAVE, ((0, b"\x01\xda\0"), (0, b"\x01\xda\1"))),
    _Kind("a DICOM file", "export its picture as PNG first", ((128, b"DICM"),)),
    _Kind("a FITS file", "export its picture as PNG first", ((0, b"SIMPLE  ="),)),
    _Kind("a DjVu document", _RENDER, ((0, b"AT&TFORM"),)),
    _Kind("a Windows metafile drawing", "render it to PNG first", ((0, b"\xd7\xcd\xc6\x9a"), (40, b" EMF"))),
    # CR2 says so behind a TIFF's header; other cameras' TIFFs are told by their tags (edgevlm/sample_layout.py).
    _Kind("a camera's raw file (CR2)", _DEVELOP, ((0, b"II*\0\x10\0\0\0CR\x02"),)),
    _Kind("a camera's raw file (CRW)", _DEVELOP, ((6, b"HEAPCCDR"),)),
    _Kind("a camera's raw file (RAF)", _DEVELOP, ((0, b"FUJIFILMCCD-RAW"),)),
    _Kind("a camera's raw file (ORF)", _DEVELOP, ((0, b"IIRO"), (0, b"IIRS"), (0, b"MMOR"))),
    _Kind("a camera's raw file (RW2)", _DEVELOP, ((0, b"IIU\0"),)),
    _Kind("a camera's raw file (X3F)", _DEVELOP, ((0, b"FOVb"),)),
    _Kind("a camera's raw file (MRW)", _DEVELOP, ((0, b"\0MRM"),)),
    _Kind("a video (WebM or Matroska)", _FRAME, ((0, b"\x1a\x45\xdf\xa3"),)),
    _Kind("a video (AVI)", _FRAME, ((8, b"AVI "),)),
    _Kind("a video (MPEG)", _FRAME, ((0, b"\0\0\1\xba"), (0, b"\0\0\1\xb3"))),
    _Kind("a video (Flash)", _FRAME, ((0, b"FLV\1"),)),
    _Kind("a video (Windows Media)", _FRAME, ((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),)),
    _Kind("a video (Motion JPEG 2000)", _FRAME, ((20, b"mjp2"),)),
    _Kind("a video (QuickTime)", _FRAME, ((4, b"moov"), (4, b"mdat"), (4, b"wide"), (4, b"pnot"))),
    _Kind("audio or video (Ogg)", "take a frame of the video as JPEG or PNG first", ((0, b"OggS"),)),
    _Kind("sound, not a picture", "give a picture", ((8, b"WAVE"), (0, b"fLaC"), (0, b"ID3"))),
    _Kind("a PDF document", _RENDER, ((0, b"%PDF"),)),
    _Kind("a PostScript document", _RENDER, ((0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6"))),
    _Kind("an RTF document", _RENDER, ((0, b"{\\rtf"),)),
    _Kind("an Office document", _RENDER, ((0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), (30, b"[Content_Types].xml"))),
    _Kind("a zip archive", _UNPACK, ((0, b"PK\3\4"), (0, b"PK\5\6"))),
    _Kind("compressed (gzip)", _UNPACK, ((0, b"\x1f\x8b"),)),
    _Kind("compressed (bzip2)", _UNPACK, ((0, b"BZh"),)),
    _Kind("compressed (xz)", _UNPACK, ((0, b"\xfd7zXZ\0"),)),
    _Kind("compressed (zstd)", _UNPACK, ((0, b"\x28\xb5\x2f\xfd"),)),
    _Kind("a 7z archive", _UNPACK, ((0, b"7z\xbc\xaf\x27\x1c"),)),
    _Kind("a RAR archive", _UNPACK, ((0, b"Rar!\x1a\7"),)),
    _Kind("a tar archive", _UNPACK, ((257, b"ustar"),)),
    _Kind("a numpy array", "load it with numpy.load and pass the array", ((0, b"\x93NUMPY"),)),
    _Kind("a GGUF model", "give the picture; models go before it", ((0, b"GGUF"),)),
    _Kind("a SQLite database", "give a picture", ((0, b"SQLite format 3\0"),)),
    _Kind("a program", "give a picture", ((0, b"\x7fELF"), (0, b"MZ\x90\0"))),
)  # fmt: skip

_TEXTS = (
    ("a Git-LFS pointer: the picture was not downloaded", "run git lfs pull", (b"version https://git-lfs",)),
    ("a git-annex pointer: the picture was not downloaded", "run git annex get", (b"/annex/objects/", b".git/annex/")),
    ("a web page", _DOWNLOAD, (b"<!doctype html", b"<html", b"<head", b"<body", b"<script")),
    ("an answer in JSON", _DOWNLOAD, (b'{"', b"{\n", b"{\r\n", b"[{")),
    ("a picture written as base64 text", "decode it first", (b"ivborw0kggo", b"/9j/4", b"r0lgodl", b"uklgr")),
    ("a data: address saved as text", "decode its base64 part first", (b"data:image/",)),
)
"""(what it is, what to do, beginnings in lower case)."""

_HEVC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = {
    b"avci": "H.264", b"avcs": "H.264", b"j2ki": "JPEG 2000", b"j2is": "JPEG 2000", b"jpeg": "JPEG", b"jpgs": "JPEG",
    b"vvic": "VVC", b"vvis": "VVC", b"evbi": "EVC", b"evmi": "EVC", b"evbs": "EVC", b"evms": "EVC",
    b"unif": "uncompressed samples",
}  # fmt: skip
"""Brand → how a HEIF file with it codes its pictures. Source: the MP4 registration authority's list of brands."""
_HEIF_CONTAINERS = frozenset({b"mif1", b"mif2", b"mif3", b"msf1", b"miaf", b"heif"})


def foreign_kind(head: bytes) -> str | None:
    """Returns the end of the sentence "FILE ..." for a file that begins with `head` and is no picture of ours.

    None when a decoder should try.
    """
    if head[4:8] == b"ftyp":
        return _boxed_kind(head)
    for kind in _KINDS:
        if kind.matches(head):
            return f"is {kind.name}; {kind.advice}."
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for name, advice, beginnings in _TEXTS:
        if text.startswith(beginnings):
            return f"is {name}; {advice}."
    if text.startswith((b"<svg", b"<?xml", b"<!doctype svg", b"<!--")) or b"<svg" in text:
        if b"<html" in text:
            return f"is a web page; {_DOWNLOAD}."
        return "is an SVG or XML drawing, not a picture of pixels; render it to PNG first."
    if not head.strip(b"\0"):
        return "holds only zero bytes; copy or download it again."
    return None


def is_text(head: bytes) -> bool:
    """Returns whether `head` reads as text, which no decoder has accepted."""
    whole = head[: len(head) - 3] if len(head) >= HEAD_BYTES else head  # a cut character at the end is no matter
    try:
        text = whole.decode()
    except UnicodeDecodeError as error:
        if error.start < len(whole) - 3:
            return False
        text = whole[: error.start].decode()
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)


def is_avif(head: bytes) -> bool:
    """Returns whether a file says that it can be read as AVIF, by any of its brands."""
    return not _AVIF_BRANDS.isdisjoint(_brands(head))


def _brands(head: bytes) -> list[bytes]:
    """The brands of a file that begins with an ftyp box, the main one first."""
    if head[4:8] != b"ftyp":
        return []
    size = min(int.from_bytes(head[:4], "big"), len(head))
    return [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]


def _boxed_kind(head: bytes) -> str | None:
    """As `foreign_kind`, for the family of MP4: HEIF, AVIF, JPEG XL, raw files of Canon, video, sound."""
    brands = _brands(head)
    main, known = brands[0], set(brands)
    if known & _AVIF_BRANDS:
        return None
    # A file with only a container's brand says by its items how it is coded.
    if known & _HEVC_BRANDS or (known & _HEIF_CONTAINERS and (b"hvc1" in head or b"hev1" in head)):
        return f"is a HEIC picture (coded in HEVC), which Pillow cannot read; {_SAVE}."
    coded = next((_HEIF_BRANDS[brand] for brand in brands if brand in _HEIF_BRANDS), None)
    if coded is not None or known & _HEIF_CONTAINERS:
        how = f"coded in {coded}" if coded else "of an unknown coding"
        return f"is a HEIF picture ({how}), which Pillow cannot read; {_SAVE}."
    if main == b"jxl ":
        return f"is a JPEG XL picture; {_SAVE}."
    if main == b"crx ":
        return f"is a camera's raw file (CR3); {_DEVELOP}."
    if main in (b"M4A ", b"M4B ", b"F4A "):
        return "is sound, not a picture; give a picture."
    return f"is a video (MP4 or QuickTime); {_FRAME}."
