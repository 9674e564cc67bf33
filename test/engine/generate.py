"""
One real engine, of stock or out of an arena: what it generates, as JSON on standard output, a line a pass.

    python generate.py stock MODEL [--quantization Q]
    python generate.py arena MODEL --run-dir DIR [--quantization Q]

The first line says what the engine is, each next is `{"tokens": [[...]], "logprobs": [[...]]}` of the same prompts. An engine
out of an arena generates again for every line on standard input, and ends with it; so its weights can change in between.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

PROMPTS = [[5, 6, 7, 8 + at] for at in range(8)]
NEW_TOKENS = 24
DIGITS = 6


def main() -> None:
    settings = parse()
    # Its processes inherit these.
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_SGL_KERNEL="0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if settings.engine == "stock":
        # In this process, where it can be kept from packing its weights, as an engine out of an arena is.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        use_plain_kernels()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no part of the answer
    started = time.monotonic()
    engine, version = make_engine(settings)
    say(out, {"vllm": version, "engine": settings.engine, "start_s": round(time.monotonic() - started, 1)})
    say(out, generate(engine))
    if settings.engine == "arena":
        for _ in sys.stdin:
            say(out, generate(engine))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=["stock", "arena"])
    parser.add_argument("model")
    parser.add_argument("--run-dir")
    parser.add_argument("--quantization")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--extra", type=json.loads, default={}, help="more of --model-loader-extra-config")
    parser.add_argument("--engine-args", type=json.loads, default={}, help="more of vLLM's arguments")
    return parser.parse_args()


def use_plain_kernels() -> None:
    from layercast.vllm import compat

    if compat.is_cpu():
        compat.use_plain_cpu_kernels()


def make_engine(settings: argparse.Namespace) -> tuple[Any, str]:
    import vllm

    more: dict[str, Any] = {}
    if settings.engine == "arena":
        extra = {"run_dir": settings.run_dir, "timeout_s": 60, **settings.extra}
        more.update(load_format="layercast", model_loader_extra_config=extra)
    if settings.quantization is not None:
        more["quantization"] = settings.quantization
    engine = vllm.LLM(
        model=settings.model,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=256,
        enforce_eager=not settings.compile,
        enable_prefix_caching=False,
        disable_log_stats=True,
        tensor_parallel_size=settings.tensor_parallel_size,
        **more,
        **settings.engine_args,
    )
    return engine, vllm.__version__


def generate(engine: Any) -> dict[str, Any]:
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False, logprobs=1)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    outputs = [output.outputs[0] for output in engine.generate(prompts, sampling, use_tqdm=False)]
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
