"""Encoded sound to numbers and back: libsndfile (soundfile) first, FFmpeg (PyAV) for what it does not know.

Both are the extra `audio` and are imported when a file is opened. What is acceptable is decided in
`audio_media`; nothing is decoded beyond what it accepts.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from mmalign.errors import MissingExtraError, RowError, explain

__all__ = ["Opened", "RawAudio", "audio_ending", "encode_audio", "looks_like_audio", "open_audio"]

_ALONE = {"protocol_whitelist": "none"}
"""No protocol has this name: a playlist or manifest cannot open the files or addresses it lists."""

_CONTAINERS = frozenset(
    {
        *("aac", "ac3", "aiff", "amr", "ape", "asf", "au", "avi", "caf", "flac", "mov", "mp3", "mp4", "m4a"),
        *("mpegts", "matroska", "webm", "ogg", "tta", "w64", "wav", "wv"),
    }
)
"""FFmpeg's names of formats that hold sound; its other demuxers guess at text and pictures, too."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (8, b"WAVE", ".wav"),
    (8, b"AIF", ".aiff"),
    (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"),
    (0, b"ID3", ".mp3"),
    (4, b"ftyp", ".m4a"),
    (0, b"\x1aE\xdf\xa3", ".webm"),
    (0, b".snd", ".au"),
    (0, b"caff", ".caf"),
    (0, b"riff", ".w64"),
    (0, b"\x30\x26\xb2\x75", ".wma"),
)

_STREAMED = (0, 0xFFFFFFFF, 0x7FFFFFFF)
"""Sizes that programs write into a WAV header when they do not know the length yet."""

Accept = Callable[["Opened"], None]

_SCALES = {"int16": 2.0**15, "int32": 2.0**31}


@dataclass(frozen=True)
class RawAudio:
    """Samples as they were decoded.

    Args:
        values: float32 [channel, sample], nominally in [-1, 1].
        sampling_rate: samples per second.
        coding: of the samples in the file (PCM_16, FLOAT, aac, ...).
        container: of the file (WAV, FLAC, mp4, ...).
        complete: whether as many samples were there as the file promises.
    """

    values: NDArray[np.float32]
    sampling_rate: int
    coding: str
    container: str
    complete: bool


@dataclass(frozen=True)
class Opened:
    """What the head of a file says before anything is decoded.

    Args:
        sampling_rate: samples per second.
        channels: number of channels.
        samples: promised samples per channel; None where the file does not say.
    """

    sampling_rate: int
    channels: int
    samples: int | None


def audio_ending(data: bytes | str | None) -> str:
    """The file ending that fits some encoded bytes; `.audio` when they say nothing."""
    if not isinstance(data, bytes):
        return ".audio"
    for place, start, ending in _SIGNATURES:
        if data[place : place + len(start)] == start:
            return ending
    # A frame of MPEG audio begins with eleven set bits; layer 0 is AAC's stream of frames.
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return ".aac" if data[1] & 0x06 == 0 else ".mp3"
    return ".audio"


def looks_like_audio(data: bytes) -> bool:
    """Whether the first bytes are those of a format that usually holds sound."""
    return audio_ending(data) != ".audio"


def _missing(name: str) -> MissingExtraError:
    message = explain(
        "sound files", got=f"[{name} is not installed]", expected="it", do="pip install 'mmalign[audio]'"
    )
    return MissingExtraError(message)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, the library it wraps is not
        raise _missing("soundfile") from error
    return soundfile


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise _missing("PyAV") from error
    return av


# ------------------------------------------------------------------------------------------------ decoding


def open_audio(data: bytes, *, where: str, accept: Accept) -> RawAudio:
    """The samples in some encoded bytes.

    Args:
        data: the file.
        where: file, row and field, for messages.
        accept: called with `Opened` before anything is decoded, and with growing counts while a file without
            a length is; it raises `RowError` to stop.

    Raises:
        MissingExtraError: soundfile or PyAV is needed and not installed.
        RowError: reason `not_audio` or `damaged_audio`, or what `accept` raised.
    """
    sound = _soundfile()
    try:
        with sound.SoundFile(io.BytesIO(data)) as file:
            head = Opened(file.samplerate, file.channels, _promised(file))
            accept(head)
            values = file.read(dtype="float32", always_2d=True)
            return RawAudio(
                np.ascontiguousarray(values.T),
                file.samplerate,
                file.subtype,
                file.format,
                complete=(head.samples is None or len(values) >= head.samples) and _is_whole(data),
            )
    except (sound.SoundFileError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, RowError):
            raise
        reason = str(error).rpartition(": ")[2].strip()
    if _only_libsndfile(data):
        raise _damaged(where, reason)
    return _by_ffmpeg(data, where, accept, reason)


_UNKNOWN_LENGTH = 2**62


def _promised(file: Any) -> int | None:
    """Samples per channel; libsndfile answers with a huge number where the file does not say."""
    frames = int(file.frames)
    return frames if 0 <= frames < _UNKNOWN_LENGTH else None


def _is_whole(data: bytes) -> bool:
    """Whether the file ends where it says: libsndfile shortens what was cut off to what is there."""
    if data[:4] == b"OggS":
        return _ogg_ends(data)
    size, offset = _promised_bytes(data)
    return size is None or size in _STREAMED or len(data) - offset >= size


def _ogg_ends(data: bytes) -> bool:
    """Whether the last page is whole and marked as the last."""
    page = data.rfind(b"OggS")
    segments = data[page + 26] if len(data) > page + 26 else 0
    size = 27 + segments + sum(data[page + 27 : page + 27 + segments])
    return len(data) >= page + size and bool(data[page + 5] & 0x04)


def _promised_bytes(data: bytes) -> tuple[int | None, int]:
    """(Promised bytes, where they begin) of the samples of a WAV, AIFF or AU file; (None, 0) for others."""
    if data[:4] == b"FORM" and data[8:11] == b"AIF":
        return struct.unpack_from(">I", data, 4)[0], 8
    if data[:4] == b".snd" and len(data) >= 12:
        return struct.unpack_from(">I", data, 8)[0], struct.unpack_from(">I", data, 4)[0]
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None, 0
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], struct.unpack_from("<I", data, place + 4)[0]
        if name == b"data":
            return size, place + 8
        place += 8 + size + (size & 1)
    return None, 0


_PLAIN_WAV = (0x0001, 0x0003, 0x0006, 0x0007, 0xFFFE)
"""Format tags of integers, floats, A-law, mu-law and the extensible form."""


def _only_libsndfile(data: bytes) -> bool:
    """Whether FFmpeg must not try what libsndfile refused: it plays damaged FLAC and PCM as noise."""
    if data[:4] == b"fLaC":
        return True
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    place = data.find(b"fmt ", 12, 4096)
    return place < 0 or len(data) < place + 10 or struct.unpack_from("<H", data, place + 8)[0] in _PLAIN_WAV


def _damaged(where: str, reason: str) -> RowError:
    message = f"{where}: the sound is damaged ({reason.rstrip('.')}). Copy or download it again."
    return RowError(message, reason="damaged_audio")


def _refused(data: bytes, where: str, reason: str) -> RowError:
    """Damaged where the first bytes are those of a sound file, else no sound at all."""
    if looks_like_audio(data):
        return _damaged(where, reason)
    message = (
        f"{where}: got a file that starts with {bytes(data[:8])!r}, expected a sound (WAV, FLAC, MP3, Ogg, "
        f"m4a, webm; {reason.rstrip('.')})."
    )
    return RowError(message, reason="not_audio")


def _by_ffmpeg(data: bytes, where: str, accept: Accept, reason: str) -> RawAudio:
    av = _av()
    try:
        with av.open(io.BytesIO(data), options=_ALONE) as container:
            names = set(container.format.name.split(","))
            streams = container.streams.audio
            if not streams or not names & _CONTAINERS or streams[0].codec_context is None:
                raise _refused(data, where, "no track of sound in it")
            found = _track(container, streams[0], where, accept)
            return replace(found, complete=found.complete and _is_whole(data))
    except (av.FFmpegError, ValueError, IndexError, MemoryError) as error:
        if isinstance(error, RowError):
            raise
        raise _refused(data, where, f"{reason}; {str(error).rpartition(': ')[2]}") from error


def _track(container: Any, stream: Any, where: str, accept: Accept) -> RawAudio:
    """All samples of one track, as far as `accept` allows."""
    rate, coding = int(stream.rate or 0), str(stream.codec_context.name)
    told = _told_samples(container, stream)
    parts: list[NDArray[np.float32]] = []
    total = channels = 0
    for frame in container.decode(stream):
        values = _frame_values(frame, where)
        if parts and (len(values) != channels or int(frame.sample_rate) != rate):
            raise _damaged(where, "its rate or number of channels changes on the way")
        if not parts:
            channels, rate = len(values), int(frame.sample_rate)
            accept(Opened(rate, channels, told))
        total += values.shape[1]
        accept(Opened(rate, channels, total))
        parts.append(values)
    if not parts:
        raise _damaged(where, "no samples in it")
    # Containers round their durations, and encoders pad: a tenth of a second is no cut.
    complete = told is None or total >= told - max(0.1 * rate, 0.01 * told)
    return RawAudio(np.concatenate(parts, axis=1), rate, coding, container.format.name, complete)


def _told_samples(container: Any, stream: Any) -> int | None:
    """Samples per channel that the track or, failing that, the container promises."""
    rate = int(stream.rate or 0)
    if stream.duration and stream.time_base:
        return int(stream.duration * stream.time_base * rate)
    if container.duration and container.format.name != "aac":  # a stream of frames has no length: a guess
        return int(container.duration * rate // 1_000_000)
    return None


def _frame_values(frame: Any, where: str) -> NDArray[np.float32]:
    """[channel, sample] of a decoded frame in [-1, 1], whatever its format."""
    values: NDArray[np.generic] = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    kind = str(values.dtype)
    if kind in _SCALES:
        return (values.astype(np.float64) / _SCALES[kind]).astype(np.float32)
    if kind == "uint8":
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind != "f":
        raise _damaged(where, f"samples of type {kind}")
    return values.astype(np.float32)


# ------------------------------------------------------------------------------------------------ encoding

Coding = Literal["PCM_16", "PCM_24", "FLOAT"]


def encode_audio(
    samples: Float[Tensor, "channel sample"],
    sampling_rate: int,
    *,
    container: Literal["flac", "wav"] = "flac",
    coding: Coding = "PCM_16",
) -> bytes:
    """The bytes of a sound file; equal samples give equal bytes.

    Values beyond [-1, 1] are cut, except in floating point: as integers they would wrap around.

    Args:
        samples: in [-1, 1].
        sampling_rate: samples per second.
        container: FLAC is lossless and half as large; it holds no floating point.
        coding: of the samples.

    Raises:
        MissingExtraError: soundfile is not installed.
        RowError: reason `not_finite`; NaN or infinity among the samples.
    """
    if not bool(samples.isfinite().all()):
        message = explain("samples", got="[NaN or infinity]", expected="finite numbers")
        raise RowError(message, reason="not_finite")
    file = io.BytesIO()
    values = samples.detach().to("cpu").float()
    values = values if coding == "FLOAT" else values.clamp(-1.0, 1.0)
    _soundfile().write(file, values.T.numpy(), sampling_rate, format=container.upper(), subtype=coding)
    return file.getvalue()
