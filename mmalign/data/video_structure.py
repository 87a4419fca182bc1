"""What the bytes of a clip's file say before a decoder sees them: its format, and whether its end is there.

FFmpeg plays what is left of a file that was cut off, and says nothing; the boxes of mp4, the lengths of
Matroska and RIFF, and the last bytes of GIF and PNG tell.
"""

import struct
from io import BufferedIOBase

__all__ = ["ENDINGS", "cut_off", "file_kind", "video_ending"]

ENDINGS: dict[str, frozenset[str]] = {
    "mp4": frozenset({".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".m4a"}),
    "webm": frozenset({".webm", ".mkv", ".mka"}),
    "avi": frozenset({".avi"}),
    "gif": frozenset({".gif"}),
    "webp": frozenset({".webp"}),
    "png": frozenset({".png", ".apng"}),
    "flv": frozenset({".flv"}),
    "asf": frozenset({".wmv", ".asf", ".wma"}),
    "ogg": frozenset({".ogv", ".ogg", ".ogx"}),
    "mpegts": frozenset({".ts", ".mts", ".m2ts"}),
    "mpeg": frozenset({".mpg", ".mpeg", ".vob"}),
}
"""Kind of file to the endings that fit it."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (0, b"\x1aE\xdf\xa3", "webm"),
    (8, b"AVI ", "avi"),
    (0, b"GIF8", "gif"),
    (8, b"WEBP", "webp"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x30\x26\xb2\x75", "asf"),
    (0, b"OggS", "ogg"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01\xb3", "mpeg"),
)

_PREFERRED = {"mp4": ".mp4", "webm": ".webm", "mpegts": ".ts", "mpeg": ".mpg", "asf": ".wmv", "ogg": ".ogv"}


def file_kind(head: bytes) -> str:
    """The kind of file that begins with some bytes (512 are enough), a key of `ENDINGS`; "" when unknown."""
    if head[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1", b"ftypM4A ", b"ftypM4B "):
        return ""  # pictures, and sound alone
    for place, start, kind in _SIGNATURES:
        if head[place : place + len(start)] == start:
            return kind
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "mpegts"
    return ""


def video_ending(data: bytes | str | None) -> str:
    """The file ending that fits some encoded bytes; `.video` when they say nothing."""
    kind = file_kind(data[:512]) if isinstance(data, bytes) else ""
    if kind == "webm" and isinstance(data, bytes) and b"matroska" in data[:64]:
        return ".mkv"
    return _PREFERRED.get(kind, f".{kind or 'video'}")


def cut_off(file: BufferedIOBase, kind: str, size: int) -> str:
    """What is missing at the end of a file of that kind, in words; "" when nothing is, or nobody can tell.

    Args:
        file: opened for reading; its position is moved.
        kind: as `file_kind` says.
        size: bytes in it.
    """
    match kind:
        case "mp4":
            return _boxes(file, size)
        case "webm":
            return _segment(file, size)
        case "avi" | "webp":
            return _riff(file, size)
        case "gif":
            return _tail(file, size, b"\x3b", "the byte that ends a GIF")
        case "png":
            return _tail(file, size, b"IEND\xaeB`\x82", "the chunk IEND")
    return ""


def _read(file: BufferedIOBase, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count)


def _boxes(file: BufferedIOBase, size: int) -> str:
    """mp4 and mov: every box ends inside the file, and one of them is the index."""
    place, names = 0, []
    while place < size:
        head = _read(file, place, 16)
        if len(head) < 8:
            return f"a box of {len(head)} bytes"
        length, name = struct.unpack_from(">I", head)[0], head[4:8]
        if length == 1:
            length = struct.unpack_from(">Q", head, 8)[0] if len(head) == 16 else size + 1
        if length == 0:  # to the end of the file
            length = size - place
        if not length >= 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in name):
            return ""  # nothing that a box begins with: damage, or padding, and a decoder decides
        names.append(name)
        if place + length > size:
            missing = place + length - size
            return f"the last {missing} bytes of its box {name.decode('latin-1')!r}"
        place += length
    return "" if b"moov" in names else "its index, the box 'moov', which many programs write last"


def _segment(file: BufferedIOBase, size: int) -> str:
    """Matroska and webm: the segment's length, where it was filled in."""
    place = 0
    for _ in range(8):
        head = _read(file, place, 16)
        identity, used = _number(head, keep=True)
        length, more = _number(head[used:], keep=False)
        if not used or not more:
            return ""
        if identity == 0x18538067:
            unknown = length == (1 << 7 * more) - 1
            missing = place + used + more + length - size
            return f"the last {missing} bytes of its segment" if not unknown and missing > 0 else ""
        place += used + more + length
        if place >= size:
            return "its segment"
    return ""


def _number(data: bytes, *, keep: bool) -> tuple[int, int]:
    """(Value, bytes) of a Matroska number of variable length, its marker kept or not; (0, 0) for none."""
    if not data or not data[0]:
        return 0, 0
    width = 9 - data[0].bit_length()
    if len(data) < width:
        return 0, 0
    value = int.from_bytes(data[:width], "big")
    return (value if keep else value & ((1 << 7 * width) - 1)), width


def _riff(file: BufferedIOBase, size: int) -> str:
    """AVI and WebP: the length of the first chunk; 0 where a program could not go back to fill it in."""
    promised = struct.unpack_from("<I", _read(file, 4, 4).ljust(4, b"\0"))[0]
    missing = promised + 8 - size
    # One byte more or less is the padding of odd lengths, which some programs count and others do not.
    return f"the last {missing} bytes" if promised not in (0, 0xFFFFFFFF) and missing > 1 else ""


def _tail(file: BufferedIOBase, size: int, end: bytes, name: str) -> str:
    """Whether the file ends as its format does, but for zeros and line ends that some programs add."""
    tail = _read(file, max(0, size - 4096), 4096)
    return "" if tail.rstrip(b"\0\r\n ").endswith(end) else name
