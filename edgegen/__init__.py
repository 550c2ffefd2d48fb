"""EdgeGen: compact generative models on real devices, every step proved on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgegen.runtimes import deploy as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from edgegen.runtimes import deploy

        return deploy
    raise AttributeError(f"module 'edgegen' has no attribute {name!r}")
