"""
Attaches to the kernel tensors of a Layercast rank, on the CPU (a mapped file) or on CUDA (IPC), without copying them.

    import layercast

    arena = layercast.attach(".layercast", rank=0)
    weights = arena.tensors()                        # dict[str, torch.Tensor], at addresses that stay
    arena.wait_for_version("120", timeout_s=600)
    logits = arena.read(lambda version: forward(weights, tokens).clone())

docs/consumer.md tells the rest. torch is imported by `tensors()` alone; nothing is unpickled.
"""

from .arena import Arena, attach
from .errors import (
    ArenaClosed,
    ArenaInvalid,
    ArenaReplaced,
    Changed,
    DeviceUnavailable,
    LayercastError,
    Timeout,
)

__version__ = "0.1.0"
__all__ = [
    "Arena",
    "ArenaClosed",
    "ArenaInvalid",
    "ArenaReplaced",
    "Changed",
    "DeviceUnavailable",
    "LayercastError",
    "Timeout",
    "attach",
]
