"""A profile: one bundle, on one engine and device, for one request. Raw samples, all times in ms."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from msgspec import Struct

from edgegen import records
from edgegen.bundle import Drift
from edgegen.errors import FormatError
from edgegen.spec import Operator, Request

SCHEMA_VERSION = 1

# How many samples a percentile needs before it means anything: MLPerf inference rules, early
# stopping, minimum query counts at 99 % confidence with no slack.
# Source: github.com/mlcommons/inference_policies, "Early stopping".
SAMPLES_FOR = {50: 5, 90: 64, 99: 662}


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured. One inner tuple of `steps_ms` per repeat; its first entry is in `first_ms`.

    Text: `first_ms` is the time to first token (TTFT), `steps_ms` the later tokens. One-shot
    graphs: `first_ms` is the whole run and `steps_ms` is empty. `cold_ms` is the very first
    inference after loading, before the warm-up.
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

    def name(self) -> str:
        """How tables call it: `vae-int8 onnxruntime cpu`."""
        return f"{self.bundle} {self.engine} {self.device}"


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


def read(path: Path | str) -> Profile:
    """A profile from its JSON file; `FormatError` when it is of a newer schema."""
    profile = records.read(Profile, path)
    if profile.schema_version > SCHEMA_VERSION:
        raise FormatError(
            f"{path}: schema_version {profile.schema_version}, this EdgeGen reads up to "
            f"{SCHEMA_VERSION}",
            "run: pip install --upgrade edgegen",
        )
    return profile
