"""
One real engine, of stock or out of an arena: what it generates, as JSON on standard output, a line a pass.

    python generate.py stock|stock-exact|arena MODEL [the flags of `vllm serve`]

`stock-exact` has the products of latent attention as Layercast makes them, see `put_exact_products`. The first line says what the
engine is, each next is `{"tokens": [[...]], "logprobs": [[...]]}` of the same prompts. It generates again for every line on
standard input, and ends with it; so an arena's weights can change in between.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import Any

PROMPTS = [[5, 6, 7, 8 + at] for at in range(16)]
NEW_TOKENS = 32
# On the CPU a step takes a fifth of a second, however small the model is.
CPU_PROMPTS, CPU_NEW_TOKENS = 4, 8
DIGITS = 6
DEFAULTS = ["--dtype", "bfloat16", "--skip-tokenizer-init", "--max-model-len", "256", "--no-enable-prefix-caching"]


def main() -> None:
    kind, model, *flags = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints, from its import on, is no part of the answer
    # Its processes inherit these.
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_SGL_KERNEL="0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if kind != "arena":
        # In this process, where the CPU's kernels can be kept from packing weights, as in an engine out of an arena.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        use_plain_kernels()
    started = time.monotonic()
    engine, version = make_engine(model, flags)
    if kind == "stock-exact":
        engine.apply_model(put_exact_products)
    say(out, {"vllm": version, "engine": kind, "start_s": round(time.monotonic() - started, 1)})
    say(out, generate(engine))
    for _ in sys.stdin:
        say(out, generate(engine))


def use_plain_kernels() -> None:
    from layercast.vllm import compat

    if compat.is_cpu():
        compat.use_plain_cpu_kernels()


def put_exact_products(model: Any) -> None:
    """
    `W_UK_T` and `W_UV` as codes times scales. For scales a channel vLLM runs the layer over an identity matrix instead, which is
    quantized too: 0.4 % of the products are then rounded another way.
    """
    for module in model.modules():
        if getattr(module, "kv_b_proj", None) is None or getattr(module, "W_UV", None) is None:
            continue
        codes, scales = module.kv_b_proj.weight.float(), module.kv_b_proj.weight_scale.float()
        if codes.shape[0] != module.kv_lora_rank:
            codes = codes.T  # now [latent, heads * (keys + values)]
        heads, _, values = module.W_UV.shape
        products = (codes * scales.reshape(1, -1)).to(module.W_UV.dtype).view(codes.shape[0], heads, -1)
        module.W_UK_T.data.copy_(products[..., :-values].permute(1, 2, 0))
        module.W_UV.data.copy_(products[..., -values:].transpose(0, 1))


def make_engine(model: str, flags: list[str]) -> tuple[Any, str]:
    import vllm
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = EngineArgs.from_cli_args(parser.parse_args(["--model", model, *DEFAULTS, *flags]))
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(arguments)}
    return vllm.LLM(**given), vllm.__version__


def generate(engine: Any) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.platforms import current_platform

    count, new_tokens = (CPU_PROMPTS, CPU_NEW_TOKENS) if current_platform.is_cpu() else (len(PROMPTS), NEW_TOKENS)
    sampling = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False, logprobs=1)
    # One after the other: which of many requests share a step is chance, and changes what it rounds.
    outputs = [
        engine.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)[0].outputs[0] for prompt in PROMPTS[:count]
    ]
    return {
        "tokens": [list(output.token_ids) for output in outputs],
        "logprobs": [
            [round(step[token].logprob, DIGITS) for token, step in zip(output.token_ids, output.logprobs, strict=True)]
            for output in outputs
        ],
    }


def say(out: Any, value: object) -> None:
    out.write(json.dumps(value) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
