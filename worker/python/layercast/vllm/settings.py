"""`--model-loader-extra-config` of the load format `layercast` -> settings, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .errors import SettingsInvalid


@dataclass(frozen=True)
class Settings:
    """What a user may say; each field is a key of the JSON object."""

    run_dir: str = ".layercast"
    """The run directory of `layercast up` or of the workers, or one rank's own directory."""
    fleet: str = "default"
    replica: int | None = None
    """The fleet's replica; by default the engine's data parallel index."""
    engine_url: str | None = None
    """Where this engine's server answers; the fleet shows it."""
    clear_cache: bool = True
    """Whether a commit clears the prefix cache: kept keys and values are those of the old weights."""
    timeout_s: float = 300.0
    """How long a start waits for the worker and for live weights."""
    allow_sleep: bool = False
    """Take `--enable-sleep-mode` all the same: sleeping frees no weights."""
    allow_unknown_version: bool = False
    """Try a version of vLLM that this release of Layercast does not know."""

    def rank_directory(self, replica: int, rank: int) -> Path:
        """Where the rank's control page lies."""
        run_dir = Path(self.run_dir)
        if (run_dir / "control").exists():
            return run_dir
        return run_dir / self.fleet / f"replica-{replica}" / f"rank-{rank}"


_WHAT = {"str": "a string", "int": "a whole number, 0 or more", "bool": "true or false", "float": "seconds, more than 0"}


def read_settings(extra: object) -> Settings:
    """Raises SettingsInvalid, which names the key."""
    if not isinstance(extra, Mapping):
        raise SettingsInvalid(f"--model-loader-extra-config must be a JSON object, it is {extra!r}.")
    known = {field.name: str(field.type) for field in fields(Settings)}
    unknown = [str(key) for key in extra if key not in known]
    if unknown:
        raise SettingsInvalid(
            f"--model-loader-extra-config has {', '.join(map(repr, unknown))}, which --load-format layercast does not know: "
            f"known are {', '.join(known)}."
        )
    return Settings(**{key: _value(key, known[key], value) for key, value in extra.items()})


def _value(key: str, kind: str, value: Any) -> Any:
    kind, _, optional = kind.partition(" | ")
    if value is None and optional == "None":
        return None
    if not _fits(kind, value):
        raise SettingsInvalid(f"--model-loader-extra-config has {key!r}: {value!r}, it must be {_WHAT[kind]}.")
    return float(value) if kind == "float" else value


def _fits(kind: str, value: Any) -> bool:
    if kind == "str":
        return isinstance(value, str) and value != ""
    if kind == "bool":
        return isinstance(value, bool)
    # bool is an int to Python, but not to JSON.
    if kind == "int":
        return type(value) is int and value >= 0
    return type(value) in (int, float) and 0 < value < float("inf")
