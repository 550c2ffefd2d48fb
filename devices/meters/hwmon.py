"""Texas Instruments' INA sensors, which boards carry at their supply, by the kernel's hwmon class.

Source: Linux, Documentation/hwmon/sysfs-interface.rst: power in microwatts, current in
milliamperes, voltage in millivolts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from edgegen.devices import read_text

# The rail that feeds all others, as Jetson boards call it: with it the others count twice.
WHOLE = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "VDD_TOTAL")


class Sensor(Struct, frozen=True):
    """What is watched, and its watts of now."""

    name: str
    watts: Callable[[], float]


class Rail(Struct, frozen=True):
    """One channel of one chip: a file of microwatts, or those of milliamperes and millivolts."""

    name: str
    label: str
    files: tuple[Path, ...]

    def watts(self) -> float:
        """The power of now."""
        values = [int(read_text(file) or 0) for file in self.files]
        return values[0] / 1e6 if len(values) == 1 else values[0] * values[1] / 1e6


def sensor(root: Path) -> Sensor | None:
    """The supply of the whole board where one is called so, else all rails together."""
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    chips = [chip for chip in chips if read_text(chip / "name").startswith("ina")]
    rails = [rail for chip in chips for rail in _rails(chip)]
    rails = [rail for rail in rails if rail.label in WHOLE][:1] or rails
    if not rails:
        return None
    name = " + ".join(f"{rail.name} {rail.label}".strip() for rail in rails)
    return Sensor(name, lambda: sum(rail.watts() for rail in rails))


def _rails(chip: Path) -> list[Rail]:
    """The channels that can be read: by power where the chip has it, else by current."""
    name, found = read_text(chip / "name"), []
    for number in range(1, 5):
        power, current = chip / f"power{number}_input", chip / f"curr{number}_input"
        pair = (current, chip / f"in{number}_input")
        files = (power,) if read_text(power).isdigit() else pair
        if all(read_text(file).isdigit() for file in files):
            found.append(Rail(name, read_text(chip / f"in{number}_label"), files))
    return found
