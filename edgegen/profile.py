"""A profile: one bundle, on one engine and device, for one request. Raw samples, all times in ms.

`python -m edgegen.profile > edgegen/profile.schema.json` writes the published JSON Schema.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from edgegen import records
from edgegen.bundle import Drift
from edgegen.errors import FormatError
from edgegen.roofs import Roofline
from edgegen.spec import Operator, Request

SCHEMA_VERSION = 1

# How many samples a percentile needs before it means anything: the fewest for which the largest
# but one is at or above the true percentile with 99 % confidence, as MLPerf has it for 90 and 99.
# Source: github.com/mlcommons/inference, loadgen/early_stopping.cc, one query over the limit.
SAMPLES_FOR = {50: 11, 90: 64, 99: 662}


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured: for each repeat one entry of `first_ms` and one tuple of `steps_ms`.

    Text: `first_ms` is the time to first token (TTFT), `steps_ms` the later tokens. One-shot
    graphs: `first_ms` is the whole run and `steps_ms` is empty. `cold_ms` is the very first
    inference after loading, before the warm-up. Repeats are kept in the order they ran; where they
    came from several processes (`rounds`), `load_ms` and `cold_ms` are medians over these and
    `peak_rss_mb` is the largest. Profiles of one `block` were taken in turns, round by round.
    `board` is the name of the machine in a fleet; empty for the one the command ran on. `adapter`
    is the one in use, of a bundle that has some.
    `energy_j` is what one token or image took (of what `rate` counts), over all timed repeats;
    `energy_source` begins with "measured" or "modelled" and names the meter. `roofline` says why it
    is slow, where that was asked for.
    """

    schema_version: int
    bundle: str
    bundle_sha256: str
    family: str
    precision: str
    format: str
    engine: str
    engine_version: str
    device: str
    device_name: str
    threads: int
    request: Request
    warmup: int
    repeats: int
    load_ms: float
    cold_ms: float
    first_ms: tuple[float, ...]
    steps_ms: tuple[tuple[float, ...], ...]
    size_mb: float
    created: str
    peak_rss_mb: float | None = None
    energy_j: float | None = None
    energy_source: str = "not measured"
    operators: tuple[Operator, ...] = ()
    flags: tuple[str, ...] = ()
    drifts: tuple[Drift, ...] = ()
    quality: dict[str, float] = {}
    environment: dict[str, Any] = {}
    block: str = ""
    rounds: int = 1
    board: str = ""
    adapter: str = ""
    roofline: Roofline | None = None

    def name(self) -> str:
        """How tables call it: `vae-int8 onnxruntime cpu`, of a fleet `... pi5/cpu`; with an
        adapter in use `gpt+french ...`."""
        device = f"{self.board}/{self.device}" if self.board else self.device
        adapter = f"+{self.adapter}" if self.adapter else ""
        return f"{self.bundle}{adapter} {self.engine} {device}"


def samples(profile: Profile) -> list[float]:
    """The samples a comparison is about: later tokens for text, whole runs for the rest."""
    later = [ms for steps in profile.steps_ms for ms in steps]
    return later or list(profile.first_ms)


def percentile(values: list[float], q: int) -> tuple[float, bool]:
    """The q-th percentile in the unit of `values`, and whether there are enough for it to count."""
    return float(np.percentile(values, q)), len(values) >= SAMPLES_FOR[q]


def rate(profile: Profile) -> tuple[float, str]:
    """Throughput of the whole batch: (value, "tokens/s" | "images/s" | "runs/s")."""
    unit = {"gpt": "tokens/s", "vae": "images/s", "gan": "images/s"}.get(profile.family, "runs/s")
    return profile.request.batch * 1e3 / median(samples(profile)), unit


class _Version(Struct, frozen=True):
    schema_version: int


def read(path: Path | str) -> Profile:
    """A profile from its JSON file.

    Raises:
        NotFoundError: no such file.
        FormatError: not a profile, broken, or of a newer schema.
    """
    try:
        version = records.read(_Version, path).schema_version
    except FormatError as error:
        raise FormatError(str(error), "make a profile: edgegen profile BUNDLE -o FILE") from error
    if version > SCHEMA_VERSION:
        raise FormatError(
            f"{path}: schema_version {version}, this EdgeGen reads up to {SCHEMA_VERSION}",
            "run: pip install --upgrade edgegen",
        )
    profile = records.read(Profile, path)
    again = "measure again with: edgegen profile BUNDLE -o FILE"
    if not profile.first_ms or len(profile.first_ms) != len(profile.steps_ms):
        raise FormatError(
            f"{path}: {len(profile.first_ms)} first steps for {len(profile.steps_ms)} repeats; "
            "wanted one each, and at least one",
            again,
        )
    least = min(ms for steps in (profile.first_ms, *profile.steps_ms) for ms in steps)
    if least <= 0:
        raise FormatError(f"{path}: a step of {least:g} ms; wanted more than none", again)
    return profile


def schema() -> dict[str, Any]:
    """The JSON Schema of a profile file, version 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"EdgeGen profile, schema_version {SCHEMA_VERSION}",
    } | msgspec.json.schema(Profile)


if __name__ == "__main__":
    sys.stdout.buffer.write(records.encode(schema()))
