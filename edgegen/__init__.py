"""EdgeGen: compact generative models on real devices, every step proved on the device."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgegen.runtimes import deploy as load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

# No telemetry: OpenVINO's converter and NNCF send events through this package unless they cannot
# import it, and then fall back to their own stubs.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def __getattr__(name: str) -> Any:
    if name == "load":
        from edgegen.runtimes import deploy

        return deploy
    raise AttributeError(f"module 'edgegen' has no attribute {name!r}")
