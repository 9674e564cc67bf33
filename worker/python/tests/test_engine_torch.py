"""Laws of the loader's parts that need torch: what is built empty, what is watched, what is audited."""

from __future__ import annotations

import types
import unittest
from collections.abc import Callable
from typing import Any

from layercast.vllm import compat
from layercast.vllm.audit import take_audit
from layercast.vllm.binding import carry_out, make_plan
from layercast.vllm.digest import digest
from layercast.vllm.empty_meta import empty_to_meta, make_rest_real
from layercast.vllm.errors import AuditFailed, EngineUnsupported, LayoutMismatch
from layercast.vllm.latent import Latent
from layercast.vllm.probe import Probe, probing
from layercast.vllm.scales import HeldScales, fill_scales

from .optional_torch import torch

NO_SCALES = HeldScales((), (), ())
Change = Callable[[Any], Any]


def arena_of(**tensors: Any) -> dict[str, Any]:
    """Over one storage, each at a multiple of 256 bytes, as an arena has them. `a__b` stands for `a.b`."""
    at, places = 0, {}
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        places[name.replace("__", ".")] = (at, size, tensor)
        at += size + -size % 256
    flat = torch.zeros(at, dtype=torch.uint8)
    views = {name: flat[at : at + size].view(tensor.dtype).view(tensor.shape) for name, (at, size, tensor) in places.items()}
    for name, (_, _, tensor) in places.items():
        views[name].copy_(tensor)
    return views


@unittest.skipIf(torch is None, "torch is not installed")
class EmptyToMeta(unittest.TestCase):
    def test_only_torch_empty_without_a_device_goes_to_meta(self) -> None:
        with empty_to_meta():
            self.assertTrue(torch.empty(2, 3).is_meta)
            self.assertTrue(torch.empty((2,), dtype=torch.int8).is_meta)
            for real in (torch.zeros(2), torch.arange(3), torch.tensor(1.0), torch.empty(2, device="cpu"), torch.ones(1)):
                self.assertFalse(real.is_meta)

    def test_what_is_left_gets_memory_and_keeps_its_sharing(self) -> None:
        module = torch.nn.Module()
        with empty_to_meta() as written:
            shared = torch.empty(4, 6)
            module.register_buffer("left", shared)
            module.holder = types.SimpleNamespace(right=shared[1:], other=torch.empty(3))
        make_rest_real([module], torch.device("cpu"), written)
        self.assertEqual((tuple(module.left.shape), module.left.device.type), ((4, 6), "cpu"))
        self.assertEqual(module.holder.right.data_ptr(), module.left[1:].data_ptr())
        self.assertFalse(module.holder.other.is_meta)

    def test_what_the_model_writes_while_it_is_built_is_refused_by_name(self) -> None:
        writes: list[Change] = [
            lambda tensor: tensor.fill_(1),
            lambda tensor: tensor.__setitem__(0, 1),
            lambda tensor: tensor[1:].zero_(),
            lambda tensor: torch.nn.init.ones_(tensor),
        ]
        for write in writes:
            module = torch.nn.Module()
            with empty_to_meta() as written:
                module.register_buffer("table", torch.empty(4))
                write(module.table)
            with self.assertRaisesRegex(EngineUnsupported, "Module.table"):
                make_rest_real([module], torch.device("cpu"), written)


@unittest.skipIf(torch is None, "torch is not installed")
class Watched(unittest.TestCase):
    def setUp(self) -> None:
        self.arena = arena_of(p__weight=torch.ones(4, 4), q__weight=torch.ones(2))

    def test_views_are_free(self) -> None:
        weight = self.arena["p.weight"]
        with probing(Probe(self.arena)), torch.no_grad():
            weight.view(16).reshape(4, 4).t()[1:].unsqueeze(0).detach().expand(2, 3, 4).permute(2, 0, 1)
            torch.nn.Parameter(weight, requires_grad=False).data.split(2)
            torch.ones(3) + 1

    def test_a_copy_is_found_by_operator_and_name(self) -> None:
        copies: list[Change] = [
            lambda weight: weight.clone(),
            lambda weight: weight.t().contiguous(),
            lambda weight: weight.double(),
            lambda weight: weight[1:].sum().item(),
        ]
        for copy in copies:
            with self.assertRaisesRegex(EngineUnsupported, r"aten\..* with p\.weight"), probing(Probe(self.arena)):
                copy(self.arena["p.weight"])

    def test_a_write_is_stopped_before_it_happens(self) -> None:
        with self.assertRaisesRegex(EngineUnsupported, "q.weight"), probing(Probe(self.arena)), torch.no_grad():
            self.arena["q.weight"].mul_(2)
        self.assertEqual(self.arena["q.weight"].tolist(), [1, 1])

    def test_an_operator_of_an_extension_that_packs_is_found_too(self) -> None:
        library = torch.library.Library("layercast_test", "DEF")
        library.define("pack(Tensor weight) -> int")
        library.impl("pack", lambda weight: 7, "CPU")
        probe = Probe(self.arena)
        probe.where = "The post-processing of p (PackingMethod)"
        with self.assertRaisesRegex(EngineUnsupported, r"p \(PackingMethod\) calls layercast_test.pack.*p.weight"), probing(probe):
            torch.ops.layercast_test.pack(self.arena["p.weight"])


@unittest.skipIf(torch is None, "torch is not installed")
class Audited(unittest.TestCase):
    def setUp(self) -> None:
        self.arena = arena_of(p__weight=torch.ones(4, 4, dtype=torch.bfloat16), p__bias=torch.zeros(4, dtype=torch.bfloat16))
        with empty_to_meta():
            self.model = torch.nn.Module()
            self.model.p = torch.nn.Module()
            self.model.p.weight = torch.nn.Parameter(torch.empty(4, 4, dtype=torch.bfloat16), requires_grad=False)
            self.model.p.bias = torch.nn.Parameter(torch.empty(4, dtype=torch.bfloat16), requires_grad=False)
        self.layout: dict[str, tuple[str, tuple[int, ...]]] = {"p.weight": ("BF16", (4, 4)), "p.bias": ("BF16", (4,))}

    def bind(self) -> None:
        plan = make_plan(self.model, self.layout)
        carry_out(plan, self.arena, lambda view: torch.nn.Parameter(view, requires_grad=False))

    def take(self, digests: tuple[str, str] = ("a", "a")) -> Any:
        return take_audit(list(self.model.named_modules()), self.arena, NO_SCALES, digests)

    def test_bound_parameters_are_the_arenas_memory_and_a_commit_shows(self) -> None:
        self.bind()
        audit = self.take()
        self.arena["p.weight"].fill_(3)
        self.assertEqual(self.model.p.weight.sum().item(), 48)
        audit()
        self.assertEqual(audit.report(), {"parameters": 2, "scales": 0, "digest": "a"})

    def test_a_parameter_outside_of_the_arena_is_named(self) -> None:
        self.bind()
        self.model.p.bias = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
        with self.assertRaisesRegex(AuditFailed, r"p\.bias \[4\] is not in the arena"):
            self.take()

    def test_one_left_on_meta_is_outside(self) -> None:
        with self.assertRaisesRegex(AuditFailed, r"p\.weight"):
            self.take()

    def test_one_that_ends_behind_its_tensor_is_outside(self) -> None:
        self.bind()
        wider = torch.as_strided(self.arena["p.weight"], (4, 4), (80, 1))
        self.model.p.weight = torch.nn.Parameter(wider, requires_grad=False)
        with self.assertRaisesRegex(AuditFailed, r"p\.weight"):
            self.take()

    def test_bytes_that_post_processing_has_changed(self) -> None:
        self.bind()
        with self.assertRaisesRegex(AuditFailed, "digest a, now b"):
            self.take(("a", "b"))

    def test_a_parameter_that_is_replaced_moved_or_turned_later_is_found_at_the_next_commit(self) -> None:
        changes: list[Change] = [
            lambda p: setattr(p, "weight", torch.nn.Parameter(torch.ones(4, 4), requires_grad=False)),
            lambda p: setattr(p.weight, "data", torch.ones(4, 4, dtype=torch.bfloat16)),
            lambda p: setattr(p.weight, "data", p.weight.data.t()),
            lambda p: p._parameters.pop("weight"),
        ]
        for change in changes:
            self.setUp()
            self.bind()
            audit = self.take()
            change(self.model.p)
            with self.assertRaisesRegex(AuditFailed, r"p\.weight is no longer the arena's tensor"):
                audit()


@unittest.skipIf(torch is None, "torch is not installed")
class Digest(unittest.TestCase):
    def test_every_bit_and_every_place_counts(self) -> None:
        base = torch.arange(1000, dtype=torch.int64).to(torch.uint8)
        seen = {digest([base])}
        for at in (0, 7, 8, 500, 999):
            other = base.clone()
            other[at] ^= 128
            seen.add(digest([other]))
        swapped = base.clone()
        swapped[:8], swapped[8:16] = base[8:16], base[:8]
        seen |= {digest([swapped]), digest([base, base]), digest([base[8:], base[:8]])}
        self.assertEqual(len(seen), 9)
        self.assertEqual(digest([base]), digest([base.clone()]))

    def test_goes_over_every_dtype_and_over_none(self) -> None:
        tensors = [torch.ones(3, 5, dtype=torch.bfloat16), torch.tensor(1.0), torch.empty(0, 4)]
        self.assertRegex(digest(tensors), "^[0-9a-f]{16}$")
        self.assertNotEqual(digest(tensors), digest(tensors[1:]))


@unittest.skipIf(torch is None, "torch is not installed")
class Scales(unittest.TestCase):
    def attention(self, cache: str) -> Any:
        module = torch.nn.Module()
        module.kv_cache_dtype = cache
        for scale in ("k_scale", "v_scale", "q_scale", "prob_scale"):
            module.register_buffer(f"_{scale}", torch.tensor(1.0))
            setattr(module, f"_{scale}_float", 1.0)
        module._k_scale_cpu = torch.tensor(1.0)
        return module

    def setUp(self) -> None:
        self.arena = arena_of(l__attn__k_scale=torch.tensor(0.5), l__attn__v_scale=torch.tensor(0.25))

    def test_go_by_value_where_the_cache_is_quantized(self) -> None:
        module = self.attention("fp8_e4m3")
        held = fill_scales([("l.attn", module)], self.arena)
        self.assertEqual((module._k_scale.item(), module._k_scale_float, module._k_scale_cpu.item()), (0.5, 0.5, 0.5))
        self.assertEqual((module._v_scale.item(), module._q_scale.item()), (0.25, 1.0))
        held.check()

    def test_a_commit_that_changes_one_is_refused_with_both_values(self) -> None:
        held = fill_scales([("l.attn", self.attention("fp8"))], self.arena)
        self.arena["l.attn.v_scale"].fill_(2)
        with self.assertRaisesRegex(AuditFailed, r"l\.attn\.v_scale from 0\.25 to 2\.0"):
            held.check()

    def test_are_left_alone_where_nothing_is_multiplied_with_them(self) -> None:
        module = self.attention("auto")
        held = fill_scales([("l.attn", module)], self.arena)
        self.arena["l.attn.k_scale"].fill_(3)
        held.check()
        self.assertEqual(module._k_scale.item(), 1.0)


@unittest.skipIf(torch is None, "torch is not installed")
class LatentAttention(unittest.TestCase):
    def setUp(self) -> None:
        values = torch.arange(2 * 4 * 3, dtype=torch.float32).view(2, 4, 3)
        self.arena = arena_of(
            a__kv_b_proj=values.reshape(8, 3),
            a__W_UK_T=values[:, :2].contiguous(),
            a__W_UV=values[:, 2:].transpose(1, 2).contiguous(),
        )

    def layer(self, source: Any, *, parameters: bool) -> Any:
        """Makes both of `source`, as vLLM's does of `kv_b_proj`: as attributes up to 0.25, then as parameters."""
        layer = torch.nn.Module()
        layer.kv_b_proj = torch.nn.Module()

        def process(dtype: object) -> None:
            kv_b = source.view(2, 4, 3)
            for name, value in (("W_UK_T", kv_b[:, :2]), ("W_UV", kv_b[:, 2:].transpose(1, 2))):
                setattr(layer, name, torch.nn.Parameter(value, requires_grad=False) if parameters else value)

        layer.process_weights_after_loading = process
        return layer

    def run_layer(self, layer: Any) -> None:
        model = torch.nn.Module()
        model.a = layer
        probe = Probe(self.arena)
        latent = Latent(model, self.arena)
        with probing(probe), latent.unseen_by(probe):
            layer.process_weights_after_loading(torch.float32)
        latent.put_arena_tensors()

    def test_copies_are_replaced_by_the_arenas_tensors(self) -> None:
        for parameters in (False, True):
            layer = self.layer(self.arena["a.kv_b_proj"].clone(), parameters=parameters)
            self.run_layer(layer)
            for name in ("W_UK_T", "W_UV"):
                self.assertEqual(getattr(layer, name).data_ptr(), self.arena[f"a.{name}"].data_ptr())
                self.assertEqual(name in layer._parameters, parameters)

    def test_views_of_the_projection_itself_stay(self) -> None:
        layer = self.layer(self.arena["a.kv_b_proj"], parameters=True)
        self.run_layer(layer)
        self.assertEqual(layer.W_UK_T.data_ptr(), self.arena["a.kv_b_proj"].data_ptr())
        self.assertEqual(layer.W_UV.stride(), (12, 1, 3))

    def test_others_sizes_are_refused(self) -> None:
        layer = self.layer(torch.zeros(24, dtype=torch.float64), parameters=True)
        with self.assertRaisesRegex(LayoutMismatch, "W_UK_T.*float64.*float32"):
            self.run_layer(layer)


@unittest.skipIf(torch is None, "torch is not installed")
class TiedHead(unittest.TestCase):
    def test_is_tied_as_the_config_says_and_not_by_values(self) -> None:
        text = types.SimpleNamespace(tie_word_embeddings=False)
        hf_config = types.SimpleNamespace(tie_word_embeddings=False, get_text_config=lambda: text)
        model_config = types.SimpleNamespace(hf_config=hf_config, word_embeddings_untied_by_checkpoint=True)
        compat.tie_as_configured(model_config)
        self.assertTrue(hf_config.tie_word_embeddings and text.tie_word_embeddings)
        self.assertFalse(model_config.word_embeddings_untied_by_checkpoint)


if __name__ == "__main__":
    unittest.main()
