"""How vLLM's quantization methods keep a module's parameters, by the method's class name, beside what the arena has.

By the class and never by a shape: where K equals N both ways fit, and one of them computes nonsense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]
BLOCK = 128
CODES = "F8_E4M3"


@dataclass(frozen=True)
class Created:
    """A parameter that post-processing makes: F32, of the shape that `shape` makes of the codes' shape in the arena."""

    codes: str
    shape: Callable[[Shape], Shape]


@dataclass(frozen=True)
class MethodLayout:
    """What one quantization method makes of a module's parameters; those not named stay as they are."""

    codes: frozenset[str] = frozenset()
    """Become F8_E4M3."""
    transposed: frozenset[str] = frozenset()
    """[K, N] with strides (1, K) to the engine, [N, K] in the arena: the same bytes."""
    created: Mapping[str, Created] = field(default_factory=dict)


def _blocks(shape: Shape) -> Shape:
    return (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))


def _linear(scale: str, shape: Callable[[Shape], Shape], *, transposed: bool) -> MethodLayout:
    weight = frozenset({"weight"})
    return MethodLayout(weight, weight if transposed else frozenset(), {scale: Created("weight", shape)})


def _experts(scale: str, shape: Callable[[Shape], Shape]) -> MethodLayout:
    weights = ("w13_weight", "w2_weight")
    created = {weight.replace("weight", scale): Created(weight, shape) for weight in weights}
    return MethodLayout(frozenset(weights), frozenset(), created)


PLAIN = MethodLayout()

METHODS: Mapping[str, MethodLayout] = {
    "UnquantizedLinearMethod": PLAIN,
    "UnquantizedEmbeddingMethod": PLAIN,
    "UnquantizedFusedMoEMethod": PLAIN,
    # Of an FP8 checkpoint in blocks: the parameters are made as they are on disk.
    "Fp8LinearMethod": PLAIN,
    "Fp8MoEMethod": PLAIN,
    # They hold nothing but the attention scales, which go by value.
    "BaseKVCacheMethod": PLAIN,
    "Fp8KVCacheMethod": PLAIN,
    "Fp8PerTensorOnlineLinearMethod": _linear("weight_scale", lambda shape: (1,), transposed=True),
    "Fp8PtpcOnlineLinearMethod": _linear("weight_scale", lambda shape: (shape[0], 1), transposed=True),
    "Fp8PerBlockOnlineLinearMethod": _linear("weight_scale_inv", _blocks, transposed=False),
    "Fp8PerTensorOnlineMoEMethod": _experts("weight_scale", lambda shape: (shape[0],)),
    "Fp8PtpcOnlineMoEMethod": _experts("weight_scale", lambda shape: (*shape[:2], 1)),
    "Fp8PerBlockOnlineMoEMethod": _experts("weight_scale_inv", _blocks),
}

_TORCH_TO_ARENA = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float8_e4m3fn": CODES, "uint8": "U8"}


def arena_dtype(dtype: object) -> str:
    """A torch dtype as the arena calls it; its own name where an arena has no such."""
    name = str(dtype).removeprefix("torch.")
    return _TORCH_TO_ARENA.get(name, name)
