"""Which engine is installed here, and which device it can open."""

from __future__ import annotations

from msgspec import Struct

from edgegen import devices, rooms
from edgegen.devices import Device
from edgegen.errors import MissingExtraError

IN_MEMORY = "callable"  # runs plain functions: no engine that one installs


class Engine(Struct, frozen=True, forbid_unknown_fields=True):
    """One engine. `devices` are the names it takes; it counts GPUs in its own order.

    An engine that is not there has no version; `problem` says why and `fix` what to run.
    """

    name: str
    version: str = ""
    reads: str = ""
    devices: tuple[str, ...] = ()
    problem: str = ""
    fix: str = ""


class Survey(Struct, frozen=True, forbid_unknown_fields=True):
    """The devices of this machine, and the engines that may run on them."""

    devices: tuple[Device, ...]
    engines: tuple[Engine, ...]

    def users(self, device: str) -> list[str]:
        """The engines that take `device` by its name."""
        return [engine.name for engine in self.engines if device in engine.devices]


def survey() -> Survey:
    """Look at every device and ask every engine. Imports the engines that are installed."""
    names = [name for name in rooms.names("edgegen.runtimes") if name != IN_MEMORY]
    return Survey(tuple(devices.probe()), tuple(map(ask, names)))


def ask(name: str, room: str = "edgegen.runtimes") -> Engine:
    """What one engine says of itself; never raises, for a broken one is what is looked for."""
    try:
        engine = rooms.load(room, name)
        return Engine(name, engine.version(), engine.READS, tuple(engine.devices()))
    except MissingExtraError as error:
        return Engine(name, problem="not installed", fix=error.hint.removeprefix("run: "))
    except Exception as error:  # a wheel for another system fails in a way of its own
        fix = f"pip install --force-reinstall {name}"
        return Engine(name, problem=f"installed, but broken: {error}", fix=fix)
