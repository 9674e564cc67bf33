"""Whether every parameter of the engine still is the arena's memory: asked at load, and again at every commit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import AuditFailed
from .scales import HeldScales


@dataclass(frozen=True)
class Place:
    """A parameter as it was bound."""

    path: str
    module: Any
    leaf: str
    address: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Audit:
    """
    Called at a commit while the engine stands still: raises AuditFailed. It looks at addresses and at the scales that are held
    by value, not at bytes, so it takes about a microsecond a parameter.
    """

    places: tuple[Place, ...]
    scales: HeldScales
    digest: str
    """Of the arena's bytes, found the same before and after post-processing."""

    def __call__(self) -> None:
        for place in self.places:
            parameter = place.module._parameters.get(place.leaf)
            if parameter is None or parameter.data_ptr() != place.address or parameter.stride() != place.strides:
                raise AuditFailed(
                    f"{place.path} is no longer the arena's tensor: something has replaced or moved the parameter (a reload of "
                    "weights by another way, sleep mode), so commits would not reach it. Start the engine again."
                )
        self.scales.check()

    def report(self) -> dict[str, Any]:
        """For people and tests."""
        return {"parameters": len(self.places), "scales": len(self.scales.names), "digest": self.digest}


def take_audit(
    modules: Iterable[tuple[str, Any]], tensors: Mapping[str, Any], scales: HeldScales, digests: tuple[str, str]
) -> Audit:
    """
    `digests`: before and after post-processing. Raises AuditFailed when they differ, and when a parameter lies outside of the
    arena's tensors or is not one of them, as it is or transposed.
    """
    if digests[0] != digests[1]:
        raise AuditFailed(
            f"Post-processing has changed bytes of the arena (digest {digests[0]}, now {digests[1]}): reload the fleet, and start "
            "the engine with --linear-backend cutlass, --moe-backend triton and VLLM_USE_DEEP_GEMM=0."
        )
    spans = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors.values() if t.numel() > 0)
    places = []
    for path, module in modules:
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{path}.{leaf}" if path else leaf
            if not _inside(spans, parameter):
                raise AuditFailed(
                    f"{name} {list(parameter.shape)} is not in the arena after loading: a kernel or the model has made a copy of "
                    "its own, which a commit does not reach. Choose another kernel (--linear-backend, --moe-backend)."
                )
            places.append(Place(name, module, leaf, parameter.data_ptr(), parameter.stride()))
    return Audit(tuple(places), scales, digests[0])


def _inside(spans: list[tuple[int, int]], parameter: Any) -> bool:
    if parameter.is_meta:
        return False
    begin = parameter.data_ptr()
    at = bisect_right(spans, begin, key=lambda span: span[0]) - 1
    return parameter.numel() == 0 or (at >= 0 and begin + _extent_bytes(parameter) <= spans[at][1])


def _extent_bytes(parameter: Any) -> int:
    """From the first element to the last, as the strides say."""
    last = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    return int((last + 1) * parameter.element_size())
