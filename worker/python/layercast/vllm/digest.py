"""A 64-bit number over all bytes of an arena, computed where they are: to find accidents, no defence against intent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# A few of these are what it takes beside the arena.
CHUNK_BYTES = 16 << 20
_WORD_BYTES = 8
_ODD = -7046029254386353131  # 2^64 divided by the golden ratio, as a signed word
_SEED = 0x1A4E


def digest(tensors: Iterable[Any]) -> str:
    """16 hex digits over the tensors' bytes, in the order of their names' tensors; torch tensors, contiguous."""
    import torch

    total = 0
    weights: dict[Any, Any] = {}
    for tensor in tensors:
        flat = tensor.reshape(-1).view(torch.uint8)
        for begin in range(0, flat.numel(), CHUNK_BYTES):
            words = _words(flat[begin : begin + CHUNK_BYTES])
            if words.device not in weights:
                generator = torch.Generator().manual_seed(_SEED)
                made = torch.randint(-(2**63), 2**63 - 1, (CHUNK_BYTES // _WORD_BYTES,), generator=generator)
                weights[words.device] = (made | 1).to(words.device)
            # The high half goes into the low one too: times an odd number, the highest bit is the same in every word.
            mixed = words ^ ((words >> 32) & 0xFFFFFFFF)
            total = (total * _ODD + int((mixed * weights[words.device][: words.numel()]).sum())) % 2**64
    return f"{total:016x}"


def _words(chunk: Any) -> Any:
    """int64 over the bytes; a tail is filled up with zeros, in a copy of that tail."""
    import torch

    tail = chunk.numel() % _WORD_BYTES
    if tail == 0:
        return chunk.view(torch.int64)
    return torch.nn.functional.pad(chunk, (0, _WORD_BYTES - tail)).view(torch.int64)
