"""While post-processing runs: whatever reads an arena tensor into something else, or would write to it, is found by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import EngineUnsupported


class Probe:
    """Knows the arena's memory, and the module that is being worked on."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self._names = {tensor.untyped_storage().data_ptr(): "the arena" for tensor in tensors.values()}
        self._spans = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), name) for name, t in tensors.items()]
        self.where = "post-processing"
        self._blind = False

    @contextmanager
    def blind(self) -> Iterator[None]:
        """For a module whose copies are replaced by the arena's own afterwards."""
        before, self._blind = self._blind, True
        try:
            yield
        finally:
            self._blind = before

    def name_of(self, tensor: Any) -> str | None:
        """The arena tensor whose bytes these are, or None for memory of the engine's own."""
        if tensor.is_meta or tensor.numel() == 0 or tensor.untyped_storage().data_ptr() not in self._names:
            return None
        address = tensor.data_ptr()
        return next((name for begin, end, name in self._spans if begin <= address < end), None)

    def look(self, operator: Any, args: Any, kwargs: Any) -> None:
        """Before an operator runs. Raises EngineUnsupported for one that is more than another view of arena memory."""
        if self._blind or _is_view(operator):
            return
        from torch.utils._pytree import tree_leaves

        for value in tree_leaves((args, kwargs)):
            name = self.name_of(value) if hasattr(value, "untyped_storage") else None
            if name is not None:
                raise EngineUnsupported(
                    f"{self.where} calls {operator} with {name}: it computes with a copy of that weight, or changes it, and commits"
                    " do not reach it. Choose another kernel: --linear-backend cutlass, triton or torch, --moe-backend triton."
                )


def _is_view(operator: Any) -> bool:
    """An operator whose every result is memory of its argument, and which writes nothing."""
    schema = operator._schema
    aliases = [argument.alias_info for argument in schema.arguments if argument.alias_info is not None]
    returned = schema.returns and all(value.alias_info is not None for value in schema.returns)
    return bool(returned and aliases and not any(alias.is_write for alias in aliases))


@contextmanager
def probing(probe: Probe) -> Iterator[None]:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Looking(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            probe.look(operator, args, kwargs or {})
            return operator(*args, **(kwargs or {}))

    with Looking():
        yield
