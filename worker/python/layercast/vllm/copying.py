"""Copies an arena's tensors over the standing parameters of an engine that loaded its own weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .binding import ATTENTION_SCALES, arena_name, layout_of
from .errors import LayoutMismatch

# What vLLM keeps beside its parameters, made of them after loading.
DERIVED = ("W_UK_T", "W_UV")


@dataclass(frozen=True)
class Copy:
    """One tensor: where it goes, and what of the arena, turned as the engine has it."""

    name: str
    target: Any
    source: Any


def plan_copies(model: Any, tensors: Mapping[str, Any]) -> list[Copy]:
    """
    Every parameter of the model after its post-processing, and what it derives of them. Raises LayoutMismatch with all that
    has another shape or dtype, and all that is on one side only: a kernel's own order of bytes cannot be copied into.
    """
    copies: dict[int, Copy] = {}
    taken: set[str] = set()
    faults: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, target in _held(module):
            name = arena_name(f"{path}.{leaf}" if path else leaf)
            source = tensors.get(name)
            if source is None:
                continue
            taken.add(name)
            source = source.t() if leaf in layout_of(module).transposed else source
            copies.setdefault(id(target), Copy(name, target, source))
            if target.shape != source.shape or target.dtype != source.dtype:
                faults.append(f"{name}: the engine has {_describe(target)}, the arena {_describe(source)}")
    # A parameter that is held under several names is copied under the one that the arena has.
    for path, target in model.named_parameters():
        if id(target) not in copies:
            faults.append(f"{path}: the engine has {_describe(target)}, the arena no such tensor")
    for name, tensor in tensors.items():
        if name not in taken and name.rpartition(".")[2] not in (*ATTENTION_SCALES, *DERIVED):
            faults.append(f"{name}: the engine has no such parameter, the arena {_describe(tensor)}")
    if faults:
        shown = "\n  ".join(faults[:12])
        raise LayoutMismatch(
            f"{len(faults)} tensors of the engine and the arena differ:\n  {shown}\nGive the fleet the engine's recipe, or start "
            "the engine with --load-format layercast and the flags that `layercast engine-args vllm` prints."
        )
    return list(copies.values())


def copy_all(copies: list[Copy]) -> None:
    """Returns when the device is done. The addresses of the engine's parameters stay."""
    import torch

    with torch.no_grad():
        for copy in copies:
            copy.target.copy_(copy.source)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _held(module: Any) -> Iterator[tuple[str, Any]]:
    for leaf, parameter in module._parameters.items():
        if parameter is not None and leaf not in ATTENTION_SCALES:
            yield leaf, parameter
    for leaf in DERIVED:
        if leaf not in module._parameters and getattr(module, leaf, None) is not None:
            yield leaf, getattr(module, leaf)


def _describe(tensor: Any) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
