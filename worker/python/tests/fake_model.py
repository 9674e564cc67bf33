"""A model as the binding sees one: modules with parameters, a quantization method by its class's name. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class FakeTensor:
    """Shape, dtype and an address; `t()` is a view of the same bytes. As with torch, `vars` has what others put on it alone."""

    __slots__ = ("__dict__", "address", "dtype", "shape", "strides")

    def __init__(self, dtype: str, shape: list[int], address: int = 0, strides: tuple[int, ...] | None = None) -> None:
        self.dtype = dtype
        self.shape = tuple(shape)
        self.address = address
        self.strides = strides

    def t(self) -> FakeTensor:
        rows, columns = self.shape
        return FakeTensor(self.dtype, [columns, rows], self.address, (1, columns))

    def data_ptr(self) -> int:
        return self.address


class FakeModule:
    def __init__(self, method: str | None = None, **parameters: Any) -> None:
        self._parameters: dict[str, Any] = dict(parameters)
        self._modules: dict[str, Any] = {}
        self._buffers: dict[str, Any] = {}
        self.quant_method: Any = None if method is None else type(method, (), {})()

    def register_parameter(self, leaf: str, parameter: Any) -> None:
        self._parameters[leaf] = parameter

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, FakeModule]]:
        """Only as it is asked for here: every path."""
        assert not remove_duplicate
        yield prefix, self
        for name, module in self._modules.items():
            yield from module.named_modules(f"{prefix}.{name}" if prefix else name, remove_duplicate)


def tree(**modules: Any) -> FakeModule:
    """`a__b` stands for the module `a.b`."""
    root = FakeModule()
    for path, module in modules.items():
        at = root
        *parents, leaf = path.split("__")
        for name in parents:
            at = at._modules.setdefault(name, FakeModule())
        at._modules[leaf] = module
    return root


def meta(dtype: str, *shape: int) -> FakeTensor:
    return FakeTensor(f"torch.{dtype}", list(shape))
