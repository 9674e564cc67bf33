"""Objects that hang on a model's modules without being modules: routers, kernels, attention implementations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

# Deeper than any engine nests what a layer computes with; a loop in the graph ends by `seen` anyway.
_DEPTH = 6
_LEAVES = (str, bytes, int, float, bool, type(None), type, ModuleType)


def holders(modules: Iterable[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    Each object reachable from the modules' own attributes: where it hangs, and its attributes, to read and to assign. Modules
    come first and are not entered through another's attributes, nor are classes, functions and Python's modules.
    """
    all_modules = list(modules)
    seen = {id(module) for module in all_modules}
    for module in all_modules:
        where = type(module).__name__
        yield where, vars(module)
        for key, value in list(vars(module).items()):
            if key not in ("_parameters", "_buffers", "_modules"):
                yield from _below(value, f"{where}.{key}", seen, _DEPTH)


def _below(value: Any, where: str, seen: set[int], depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if depth == 0 or isinstance(value, _LEAVES) or id(value) in seen or hasattr(type(value), "data_ptr"):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield from _below(item, f"{where}[{key!r}]", seen, depth - 1)
    elif isinstance(value, (list, tuple)):
        for at, item in enumerate(value):
            yield from _below(item, f"{where}[{at}]", seen, depth - 1)
    elif isinstance(attributes := getattr(value, "__dict__", None), dict) and not hasattr(type(value), "__get__"):
        yield where, attributes
        for key, item in list(attributes.items()):
            yield from _below(item, f"{where}.{key}", seen, depth - 1)


def point_again(modules: Iterable[Any], new: dict[int, Any]) -> int:
    """
    Objects hold some parameters by value: a router keeps the correction bias of its gate. Every attribute that is the old
    parameter (its id is the key) becomes the new one. Returns how many there were.
    """
    changed = 0
    for _, attributes in holders(modules):
        for key, value in list(attributes.items()):
            replacement = new.get(id(value))
            if replacement is not None:
                attributes[key] = replacement
                changed += 1
    return changed
