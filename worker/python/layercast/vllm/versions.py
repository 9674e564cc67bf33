"""The versions of vLLM that this release was written against."""

from __future__ import annotations

import re

from .errors import EngineUnsupported

OLDEST = (0, 25, 1)
NEWEST = (0, 33)
"""Of this one every patch release."""


def require_known(version: str, allow_unknown: bool) -> None:
    """Raises EngineUnsupported, unless it is known or the user has said to try it."""
    if allow_unknown or is_known(version):
        return
    oldest, newest = ".".join(map(str, OLDEST)), ".".join(map(str, NEWEST))
    raise EngineUnsupported(
        f"This release of Layercast knows vLLM {oldest} to {newest}, not {version}. Install one of those, a newer Layercast, or "
        'try this one all the same with --model-loader-extra-config \'{"allow_unknown_version": true}\': what does not fit '
        "is still found by the checks at load."
    )


def is_known(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if numbers is None:
        return False
    parts = tuple(int(part or 0) for part in numbers.groups())
    return parts >= OLDEST and parts[:2] <= NEWEST
