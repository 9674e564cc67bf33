"""Where the plugin's lines go: among vLLM's own, with its format and level."""

from __future__ import annotations

from logging import getLogger

log = getLogger("vllm.layercast")
