"""Laws of what post-processing must still do, a method class at a time. Without vLLM, without torch."""

from __future__ import annotations

import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

from layercast.vllm import compat
from layercast.vllm.errors import EngineUnsupported
from layercast.vllm.methods import METHODS, method_of


def made(name: str, **attributes: Any) -> Any:
    """A quantization method of that class, which notes what is called."""
    calls: list[tuple[str, Any]] = []

    def noting(what: str) -> Any:
        return lambda *args: calls.append((what, args))

    body = {"process_weights_after_loading": noting("stock"), "_setup_kernel": noting("kernel"), "calls": calls, **attributes}
    method = SimpleNamespace(**body, fp8_linear=SimpleNamespace(process_weights_after_loading=noting("linear")))
    method.name = name
    return method


class Finish(unittest.TestCase):
    def setUp(self) -> None:
        patch = mock.patch.object(compat, "expose_input_quantization")
        self.exposed = patch.start()
        self.addCleanup(patch.stop)

    def finish(self, name: str, **attributes: Any) -> tuple[Any, list[str]]:
        module = SimpleNamespace(w13_weight=1, w2_weight=2, w13_weight_scale=3, w2_weight_scale=4)
        module.w13_weight_scale_inv, module.w2_weight_scale_inv = 5, 6
        method = made(name, **attributes)
        METHODS[name](module, method)
        self.calls = method.calls
        return module, [what for what, _ in method.calls]

    def test_plain_layers_have_vllms_own(self) -> None:
        for name in ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "BaseKVCacheMethod", "Fp8KVCacheMethod"):
            self.assertEqual(self.finish(name)[1], ["stock"])

    def test_a_quantized_linear_is_not_quantized_again(self) -> None:
        for name in ("Fp8PerTensorOnlineLinearMethod", "Fp8PtpcOnlineLinearMethod", "Fp8PerBlockOnlineLinearMethod"):
            module, calls = self.finish(name)
            self.assertEqual(calls, ["linear"])
            self.assertIsNone(module.input_scale)
            self.assertTrue(module._already_called_process_weights_after_loading)
        self.exposed.assert_called_once()

    def test_experts_get_their_kernel_from_the_bound_tensors(self) -> None:
        module, calls = self.finish("UnquantizedFusedMoEMethod")
        self.assertEqual((calls, self.calls[0][1]), (["kernel"], (module, 1, 2)))
        for name in ("Fp8PerTensorOnlineMoEMethod", "Fp8PtpcOnlineMoEMethod"):
            module, calls = self.finish(name, weight_scale_name="weight_scale", weight_block_size=None)
            self.assertEqual((calls, self.calls[0][1]), (["kernel"], (module, 1, 2, 3, 4, None, None)))
            self.assertIsNone(module.w13_input_scale)
            self.assertFalse(hasattr(module, "weight_block_size"))

    def test_experts_in_blocks_know_their_block(self) -> None:
        module, _ = self.finish(
            "Fp8PerBlockOnlineMoEMethod", weight_scale_name="weight_scale_inv", weight_block_size=[128, 128]
        )
        self.assertEqual((module.weight_block_size, self.calls[0][1][1:5]), ([128, 128], (1, 2, 5, 6)))

    def test_an_fp8_checkpoint_in_blocks_stays_as_it_is(self) -> None:
        module, calls = self.finish("Fp8LinearMethod", block_quant=True)
        self.assertEqual((calls, module.input_scale), (["linear"], None))
        self.assertEqual(self.finish("Fp8MoEMethod", block_quant=True, weight_scale_name="weight_scale_inv")[1], ["kernel"])

    def test_one_with_a_scale_a_tensor_is_refused(self) -> None:
        for name in ("Fp8LinearMethod", "Fp8MoEMethod"):
            with self.assertRaisesRegex(EngineUnsupported, "one scale a tensor"):
                self.finish(name, block_quant=False, weight_scale_name="weight_scale")

    def test_what_is_no_method_is_none(self) -> None:
        self.assertIsNone(method_of(SimpleNamespace(quant_method="fp8")))
        self.assertIsNone(method_of(SimpleNamespace()))


class Installing(unittest.TestCase):
    def setUp(self) -> None:
        version = mock.patch.object(compat, "version", lambda: "0.99.0")
        failed: Any = mock.patch.object(compat, "_failed", [])
        for patch in (version, failed):
            patch.start()
            self.addCleanup(patch.stop)

    def test_a_part_that_does_not_fit_leaves_vllm_alone_and_is_said_when_the_loader_is_asked_for(self) -> None:
        compat.require_installed()

        def _install_loader() -> None:
            raise AttributeError("vLLM has no such thing any more")

        with mock.patch.object(compat, "_install_loader", _install_loader), self.assertLogs("vllm.layercast", "WARNING"):
            compat.install()
        with self.assertRaisesRegex(EngineUnsupported, "0.99.0.*no such thing any more"):
            compat.require_installed()


class DoingNothing(unittest.TestCase):
    def test_methods_that_are_done_do_nothing_while_vllm_finishes_and_are_themselves_again_afterwards(self) -> None:
        class Method:
            done = 0

            def process_weights_after_loading(self, layer: object) -> None:
                self.done += 1

        method = Method()
        with compat._doing_nothing([method]):
            method.process_weights_after_loading(None)
        method.process_weights_after_loading(None)
        self.assertEqual(method.done, 1)


if __name__ == "__main__":
    unittest.main()
