"""What a device lets us read of itself while a model runs.

A package and not a file, so that it is no kind of device: a room's plug-ins are its files.
"""

from edgegen.devices.meters.energy import Meter, find
from edgegen.devices.meters.memory import peak_rss_mb, peak_source, reset_peak

__all__ = ["Meter", "find", "peak_rss_mb", "peak_source", "reset_peak"]
