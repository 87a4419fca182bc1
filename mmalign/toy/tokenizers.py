"""The tokenizers of the toy worlds: CLIP's byte-level encoding with one token per word of the captions."""

import itertools
from collections import Counter

from transformers import CLIPTokenizer

from mmalign.toy.scenes import COLOURS, COUNT_WORDS, RELATIONS, SHAPES

MAX_TOKENS = 16  # a caption has at most ten; 77 in SDXL


def _words() -> list[str]:
    """Every word of the captions: each becomes one token."""
    plurals = ["crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES]
    return sorted({*COUNT_WORDS, *COLOURS, *SHAPES, *plurals, *" ".join(RELATIONS).split()})


def _byte_symbols() -> list[str]:
    """The character that stands for each of the 256 bytes in byte-level tokenizers, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make every word one token: always the most frequent pair, ties by spelling."""
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(symbols) > 1 for symbols in spelled):
        pairs = Counter(pair for symbols in spelled for pair in itertools.pairwise(symbols))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merge(symbols, best) for symbols in spelled]
    return merges


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in symbols:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def new_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Two CLIP tokenizers over the caption words and all bytes.

    They differ in their padding, as SDXL's do. Any text can be encoded: other words fall apart into bytes.
    """
    symbols, merges = _byte_symbols(), _merges(_words())
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    first, second = (
        CLIPTokenizer(vocab=dict(vocab), merges=list(merges), pad_token=pad, model_max_length=MAX_TOKENS)
        for pad in ("<|endoftext|>", "!")
    )
    return first, second
