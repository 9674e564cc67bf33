"""What a quantization method's post-processing must still do where weights are in their final layout already.

One small function a kind; the table says which class is which. Each leaves the module as vLLM's own post-processing would:
kernel objects built from the bound tensors, attributes stamped, no byte of a weight touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import compat
from .errors import EngineUnsupported

Finish = Callable[[Any, Any], None]
"""Takes the module and its quantization method."""


def stock(module: Any, method: Any) -> None:
    """vLLM's own: it chooses a function to call, and makes no tensor (the audit would show one)."""
    method.process_weights_after_loading(module)


def online_linear(module: Any, method: Any) -> None:
    module.input_scale = None
    method.fp8_linear.process_weights_after_loading(module)
    module._already_called_process_weights_after_loading = True


def channel_linear(module: Any, method: Any) -> None:
    online_linear(module, method)
    compat.expose_input_quantization(module, method.fp8_linear)


def block_checkpoint_linear(module: Any, method: Any) -> None:
    if not method.block_quant:
        raise EngineUnsupported(
            "The checkpoint's FP8 weights have one scale a tensor, and vLLM makes other codes of them while it loads: "
            "reload the fleet with a recipe that the engine makes itself, such as fp8-tensor, from weights that are values."
        )
    module.input_scale = None
    method.fp8_linear.process_weights_after_loading(module)


def plain_experts(module: Any, method: Any) -> None:
    method._setup_kernel(module, module.w13_weight, module.w2_weight)


def online_experts(module: Any, method: Any) -> None:
    module.w13_input_scale = None
    module.w2_input_scale = None
    if method.weight_block_size is not None:
        module.weight_block_size = method.weight_block_size
    _set_up(module, method)
    module._already_called_process_weights_after_loading = True


def block_checkpoint_experts(module: Any, method: Any) -> None:
    if not method.block_quant:
        block_checkpoint_linear(module, method)
    _set_up(module, method)


def _set_up(module: Any, method: Any) -> None:
    scale = method.weight_scale_name
    scales = (getattr(module, f"w13_{scale}"), getattr(module, f"w2_{scale}"))
    method._setup_kernel(module, module.w13_weight, module.w2_weight, *scales, None, None)


METHODS: Mapping[str, Finish] = {
    "UnquantizedLinearMethod": stock,
    "UnquantizedEmbeddingMethod": stock,
    "BaseKVCacheMethod": stock,
    "Fp8KVCacheMethod": stock,
    "UnquantizedFusedMoEMethod": plain_experts,
    "Fp8LinearMethod": block_checkpoint_linear,
    "Fp8MoEMethod": block_checkpoint_experts,
    "Fp8PerTensorOnlineLinearMethod": online_linear,
    "Fp8PtpcOnlineLinearMethod": channel_linear,
    "Fp8PerBlockOnlineLinearMethod": online_linear,
    "Fp8PerTensorOnlineMoEMethod": online_experts,
    "Fp8PtpcOnlineMoEMethod": online_experts,
    "Fp8PerBlockOnlineMoEMethod": online_experts,
}


def method_of(module: Any) -> Any:
    """The module's quantization method, or None: some modules hold another thing under that name."""
    method = getattr(module, "quant_method", None)
    return method if hasattr(method, "process_weights_after_loading") else None
