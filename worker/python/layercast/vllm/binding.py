"""Which arena tensor each of the engine's parameters is, and putting it there. Imports neither vLLM nor torch.

First a plan, from names, shapes and dtypes alone, which raises with everything that is wrong; then it is carried out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import LayoutMismatch
from .layouts import CODES, METHODS, PLAIN, MethodLayout, Shape, arena_dtype

Layout = Mapping[str, tuple[str, Shape]]
ATTENTION_SCALES = ("k_scale", "v_scale", "q_scale", "prob_scale")
# Not parameters while the model is built: attention scales go by value, the other two after post-processing.
_KNOWN_UNBOUND = re.compile(r"\.(k_scale|v_scale|q_scale|prob_scale|W_UK_T|W_UV)$")
_SHOWN_MOST = 12


@dataclass(frozen=True)
class Slot:
    """A place in a module that holds a parameter."""

    module: Any
    leaf: str


@dataclass(frozen=True)
class Bound:
    """An arena tensor, how the engine sees it, and every place that holds it: the first is its own."""

    name: str
    transposed: bool
    slots: tuple[Slot, ...]
    old: Any
    """The parameter that stood there; None for one that post-processing would have made."""


@dataclass
class Plan:
    bound: list[Bound] = field(default_factory=list)
    by_value: list[Slot] = field(default_factory=list)
    """Placeholders of attention scales: small parameters that post-processing reads and removes."""


@dataclass(frozen=True)
class _Faults:
    """What does not fit, each as a line: what the engine expects, what the arena has."""

    lines: list[str] = field(default_factory=list)

    def add(self, name: str, expected: str, found: str) -> None:
        self.lines.append(f"  {name}: the engine expects {expected}, the arena has {found}")


def arena_name(path: str) -> str:
    """
    A parameter's path in vLLM's model -> the name of its kernel tensor. Experts lie one module deeper since 0.24, latent
    attention does in all, and a model that also sees keeps its text model below `language_model.`.
    """
    path = path.replace(".routed_experts.", ".").replace(".mla_attn.mla_attn.", ".mla_attn.")
    return path.removeprefix("language_model.")


def make_plan(model: Any, layout: Layout) -> Plan:
    """
    `model` is a torch module, or anything with its `named_modules(remove_duplicate=False)`, whose modules have `_parameters`
    and perhaps `quant_method`. Raises LayoutMismatch with every parameter that has no tensor of its shape and dtype, and
    every tensor that no parameter takes.
    """
    plan, faults, taken = Plan(), _Faults(), set[str]()
    paths = _paths(model)
    for slots, names in _parameters(paths):
        parameter = slots[0].module._parameters[slots[0].leaf]
        if slots[0].leaf in ATTENTION_SCALES:
            plan.by_value.extend(slots)
            continue
        found = [at for at, name in enumerate(names) if name in layout]
        if len({names[at] for at in found}) != 1:
            several = " and ".join(sorted({names[at] for at in found}))
            faults.add(names[0], _describe(arena_dtype(parameter.dtype), parameter.shape), several or "no such tensor")
            continue
        name, own = names[found[0]], slots[found[0]]
        method = layout_of(own.module)
        expected = (CODES if own.leaf in method.codes else arena_dtype(parameter.dtype), tuple(parameter.shape))
        _compare(name, expected, layout[name], faults)
        taken.add(name)
        others = tuple(slot for slot in slots if slot is not own)
        plan.bound.append(Bound(name, own.leaf in method.transposed, (own, *others), parameter))
    for module, names in paths.values():
        plan.bound.extend(_created(module, names, layout, taken, faults))
    for name, (dtype, shape) in layout.items():
        if name not in taken and _KNOWN_UNBOUND.search(name) is None:
            faults.add(name, "no such parameter", _describe(dtype, shape))
    if faults.lines:
        raise LayoutMismatch(_sentence(faults.lines, layout))
    return plan


def carry_out(plan: Plan, tensors: Mapping[str, Any], make_parameter: Callable[[Any], Any]) -> None:
    """Puts a parameter over the arena into every slot; `make_parameter` wraps a tensor without copying it."""
    for bound in plan.bound:
        tensor = tensors[bound.name]
        parameter = make_parameter(tensor.t() if bound.transposed else tensor)
        _keep_attributes(bound.old, parameter)
        for slot in bound.slots:
            slot.module._parameters.pop(slot.leaf, None)
            slot.module.register_parameter(slot.leaf, parameter)


def replaced(plan: Plan) -> dict[int, Any]:
    """After `carry_out`: the new parameter by the old one's id. Those that took no other's place are not in it."""
    first = ((bound.old, bound.slots[0]) for bound in plan.bound if bound.old is not None)
    return {id(old): slot.module._parameters[slot.leaf] for old, slot in first}


def layout_of(module: Any) -> MethodLayout:
    """By the class of the module's quantization method; a module without one keeps its parameters as they are."""
    return METHODS.get(type(getattr(module, "quant_method", None)).__name__, PLAIN)


def _paths(model: Any) -> dict[int, tuple[Any, list[str]]]:
    """Each module once, with every path that leads to it: an expert layer also holds its router, under another path."""
    paths: dict[int, tuple[Any, list[str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), (module, []))[1].append(path)
    return paths


def _parameters(paths: Mapping[int, tuple[Any, list[str]]]) -> Iterator[tuple[list[Slot], list[str]]]:
    """Each parameter once: its slots, one for each path, and the arena's name for each path. Tied ones have several."""
    found: dict[int, tuple[list[Slot], list[str]]] = {}
    for module, module_paths in paths.values():
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            slots, names = found.setdefault(id(parameter), ([], []))
            slot = Slot(module, leaf)
            for path in module_paths:
                slots.append(slot)
                names.append(arena_name(f"{path}.{leaf}" if path else leaf))
    yield from found.values()


def _created(
    module: Any, paths: Iterable[str], layout: Layout, taken: set[str], faults: _Faults
) -> Iterator[Bound]:
    """The scales that post-processing would have made, where the module has the codes that they belong to."""
    for leaf, created in layout_of(module).created.items():
        if module._parameters.get(created.codes) is None:
            continue
        # The path of the codes is that of the scales.
        names = [arena_name(f"{path}.{leaf}") for path in paths]
        codes = [layout[name][1] for path in paths if (name := arena_name(f"{path}.{created.codes}")) in layout]
        if not codes:
            continue  # the codes themselves are missing, which is said already
        name = next((name for name in names if name in layout), names[0])
        if name not in layout:
            faults.add(name, _describe("F32", created.shape(codes[0])), "no such tensor")
            continue
        _compare(name, ("F32", created.shape(codes[0])), layout[name], faults)
        taken.add(name)
        yield Bound(name, False, (Slot(module, leaf),), None)


def _compare(name: str, expected: tuple[str, Shape], found: tuple[str, Shape], faults: _Faults) -> None:
    if expected != (found[0], tuple(found[1])):
        faults.add(name, _describe(*expected), _describe(*found))


def _describe(dtype: str, shape: Iterable[int]) -> str:
    return f"{dtype} {list(shape)}"


def _keep_attributes(old: Any, new: Any) -> None:
    """Loaders, dimensions and flags that vLLM put on the parameter; what the new one computes itself is left out."""
    for key, value in vars(old).items() if old is not None else ():
        try:
            setattr(new, key, value)
        except AttributeError:
            pass


def _sentence(lines: list[str], layout: Layout) -> str:
    shown = "\n".join(lines[:_SHOWN_MOST])
    more = f"\n  and {len(lines) - _SHOWN_MOST} more" if len(lines) > _SHOWN_MOST else ""
    return (
        f"The engine's parameters and the arena's tensors differ in {len(lines)} of {len(layout)}:\n{shown}{more}\n"
        f"The arena holds {recipe_of(layout)}. Start the engine with the flags that `layercast engine-args vllm` prints for "
        "this fleet (model, --dtype, --quantization, --tensor-parallel-size), or reload the fleet with the engine's recipe."
    )


def recipe_of(layout: Layout) -> str:
    """What the weights of a layout look like, for people: `fp8-channel`, or `none`."""
    scales = {name: shape for name, (_, shape) in layout.items() if re.search(r"weight_scale(_inv)?$", name)}
    if not scales:
        return "weights that are not quantized (recipe none)"
    if any(name.endswith("_inv") for name in scales):
        return "FP8 in blocks of 128 (recipe fp8-block, or as-stored)"
    channel = any(len(shape) > 1 for shape in scales.values())
    return f"FP8 with one scale {'a channel (recipe fp8-channel)' if channel else 'a tensor (recipe fp8-tensor)'}"
