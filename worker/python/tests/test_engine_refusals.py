"""Laws of what is refused at load, each naming the flag. Without vLLM, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import unittest
from types import SimpleNamespace
from typing import Any
from unittest import mock

from layercast.vllm.errors import EngineUnsupported, SettingsInvalid
from layercast.vllm.refusals import REFUSALS, refuse_config, refuse_methods
from layercast.vllm.settings import Settings, read_settings
from layercast.vllm.versions import is_known, require_known

from .fake_model import FakeModule, meta


def config(**parts: dict[str, Any] | None) -> Any:
    """vLLM's config as far as it is looked at, of an engine that is right; `part={"field": value}` changes it."""
    right: dict[str, Any] = {
        "parallel_config": {
            "pipeline_parallel_size": 1,
            "data_parallel_size": 1,
            "enable_expert_parallel": False,
            "distributed_executor_backend": "mp",
        },
        "model_config": {"enable_sleep_mode": False},
        "uva": {"cpu_offload_gb": 0},
        "prefetch": {"offload_group_size": 0},
        "lora_config": None,
        "speculative_config": None,
        "weight_transfer_config": None,
    }
    made = {
        part: None if value is None and parts.get(part) is None else SimpleNamespace(**{**(value or {}), **(parts.get(part) or {})})
        for part, value in right.items()
    }
    offload = SimpleNamespace(uva=made.pop("uva"), prefetch=made.pop("prefetch"))
    return SimpleNamespace(offload_config=offload, **made)


# What asks for it, and what the refusal must name.
REFUSED: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "pipeline_parallel": ({"parallel_config": {"pipeline_parallel_size": 2}}, "--pipeline-parallel-size 2"),
    "prefill_context_parallel": (
        {"parallel_config": {"prefill_context_parallel_size": 2}},
        "--prefill-context-parallel-size 2",
    ),
    "expert_balancing": ({"parallel_config": {"enable_eplb": True}}, "--enable-eplb"),
    "elastic_experts": ({"parallel_config": {"enable_elastic_ep": True}}, "--enable-elastic-ep"),
    "expert_placement": (
        {"parallel_config": {"enable_expert_parallel": True, "expert_placement_strategy": "round_robin"}},
        "--expert-placement-strategy round_robin",
    ),
    "data_parallel_experts": ({"parallel_config": {"data_parallel_size": 2}}, "--data-parallel-size 2"),
    "several_hosts": ({"parallel_config": {"nnodes": 2}}, "--nnodes 2"),
    "sleep_mode": ({"model_config": {"enable_sleep_mode": True}}, "--enable-sleep-mode"),
    "cpu_offload": ({"uva": {"cpu_offload_gb": 4}}, "--cpu-offload-gb 4"),
    "lora_vocabulary": ({"lora_config": {"lora_extra_vocab_size": 256}}, "--lora-extra-vocab-size 256"),
    "draft_model": ({"speculative_config": {"method": "eagle3"}}, "--speculative-config with method eagle3"),
    "other_transfer": ({"weight_transfer_config": {"backend": "nccl"}}, "--weight-transfer-config with backend nccl"),
}
OF_THE_ENVIRONMENT = {
    "engine_in_process": ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
    "rewriting_environment": ("VLLM_TEST_FORCE_FP8_MARLIN", "1"),
}


class OfTheConfig(unittest.TestCase):
    def setUp(self) -> None:
        environment = mock.patch.dict(os.environ)
        environment.start()
        self.addCleanup(environment.stop)
        for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_TEST_FORCE_FP8_MARLIN"):
            os.environ.pop(name, None)

    def test_each_is_refused_and_names_its_flag(self) -> None:
        for name, (parts, flag) in REFUSED.items():
            with self.subTest(name), self.assertRaisesRegex(EngineUnsupported, flag):
                refuse_config(config(**parts), Settings())

    def test_each_of_the_environment_too(self) -> None:
        for name, (variable, value) in OF_THE_ENVIRONMENT.items():
            with self.subTest(name), mock.patch.dict(os.environ, {variable: value}):
                with self.assertRaisesRegex(EngineUnsupported, f"{variable}={value}"):
                    refuse_config(config(), Settings())

    def test_there_is_a_case_here_for_each(self) -> None:
        self.assertEqual({refusal.__name__ for refusal in REFUSALS}, {*REFUSED, *OF_THE_ENVIRONMENT})

    def test_several_come_in_one_message(self) -> None:
        with self.assertRaisesRegex(EngineUnsupported, "(?s)pipeline.*eplb"):
            refuse_config(config(parallel_config={"pipeline_parallel_size": 2, "enable_eplb": True}), Settings())

    def test_what_is_right_is_taken(self) -> None:
        refuse_config(config(), Settings())
        refuse_config(config(model_config={"enable_sleep_mode": True}), Settings(allow_sleep=True))
        refuse_config(config(weight_transfer_config={"backend": "layercast"}), Settings())
        refuse_config(config(speculative_config={"method": "ngram"}), Settings())
        refuse_config(config(lora_config={"max_lora_rank": 8}), Settings())

    def test_ray_may_place_ranks_elsewhere(self) -> None:
        with self.assertRaisesRegex(EngineUnsupported, "--distributed-executor-backend ray"):
            refuse_config(config(parallel_config={"distributed_executor_backend": "ray"}), Settings())


def linear(method: str, kernel: str, *shape: int) -> FakeModule:
    module = FakeModule(method, weight=meta("bfloat16", *shape))
    module.quant_method.fp8_linear = type(kernel, (), {})()
    return module


def experts(method: str, backend: str) -> FakeModule:
    module = FakeModule(method)
    attribute = "unquantized_backend" if method.startswith("Unquantized") else "fp8_backend"
    setattr(module.quant_method, attribute, SimpleNamespace(name=backend))
    return module


class OfTheMethods(unittest.TestCase):
    CHANNEL = "Fp8PtpcOnlineLinearMethod"

    def refused(self, module: FakeModule) -> str:
        with self.assertRaises(EngineUnsupported) as raised:
            refuse_methods([("model.layers.0.mlp.x", module)])
        return str(raised.exception)

    def test_kernels_that_keep_weights_otherwise_name_the_flag(self) -> None:
        for kernel in ("MarlinFP8ScaledMMLinearKernel", "FlashInferFP8ScaledMMLinearKernel", "HummingFP8ScaledMMLinearKernel", "X"):
            text = self.refused(linear(self.CHANNEL, kernel, 32, 32))
            self.assertIn("model.layers.0.mlp.x", text)
            self.assertIn(kernel, text)
            self.assertIn("--linear-backend cutlass", text)

    def test_kernels_that_rewrite_scales_name_theirs(self) -> None:
        for kernel in ("DeepGemmFp8BlockScaledMMKernel", "FlashInferFp8DeepGEMMDynamicBlockScaledKernel"):
            text = self.refused(linear("Fp8PerBlockOnlineLinearMethod", kernel, 128, 128))
            self.assertIn("UE8M0", text)
            self.assertIn("VLLM_USE_DEEP_GEMM=0", text)

    def test_sizes_that_cutlass_pads(self) -> None:
        for shape in ((32, 24), (24, 32)):
            text = self.refused(linear(self.CHANNEL, "CutlassFP8ScaledMMLinearKernel", *shape))
            self.assertIn(str(list(shape)), text)
            self.assertIn("--linear-backend torch", text)
        refuse_methods([("x", linear(self.CHANNEL, "CutlassFP8ScaledMMLinearKernel", 32, 48))])
        refuse_methods([("x", linear(self.CHANNEL, "ChannelWiseTorchFP8ScaledMMLinearKernel", 32, 24))])

    def test_backends_of_experts(self) -> None:
        for method, backend in (
            ("UnquantizedFusedMoEMethod", "FLASHINFER_CUTLASS"),
            ("UnquantizedFusedMoEMethod", "FLASHINFER_TRTLLM"),
            ("Fp8PtpcOnlineMoEMethod", "MARLIN"),
            ("Fp8PerBlockOnlineMoEMethod", "DEEPGEMM"),
            ("Fp8MoEMethod", "HUMMING"),
        ):
            text = self.refused(experts(method, backend))
            self.assertIn(backend, text)
            self.assertIn("--moe-backend triton", text)
        refuse_methods([("x", experts("UnquantizedFusedMoEMethod", "TRITON")), ("y", experts("Fp8MoEMethod", "VLLM_CUTLASS"))])

    def test_the_cpus_experts_keep_a_packed_copy(self) -> None:
        for method, backend in (("UnquantizedFusedMoEMethod", "CPU"), ("Fp8PtpcOnlineMoEMethod", "CPU_W8A8")):
            self.assertIn(f"{backend} experts compute with a packed copy", self.refused(experts(method, backend)))

    def test_a_method_that_is_not_known_is_named(self) -> None:
        text = self.refused(FakeModule("AWQMarlinLinearMethod"))
        self.assertIn("AWQMarlinLinearMethod", text)
        self.assertIn("--quantization", text)

    def test_a_reason_that_all_layers_share_is_said_once(self) -> None:
        modules = [(f"layers.{at}", FakeModule("AWQMarlinLinearMethod")) for at in range(60)]
        with self.assertRaises(EngineUnsupported) as raised:
            refuse_methods(modules)
        self.assertEqual(str(raised.exception).count("AWQMarlinLinearMethod"), 1)


class OfTheVersion(unittest.TestCase):
    def test_known_are_0_25_1_to_0_33(self) -> None:
        for version in ("0.25.1", "0.26.0", "0.28.1.dev3+g1234", "0.30.0", "0.32.0+cpu", "0.33.0", "0.33.4"):
            self.assertTrue(is_known(version), version)
        for version in ("0.24.0", "0.25.0", "0.34.0", "1.0.0", "dev", ""):
            self.assertFalse(is_known(version), version)

    def test_another_names_the_switch_to_try_it(self) -> None:
        with self.assertRaisesRegex(EngineUnsupported, "0.34.0.*allow_unknown_version"):
            require_known("0.34.0", allow_unknown=False)
        require_known("0.34.0", allow_unknown=True)
        require_known("0.32.0", allow_unknown=False)


class OfTheSettings(unittest.TestCase):
    def test_are_read(self) -> None:
        self.assertEqual(read_settings({}), Settings())
        extra = {"run_dir": "/x", "fleet": "a", "replica": 1, "engine_url": None, "clear_cache": False, "timeout_s": 3}
        self.assertEqual(read_settings(extra), Settings("/x", "a", 1, None, False, 3.0))

    def test_an_unknown_key_is_refused_by_name(self) -> None:
        with self.assertRaisesRegex(SettingsInvalid, "'run_dirs'.*known are run_dir, fleet"):
            read_settings({"run_dirs": "/x"})

    def test_a_wrong_value_is_refused_by_name(self) -> None:
        wrong = {"run_dir": "", "fleet": 3, "replica": -1, "engine_url": 1, "clear_cache": 1, "timeout_s": 0, "allow_sleep": None}
        for key, value in wrong.items():
            with self.subTest(key), self.assertRaisesRegex(SettingsInvalid, f"'{key}'"):
                read_settings({key: value})
        with self.assertRaises(SettingsInvalid):
            read_settings({"replica": True})
        with self.assertRaises(SettingsInvalid):
            read_settings(["run_dir"])

    def test_a_ranks_own_directory_stands_for_itself(self) -> None:
        self.assertEqual(str(Settings("/x", "a").rank_directory(2, 3)), "/x/a/replica-2/rank-3")


class Imports(unittest.TestCase):
    def test_neither_torch_nor_vllm_is_imported_before_it_is_called(self) -> None:
        modules = "binding, layouts, methods, refusals, settings, versions, reachable, audit, probe, loader, compat"
        code = f"import sys, layercast.vllm; from layercast.vllm import {modules}; print(sorted(sys.modules))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE)
        self.assertNotIn("'torch'", run.stdout)
        self.assertNotIn("'vllm'", run.stdout)


PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


if __name__ == "__main__":
    unittest.main()
