"""Latent attention: `W_UK_T` and `W_UV`, which post-processing makes of `kv_b_proj`, in the arena from the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from . import compat
from .binding import arena_name
from .errors import LayoutMismatch
from .probe import Probe

DERIVED = ("W_UK_T", "W_UV")


class Latent:
    """The model's layers of latent attention, with the arena tensors of each."""

    def __init__(self, model: Any, tensors: Mapping[str, Any]) -> None:
        self._layers: list[tuple[Any, dict[str, Any]]] = []
        for path, module in model.named_modules():
            found = {name: tensors[key] for name in DERIVED if (key := arena_name(f"{path}.{name}")) in tensors}
            if found and compat.is_latent_attention(module):
                self._layers.append((module, found))

    @contextmanager
    def unseen_by(self, probe: Probe) -> Iterator[None]:
        """These layers do make copies, which `put_arena_tensors` replaces: the probe looks away while they do."""
        for module, _ in self._layers:
            module.process_weights_after_loading = _blindly(probe, module.process_weights_after_loading)
        try:
            yield
        finally:
            for module, _ in self._layers:
                del module.process_weights_after_loading

    def put_arena_tensors(self) -> None:
        """
        In place of the copies. Where the engine has views of `kv_b_proj` itself (not quantized), those stay: they follow a
        commit, and a product over them is rounded as in an engine of stock. Raises LayoutMismatch.
        """
        for module, found in self._layers:
            for name, tensor in found.items():
                made = getattr(module, name, None)
                if made is None:
                    raise LayoutMismatch(f"{type(module).__name__} has made no {name}: this latent attention is not known.")
                if tuple(made.shape) != tuple(tensor.shape) or made.dtype != tensor.dtype:
                    raise LayoutMismatch(
                        f"{name}: the engine has {made.dtype} {list(made.shape)}, the arena {tensor.dtype} {list(tensor.shape)}."
                    )
                if not _shares_memory(made, tensor):
                    _put(module, name, tensor)


def _blindly(probe: Probe, process: Any) -> Any:
    def process_unseen(*args: Any) -> Any:
        with probe.blind():
            return process(*args)

    return process_unseen


def _shares_memory(made: Any, tensor: Any) -> bool:
    return bool(made.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr())


def _put(module: Any, name: str, tensor: Any) -> None:
    """Versions up to 0.25 have them as attributes, later ones as parameters."""
    import torch

    if name in module._parameters:
        module._parameters[name] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        setattr(module, name, tensor)
