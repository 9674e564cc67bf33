"""Laws of the binding: which arena tensor a parameter of the engine is. Without vLLM, without torch."""

from __future__ import annotations

import unittest
from typing import Any

from layercast.vllm.binding import Plan, carry_out, make_plan, replaced
from layercast.vllm.errors import LayoutMismatch
from layercast.vllm.layouts import METHODS
from layercast.vllm.methods import METHODS as FINISHES
from layercast.vllm.reachable import point_again

from .fake_model import FakeModule, FakeTensor, meta, tree

PLAIN = "UnquantizedLinearMethod"
CHANNEL = "Fp8PtpcOnlineLinearMethod"
Layout = dict[str, tuple[str, tuple[int, ...]]]


def bind(model: FakeModule, layout: Layout) -> tuple[Plan, dict[str, FakeTensor]]:
    """The plan, carried out over tensors whose addresses are 1000, 2000, ... in the layout's order."""
    tensors = {name: FakeTensor(dtype, list(shape), 1000 * at) for at, (name, (dtype, shape)) in enumerate(layout.items(), 1)}
    plan = make_plan(model, layout)
    carry_out(plan, tensors, lambda view: view)
    return plan, tensors


def refusal(model: FakeModule, layout: Layout) -> str:
    try:
        make_plan(model, layout)
    except LayoutMismatch as error:
        return str(error)
    raise AssertionError("it was bound")


class Linear(unittest.TestCase):
    def test_takes_the_arenas_tensor_as_it_is(self) -> None:
        module = FakeModule(PLAIN, weight=meta("bfloat16", 8, 4))
        _, tensors = bind(tree(o_proj=module), {"o_proj.weight": ("BF16", (8, 4))})
        self.assertIs(module._parameters["weight"], tensors["o_proj.weight"])

    def test_square_codes_are_transposed_by_the_methods_class_alone(self) -> None:
        for method, transposed in {
            CHANNEL: True,
            "Fp8PerTensorOnlineLinearMethod": True,
            "Fp8PerBlockOnlineLinearMethod": False,
            "Fp8LinearMethod": False,
        }.items():
            with self.subTest(method):
                dtype = "float8_e4m3fn" if method == "Fp8LinearMethod" else "bfloat16"
                module = FakeModule(method, weight=meta(dtype, 128, 128))
                scales: dict[str, Layout] = {
                    CHANNEL: {"p.weight_scale": ("F32", (128, 1))},
                    "Fp8PerTensorOnlineLinearMethod": {"p.weight_scale": ("F32", (1,))},
                    "Fp8PerBlockOnlineLinearMethod": {"p.weight_scale_inv": ("F32", (1, 1))},
                }
                bind(tree(p=module), {"p.weight": ("F8_E4M3", (128, 128)), **scales.get(method, {})})
                self.assertEqual(module._parameters["weight"].strides, (1, 128) if transposed else None)
                self.assertEqual(module._parameters["weight"].data_ptr(), 1000)

    def test_gets_the_scales_that_post_processing_would_have_made(self) -> None:
        module = FakeModule(CHANNEL, weight=meta("bfloat16", 8, 4), bias=meta("bfloat16", 8))
        layout: Layout = {"p.weight": ("F8_E4M3", (8, 4)), "p.weight_scale": ("F32", (8, 1)), "p.bias": ("BF16", (8,))}
        _, tensors = bind(tree(p=module), layout)
        self.assertIs(module._parameters["weight_scale"], tensors["p.weight_scale"])
        self.assertIs(module._parameters["bias"], tensors["p.bias"])

    def test_keeps_what_the_engine_has_put_on_the_parameter(self) -> None:
        old = meta("bfloat16", 8, 4)
        old.weight_loader = loader = object()  # type: ignore[attr-defined]
        module = FakeModule(PLAIN, weight=old)
        bind(tree(p=module), {"p.weight": ("BF16", (8, 4))})
        self.assertIs(module._parameters["weight"].weight_loader, loader)

    def test_a_method_in_every_version_has_a_layout_and_a_finish(self) -> None:
        self.assertEqual(set(METHODS), set(FINISHES))


class Names(unittest.TestCase):
    def test_experts_lie_one_module_deeper(self) -> None:
        module = FakeModule("UnquantizedFusedMoEMethod", w13_weight=meta("bfloat16", 2, 8, 4), w2_weight=meta("bfloat16", 2, 4, 4))
        layout: Layout = {"mlp.experts.w13_weight": ("BF16", (2, 8, 4)), "mlp.experts.w2_weight": ("BF16", (2, 4, 4))}
        for path in ("mlp__experts__routed_experts", "mlp__experts"):
            plan, _ = bind(tree(**{path: module}), layout)
            self.assertEqual([bound.name for bound in plan.bound], list(layout))

    def test_experts_scales_are_bound_by_the_weight_that_they_belong_to(self) -> None:
        for method, leaf, scales in (
            ("Fp8PerTensorOnlineMoEMethod", "weight_scale", ((2,), (2,))),
            ("Fp8PtpcOnlineMoEMethod", "weight_scale", ((2, 512, 1), (2, 256, 1))),
            ("Fp8PerBlockOnlineMoEMethod", "weight_scale_inv", ((2, 4, 2), (2, 2, 2))),
        ):
            with self.subTest(method):
                module = FakeModule(method, w13_weight=meta("bfloat16", 2, 512, 256), w2_weight=meta("bfloat16", 2, 256, 256))
                layout: Layout = {
                    "experts.w13_weight": ("F8_E4M3", (2, 512, 256)),
                    f"experts.w13_{leaf}": ("F32", scales[0]),
                    "experts.w2_weight": ("F8_E4M3", (2, 256, 256)),
                    f"experts.w2_{leaf}": ("F32", scales[1]),
                }
                bind(tree(experts__routed_experts=module), layout)
                self.assertEqual(module._parameters[f"w2_{leaf}"].data_ptr(), 4000)

    def test_latent_attention_lies_one_module_deeper(self) -> None:
        attention = FakeModule(None)
        layout: Layout = {
            "self_attn.mla_attn.k_scale": ("F32", ()),
            "self_attn.mla_attn.W_UK_T": ("BF16", (2, 4, 4)),
            "self_attn.mla_attn.W_UV": ("BF16", (2, 4, 4)),
            "self_attn.mla_attn.norm": ("BF16", (4,)),
        }
        attention._parameters["norm"] = meta("bfloat16", 4)
        bind(tree(self_attn__mla_attn__mla_attn=attention), layout)
        self.assertEqual(attention._parameters["norm"].data_ptr(), 4000)

    def test_a_text_model_inside_one_that_sees_has_its_plain_names(self) -> None:
        module = FakeModule(PLAIN, weight=meta("bfloat16", 8, 4))
        bind(tree(language_model__model__o_proj=module), {"model.o_proj.weight": ("BF16", (8, 4))})
        self.assertEqual(module._parameters["weight"].data_ptr(), 1000)


class Aliases(unittest.TestCase):
    def test_a_tied_head_is_the_embedding(self) -> None:
        weight = meta("bfloat16", 64, 4)
        embedding, head = FakeModule("UnquantizedEmbeddingMethod", weight=weight), FakeModule(weight=weight)
        _, tensors = bind(tree(model__embed_tokens=embedding, lm_head=head), {"model.embed_tokens.weight": ("BF16", (64, 4))})
        self.assertIs(head._parameters["weight"], embedding._parameters["weight"])
        self.assertIs(head._parameters["weight"], tensors["model.embed_tokens.weight"])

    def test_a_head_of_its_own_is_not_tied_because_it_looks_like_the_embedding(self) -> None:
        embedding, head = (FakeModule(weight=meta("bfloat16", 64, 4)) for _ in range(2))
        model = tree(model__embed_tokens=embedding, lm_head=head)
        text = refusal(model, {"model.embed_tokens.weight": ("BF16", (64, 4))})
        self.assertIn("lm_head.weight: the engine expects BF16 [64, 4], the arena has no such tensor", text)

    def test_a_router_that_its_experts_hold_too_is_bound_once_whichever_path_comes_first(self) -> None:
        gate = FakeModule(PLAIN, weight=meta("bfloat16", 2, 4))
        layout: Layout = {"mlp.gate.weight": ("BF16", (2, 4))}
        for first, second in (("mlp__experts__gate", "mlp__gate"), ("mlp__gate", "mlp__experts__gate")):
            plan, _ = bind(tree(**{first: gate, second: gate}), layout)
            self.assertEqual(len(plan.bound), 1)
            self.assertEqual(gate._parameters["weight"].data_ptr(), 1000)

    def test_a_bias_held_by_value_follows(self) -> None:
        bias = meta("float32", 2)
        gate = FakeModule(None, e_score_correction_bias=bias)

        class Router:
            def __init__(self) -> None:
                self.e_score_correction_bias = bias

        class Runner(FakeModule):
            def __init__(self) -> None:
                super().__init__()
                self.router = Router()
                self.kernels = {"first": [Router()]}

        runner = Runner()
        plan, tensors = bind(tree(gate=gate, experts=runner), {"gate.e_score_correction_bias": ("F32", (2,))})
        self.assertEqual(point_again([gate, runner], replaced(plan)), 2)
        for router in (runner.router, runner.kernels["first"][0]):
            self.assertIs(router.e_score_correction_bias, tensors["gate.e_score_correction_bias"])

    def test_a_scale_that_took_no_parameters_place_stands_for_none(self) -> None:
        module = FakeModule(CHANNEL, weight=meta("bfloat16", 8, 4))
        plan, _ = bind(tree(p=module), {"p.weight": ("F8_E4M3", (8, 4)), "p.weight_scale": ("F32", (8, 1))})
        module.nothing = None  # type: ignore[attr-defined]
        self.assertEqual(point_again([module], replaced(plan)), 0)
        self.assertEqual(len(replaced(plan)), 1)


class Refused(unittest.TestCase):
    def test_another_shape(self) -> None:
        model = tree(p=FakeModule(PLAIN, weight=meta("bfloat16", 8, 4)))
        text = refusal(model, {"p.weight": ("BF16", (4, 8))})
        self.assertIn("p.weight: the engine expects BF16 [8, 4], the arena has BF16 [4, 8]", text)
        self.assertIn("layercast engine-args vllm", text)

    def test_another_dtype(self) -> None:
        model = tree(p=FakeModule(PLAIN, weight=meta("bfloat16", 8, 4)))
        for dtype in ("F16", "F8_E4M3"):
            self.assertIn(f"the arena has {dtype} [8, 4]", refusal(model, {"p.weight": (dtype, (8, 4))}))

    def test_another_recipe_is_named(self) -> None:
        model = tree(p=FakeModule(CHANNEL, weight=meta("bfloat16", 8, 4)))
        cases: list[tuple[Layout, str]] = [
            ({"p.weight": ("BF16", (8, 4))}, "recipe none"),
            ({"p.weight": ("F8_E4M3", (8, 4)), "p.weight_scale": ("F32", (1,))}, "recipe fp8-tensor"),
            ({"p.weight": ("F8_E4M3", (8, 4)), "p.weight_scale_inv": ("F32", (1, 1))}, "recipe fp8-block"),
        ]
        for layout, recipe in cases:
            self.assertIn(recipe, refusal(model, layout))

    def test_a_parameter_without_a_tensor(self) -> None:
        module = FakeModule(PLAIN, weight=meta("bfloat16", 8, 4), bias=meta("bfloat16", 8))
        text = refusal(tree(p=module), {"p.weight": ("BF16", (8, 4))})
        self.assertIn("p.bias: the engine expects BF16 [8], the arena has no such tensor", text)

    def test_a_tensor_without_a_parameter(self) -> None:
        module = FakeModule(PLAIN, weight=meta("bfloat16", 8, 4))
        layout: Layout = {"p.weight": ("BF16", (8, 4)), "p.bias": ("BF16", (8,)), "attn.k_scale": ("F32", ())}
        text = refusal(tree(p=module), layout)
        self.assertIn("p.bias: the engine expects no such parameter, the arena has BF16 [8]", text)
        self.assertNotIn("k_scale", text)

    def test_codes_without_their_scale(self) -> None:
        model = tree(p=FakeModule(CHANNEL, weight=meta("bfloat16", 8, 4)))
        text = refusal(model, {"p.weight": ("F8_E4M3", (8, 4))})
        self.assertIn("p.weight_scale: the engine expects F32 [8, 1], the arena has no such tensor", text)

    def test_every_fault_is_counted_and_nothing_was_bound(self) -> None:
        modules = {f"p{at}": FakeModule(PLAIN, weight=meta("bfloat16", 8, 4)) for at in range(20)}
        before = {name: module._parameters["weight"] for name, module in modules.items()}
        layout: Layout = {f"p{at}.weight": ("BF16", (8, 4 if at == 0 else 5)) for at in range(20)}
        text = refusal(tree(**modules), layout)
        self.assertIn("differ in 19 of 20", text)
        self.assertIn("and 7 more", text)
        self.assertEqual({name: module._parameters["weight"] for name, module in modules.items()}, before)

    def test_one_parameter_under_two_names_of_the_arena(self) -> None:
        weight: Any = meta("bfloat16", 8, 4)
        model = tree(a=FakeModule(PLAIN, weight=weight), b=FakeModule(PLAIN, weight=weight))
        text = refusal(model, {"a.weight": ("BF16", (8, 4)), "b.weight": ("BF16", (8, 4))})
        self.assertIn("a.weight and b.weight", text)


if __name__ == "__main__":
    unittest.main()
