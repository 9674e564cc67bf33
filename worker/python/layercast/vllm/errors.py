"""What the plugin raises. Each class has a stable `code`; each message says what was found and what to do next."""

from __future__ import annotations

from ..errors import LayercastError


class SettingsInvalid(LayercastError):
    """`--model-loader-extra-config` has a key that is not known, or a value of another type."""

    code = "engine_settings_invalid"


class EngineUnsupported(LayercastError):
    """The engine is set up in a way that cannot compute out of an arena; the message names the flag."""

    code = "engine_unsupported"


class LayoutMismatch(LayercastError):
    """The engine's parameters and the arena's tensors are not the same; the message shows both layouts."""

    code = "engine_layout_mismatch"


class AuditFailed(LayercastError):
    """A parameter is no longer where the arena is, or the engine holds by value what a commit has changed."""

    code = "engine_audit_failed"
