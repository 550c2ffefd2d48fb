"""Whether OpenVINO obeyed, and what it says where it fails."""

from __future__ import annotations

from typing import Any

from edgegen.errors import FallbackError, MismatchError


def check_precision(compiled: Any, config: dict[str, Any], name: str, does: str) -> None:
    """Raise unless the compiled model has the setting that `config` gives `name`."""
    wanted = config.get(name)
    if wanted is None:
        return
    found = compiled.get_property(name)
    kind = found if isinstance(found, str) else found.get_type_name()
    if kind != wanted:
        raise MismatchError(f"openvino was told to {does} in {wanted} but runs in {kind}")


def check_device(compiled: Any, target: str, device: str) -> None:
    """Raise unless the compiled model runs where it was asked to; AUTO may choose."""
    if target.startswith("AUTO"):
        return
    ran = {str(name).partition(".")[0] for name in compiled.get_property("EXECUTION_DEVICES")}
    asked = {name.partition(".")[0] for name in target.removeprefix("HETERO:").split(",")}
    if not ran <= asked:
        raise FallbackError(
            f"asked for {device}, but openvino runs the graph on {', '.join(sorted(ran))}",
            "pass --allow-fallback to accept that",
        )


def cause(error: RuntimeError) -> str:
    """The last informative line of OpenVINO's many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((s for s in reversed(lines) if not s.startswith("Exception from")), lines[-1])
