"""Laws of what hangs on a model's modules. Without vLLM, without torch."""

from __future__ import annotations

import sys
import unittest
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from layercast.vllm.reachable import holders, point_again

from .fake_model import FakeModule, meta


class Reachable(unittest.TestCase):
    def test_objects_in_objects_lists_tuples_and_dicts_are_found(self) -> None:
        old, new = meta("float32", 4), meta("float32", 4)

        @dataclass(frozen=True)
        class Frozen:
            bias: Any

        module = FakeModule()
        module.router = SimpleNamespace(bias=old, deeper=[(Frozen(old), {"x": SimpleNamespace(bias=old)})])  # type: ignore[attr-defined]
        self.assertEqual(point_again([module], {id(old): new}), 3)
        router: Any = module.router  # type: ignore[attr-defined]
        frozen, named = router.deeper[0]
        for bias in (router.bias, frozen.bias, named["x"].bias):
            self.assertIs(bias, new)

    def test_a_loop_ends_and_python_modules_and_classes_are_left_alone(self) -> None:
        module = FakeModule()
        loop: Any = SimpleNamespace(module=module, python=sys, kind=SimpleNamespace, function=print)
        loop.self = loop
        module.loop = loop  # type: ignore[attr-defined]
        found = [where for where, _ in holders([module])]
        self.assertEqual(found, ["FakeModule", "FakeModule.loop"])

    def test_a_module_is_not_entered_through_another(self) -> None:
        inner, outer = FakeModule(), FakeModule()
        outer.inner = [inner]  # type: ignore[attr-defined]
        self.assertEqual([where for where, _ in holders([outer, inner])], ["FakeModule", "FakeModule"])


if __name__ == "__main__":
    unittest.main()
