"""Builds a model whose weights take no memory: while it is built, only `torch.empty` goes to the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import EngineUnsupported
from .reachable import holders


class Written:
    """Storages that were made empty and written to afterwards: what is in them cannot be left out."""

    def __init__(self) -> None:
        self._storages: dict[int, Any] = {}

    def add(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage

    def __contains__(self, tensor: Any) -> bool:
        return tensor.untyped_storage()._cdata in self._storages


@contextmanager
def empty_to_meta() -> Iterator[Written]:
    """
    Within it `torch.empty` without a device makes a tensor on meta. All else (tables, masks, zeros) is real, on the device
    that is the default.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    written = Written()

    class EmptyToMeta(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if function is torch.empty and kwargs.get("device") is None:
                kwargs["device"] = "meta"
            if _writes(function) and args and isinstance(args[0], torch.Tensor) and args[0].is_meta:
                written.add(args[0])
            return function(*args, **kwargs)

    with EmptyToMeta():
        yield written


def _writes(function: Callable[..., Any]) -> bool:
    name = getattr(function, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def make_rest_real(modules: Iterable[Any], device: Any, written: Written) -> None:
    """
    What is on meta and no parameter (workspaces, buffers to be filled while computing) gets memory of its own, as empty as
    the engine would have made it. Raises EngineUnsupported where the model has written into it while it was built.
    """
    import torch

    made: dict[int, Any] = {}

    def real(tensor: Any, where: str) -> Any:
        if tensor in written:
            raise EngineUnsupported(
                f"{where} is made by torch.empty and filled while the model is built, which this loader does not follow: this "
                "model does not run with --load-format layercast."
            )
        storage = tensor.untyped_storage()
        if storage._cdata not in made:
            flat = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
            made[storage._cdata] = (storage, flat)
        flat = made[storage._cdata][1].view(tensor.dtype)
        return torch.as_strided(flat, tensor.shape, tensor.stride(), tensor.storage_offset())

    all_modules = list(modules)
    for module in all_modules:
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = real(buffer, f"{type(module).__name__}.{name}")
    for where, attributes in holders(all_modules):
        for key, value in list(attributes.items()):
            if isinstance(value, torch.Tensor) and value.is_meta and not isinstance(value, torch.nn.Parameter):
                attributes[key] = real(value, f"{where}.{key}")
