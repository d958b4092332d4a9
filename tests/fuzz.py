"""Ways to damage a file: each takes its bytes, those of another file, and a random generator."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Mutation = Callable[[bytes, bytes, random.Random], bytes]

HUGE = 1 << 42  # of what a header claims: bytes, elements


def truncated(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    return whole[: draw.randrange(len(whole))]


def extended(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    return whole + draw.randbytes(draw.randrange(1, 100))


def bits_flipped(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    altered = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8))):
        altered[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    return bytes(altered)


def run_overwritten(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    start, length = draw.randrange(len(whole)), draw.choice((1, 2, 4, 8, 16, 100))
    filling = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    return whole[:start] + filling[: len(whole) - start] + whole[start + length :]


def run_removed(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(whole))
    return whole[:start] + whole[start + draw.randrange(1, 64) :]


def run_repeated(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(whole))
    stop = start + draw.randrange(1, 64)
    return whole[:stop] + whole[start:]


def blocks_swapped(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    size = draw.choice((1, 8, 64, 128))
    first, second = sorted(draw.randrange(len(whole) - size) for _ in range(2))
    second = max(second, first + size)
    block, later = whole[first : first + size], whole[second : second + size]
    between = whole[first + size : second]
    return whole[:first] + later + between + block + whole[second + size :]


def spliced(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    cut = draw.randrange(1, len(whole))
    from_end = draw.randrange(1, len(other))
    return draw.choice((whole[:cut] + other[from_end:], whole[:cut] + other[cut:]))


def length_claimed(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    """Eight bytes somewhere, most often at the start, become a huge or odd number."""
    at = draw.choice((0, 0, draw.randrange(max(1, len(whole) - 8))))
    number = draw.choice((HUGE, (1 << 63) - 1, (1 << 64) - 1, 0, 1 << 31, len(whole)))
    return whole[:at] + struct.pack("<Q", number) + whole[at + 8 :]


BLIND: tuple[Mutation, ...] = (
    truncated, extended, bits_flipped, run_overwritten, run_removed, run_repeated, blocks_swapped,
    spliced, length_claimed,
)  # fmt: skip


def header_edited(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    """One value of a safetensors file's header is another, or gone; the header stays JSON."""
    length = struct.unpack("<Q", whole[:8])[0]
    header = edited(json.loads(whole[8 : 8 + length]), draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3, HUGE, 10**30, 0.5, float("inf"), float("nan"), "", "w", "I64", "F64",
    "BOOL", [], [3], [HUGE], [HUGE, HUGE], [0, HUGE], [-1], [[]], {}, {"w": 3}, [None], "9" * 5000,
)  # fmt: skip


def edited(value: Any, draw: random.Random) -> Any:
    """A JSON value with one of its parts replaced, removed, doubled or renamed."""
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.1:
        return draw.choice(ODD)
    if isinstance(value, dict):
        return _edited_dict(value, draw)
    parts, index = list(value), draw.randrange(len(value))
    how = draw.random()
    if how < 0.1:
        del parts[index]
    elif how < 0.2:
        parts.append(parts[index])
    elif how < 0.3:
        parts.reverse()
    else:
        parts[index] = edited(parts[index], draw)
    return parts


def _edited_dict(value: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    parts, name = dict(value), draw.choice(list(value))
    how = draw.random()
    if how < 0.1:
        del parts[name]
    elif how < 0.2:
        parts[name + "x"] = parts.pop(name)
    else:
        parts[name] = edited(parts[name], draw)
    return parts
