"""
vLLM computes out of a Layercast arena: `vllm serve MODEL --load-format layercast`.

vLLM finds `register` by the entry point group `vllm.general_plugins` and calls it in each of its processes. Until then neither
vLLM nor torch is imported. docs/vllm.md tells the rest.
"""

from __future__ import annotations

_registered = False


def register() -> None:
    """Makes the load format and the weight-transfer backend known to vLLM. Calling it again does nothing."""
    global _registered
    if _registered:
        return
    from .compat import install

    install()
    _registered = True
