"""A clip on a page: its outline, a player, its length; or what is wrong with it."""

import base64
import html
import io

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mmalign.data.audio_media import DecodedAudio, decode_audio, encode_audio
from mmalign.data.config import AudioLimits
from mmalign.data.media import read_media
from mmalign.errors import RowError

__all__ = ["outline", "player"]

_COLUMNS = 128
"""Columns of the outline."""

_MP3_RATES = frozenset({8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000})


def player(media: bytes | str, where: str, limits: AudioLimits) -> str:
    """HTML of a clip: an outline, a player with the sound inside, its facts; or the problem."""
    try:
        data = read_media(media, where=where, max_bytes=limits.max_bytes, kind="audio")
        clip = decode_audio(data, where=where, limits=limits)
    except RowError as error:
        return f'<div class="problem">{html.escape(str(error))}</div>'
    kind, sound = _compressed(clip)
    encoded = base64.b64encode(sound).decode()
    facts = " · ".join([f"{clip.seconds:.2f} s", f"{clip.sampling_rate} Hz", *clip.notes])
    return (
        f'{outline(clip.samples)}<audio controls preload="metadata" src="data:audio/{kind};base64,{encoded}">'
        f'</audio><div class="facts">{html.escape(facts)}</div>'
    )


def outline(samples: Float[Tensor, "channel sample"]) -> str:
    """An SVG of the lowest and highest sample in each of 128 parts, over all channels."""
    count = min(_COLUMNS, samples.shape[1])
    edges = [round(place * samples.shape[1] / count) for place in range(count + 1)]
    bars = []
    for place in range(count):
        part = samples[:, edges[place] : edges[place + 1]]
        top, bottom = (
            50.0 * (1.0 - float(part.max().clamp(-1, 1))),
            50.0 * (1.0 - float(part.min().clamp(-1, 1))),
        )
        bars.append(f"M{place + 0.5:g} {top - 0.3:.1f}V{bottom + 0.3:.1f}")
    return (
        f'<svg class="wave" viewBox="0 0 {count} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="outline of the sound"><path d="{"".join(bars)}" stroke="currentColor" '
        'stroke-width="0.8"/></svg>'
    )


def _compressed(clip: DecodedAudio) -> tuple[str, bytes]:
    """(Type, bytes) a browser plays: MP3 where its rates allow, else WAV."""
    if clip.sampling_rate not in _MP3_RATES or clip.channels > 2:
        return "wav", encode_audio(clip.samples[:2], clip.sampling_rate, container="wav")
    import soundfile

    file = io.BytesIO()
    values = np.ascontiguousarray(clip.samples.clamp(-1.0, 1.0).T.numpy())
    soundfile.write(file, values, clip.sampling_rate, format="MP3")
    return "mpeg", file.getvalue()
