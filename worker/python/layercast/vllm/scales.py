"""Attention scales: the engine holds them by value, so a commit must not change those that it computes with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import compat
from .binding import ATTENTION_SCALES, arena_name
from .errors import AuditFailed


@dataclass(frozen=True)
class HeldScales:
    """The scales that the engine computes with: their arena tensors, and the values it has."""

    names: tuple[str, ...]
    tensors: tuple[Any, ...]
    values: tuple[float, ...]

    def check(self) -> None:
        """Raises AuditFailed where the arena has another value."""
        for name, held, found in zip(self.names, self.values, read_values(self.tensors), strict=True):
            if held != found:
                raise AuditFailed(
                    f"The commit changes {name} from {held} to {found}, which the engine holds by value since its start: roll "
                    "the fleet back, or start the engine again."
                )


def read_values(tensors: Iterable[Any]) -> list[float]:
    """In one copy to the host, however many there are."""
    import torch

    all_tensors = list(tensors)
    if not all_tensors:
        return []
    values: list[float] = torch.stack([tensor.reshape(()) for tensor in all_tensors]).tolist()
    return values


def fill_placeholders(by_value: Iterable[Any], paths: Mapping[int, str], tensors: Mapping[str, Any]) -> None:
    """
    Where an FP8 checkpoint's method has made parameters for the scales, post-processing takes them from there and removes
    them. `by_value`: their slots; `paths`: of a module by its id.
    """
    for slot in by_value:
        tensor = tensors.get(arena_name(f"{paths[id(slot.module)]}.{slot.leaf}"))
        if tensor is not None:
            slot.module._parameters[slot.leaf].data.fill_(float(tensor))


def fill_scales(modules: Iterable[tuple[str, Any]], tensors: Mapping[str, Any]) -> HeldScales:
    """
    After post-processing, into every attention layer that keeps keys and values in FP8. Others do not multiply with them, and
    have 1.0 as vLLM gives them.
    """
    held: dict[str, tuple[Any, str]] = {}
    for path, module in modules:
        if not compat.is_attention(module) or not compat.has_quantized_cache(module):
            continue
        for scale in ATTENTION_SCALES:
            name = arena_name(f"{path}.{scale}")
            if name in tensors and f"_{scale}" in module._buffers:
                held[name] = (module, scale)
    found = tuple(tensors[name] for name in held)
    values = tuple(read_values(found))
    for (module, scale), value in zip(held.values(), values, strict=True):
        compat.fill_scale(module, scale, value)
    return HeldScales(tuple(held), found, values)
