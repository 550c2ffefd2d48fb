"""Why a profile is as slow as it is: its times against what the device could do at most.

The roof of an operator is the longer of two times: of its operations at the device's peak, and of
its bytes at the bandwidth of the nearest memory that holds the whole model. The peaks are measured
on the same device (`edgegen.peaks`), the work is counted in the graph (`edgegen.work`).

Source: Williams, Waterman, Patterson 2009, CACM 52 (4), "Roofline".
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from edgegen.bundle import Bundle, Text, open_bundle
from edgegen.errors import MismatchError
from edgegen.gains import EXPLAINED, gains
from edgegen.peaks import check_device, find
from edgegen.profile import Profile
from edgegen.roofs import BANDWIDTH, COMPUTE, OVERHEAD, Bandwidth, Gain, Peaks, Roof, Roofline
from edgegen.spec import Report, silent
from edgegen.timing import PROFILED_RUNS
from edgegen.work import KINDS, OTHER, Kind, Work, least_ms, of_bundle
from edgegen.workload import Job

# What engines call the operators that calculate, by how the name begins; the longest fits.
BEGINS = {
    **{kind: kind for kind in ("Conv", "ConvTranspose", "MatMul", "Attention")},
    **dict.fromkeys(("ConvolutionBackpropData", "Deconvolution"), "ConvTranspose"),
    **dict.fromkeys(("FusedConv", "GroupConvolution", "QLinearConv", "NhwcFusedConv"), "Conv"),
    **dict.fromkeys(("aten::mkldnn_convolution", "aten::convolution", "aten::_slow_conv"), "Conv"),
    **dict.fromkeys(("Gemm", "QGemm", "FusedMatMul", "FusedGemm", "QLinearMatMul"), "MatMul"),
    **dict.fromkeys(
        ("FullyConnected", "DynamicQuantizeMatMul", "Einsum", "TransposeMat"), "MatMul"
    ),
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"), "MatMul"),
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention", "PagedAttention"), "Attention"),
    **dict.fromkeys(("ScaledDotProductAttention", "aten::_scaled_dot_product"), "Attention"),
}
NOT_THESE = ("Convert",)  # begins like Conv


def require(job: Job) -> None:
    """Raise before anything is measured what `explained` would raise after it."""
    check_device(job.device)
    of_bundle(open_bundle(job.path), job.request)


def explained(
    profile: Profile, path: str, peaks: Peaks | None = None, report: Report = silent
) -> Profile:
    """`profile` with its roofline; `path` is its bundle, `peaks` those of its device and threads.

    Without `peaks` they are found in the cache, or measured.

    Raises:
        UnsupportedError: not on the CPU, no ONNX graph in the bundle, or operations not counted.
        MissingExtraError: onnx is not installed.
        MismatchError: the bundle at `path` is not the one that was profiled.
    """
    bundle = open_bundle(path)
    if bundle.sha256() != profile.bundle_sha256:
        raise MismatchError(
            f"{path}: not the bundle that was profiled", "profile it again: edgegen profile BUNDLE"
        )
    work = of_bundle(bundle, profile.request, profile.engine)
    peaks = peaks or find(profile.device, profile.threads, report=report)
    return msgspec.structs.replace(profile, roofline=roofline(profile, bundle, work, peaks))


def roofline(profile: Profile, bundle: Bundle, work: Sequence[Work], peaks: Peaks) -> Roofline:
    """The roofline of a profile whose phases do this `work` on a device with these `peaks`."""
    main, notes = work[-1], [note for one in work for note in one.notes]
    memory = peaks.level(main.resident_bytes)
    if peaks.gflops("int8") is None and any(kind.int8_flops for kind in main.kinds):
        notes.append("int8 operations are held against the fp32 peak: int8 was not measured")
    phases = tuple(_phase(one, profile, peaks) for one in work)
    operators = _operators(profile, work, peaks)
    text = isinstance(bundle.manifest.loop, Text)
    found = gains(profile, text, main, phases[-1], operators, peaks)
    return Roofline(
        peaks=peaks,
        precision=_precision(main),
        level=memory.level,
        phases=phases,
        operators=operators,
        gains=found,
        sentence=_sentence(phases[-1], memory, found),
        notes=tuple(notes),
    )


def _precision(work: Work) -> str:
    """What most of the operations run in: everything but 8-bit integers is computed in fp32."""
    total, int8 = (sum(getattr(k, name) for k in work.kinds) for name in ("flops", "int8_flops"))
    return "int8" if int8 > total / 2 else "fp32"


def _roof(name: str, ms: float, parts: Sequence[tuple[Work, Kind]], peaks: Peaks) -> Roof:
    """One row of all `parts`, each done as often as its phase is."""
    compute = memory = roof = flops = size = 0.0
    for work, kind in parts:
        pair = least_ms(kind, work, peaks)
        compute += work.times * pair[0] * (pair[0] > pair[1])
        memory += work.times * pair[1] * (pair[1] >= pair[0])
        roof += work.times * max(pair)
        flops += work.times * kind.flops
        size += work.times * (kind.weight_bytes + kind.moved_bytes)
    nearer = COMPUTE if compute > memory else BANDWIDTH
    bound = nearer if roof >= EXPLAINED * ms else OVERHEAD
    return Roof(name, ms, flops, size, roof, roof / ms if ms else 0.0, bound)


def _phase(work: Work, profile: Profile, peaks: Peaks) -> Roof:
    """A phase against its median time; one token of a decode."""
    once = msgspec.structs.replace(work, times=1)
    if work.phase == "decode":
        ms = median(ms for steps in profile.steps_ms for ms in steps)
    else:
        ms = median(profile.first_ms)
    return _roof(work.phase, ms, [(once, kind) for kind in work.kinds], peaks)


def _operators(profile: Profile, work: Sequence[Work], peaks: Peaks) -> tuple[Roof, ...]:
    """A row for each kind that the engine timed, the costliest first; empty where it keeps none."""
    times: dict[str, float] = {}
    for operator in profile.operators:
        kind = kind_of(operator.kind)
        times[kind] = times.get(kind, 0.0) + operator.total_ms / PROFILED_RUNS
    parts = _parts(work)
    if times and ("Attention" in times) != ("Attention" in parts):  # fused, or taken apart
        times["MatMul"] = times.get("MatMul", 0.0) + times.pop("Attention", 0.0)
        parts.setdefault("MatMul", []).extend(parts.pop("Attention", []))
    rows = [_roof(kind, ms, parts.get(kind, []), peaks) for kind, ms in times.items()]
    return tuple(sorted(rows, key=lambda row: -row.ms))


def _parts(work: Sequence[Work]) -> dict[str, list[tuple[Work, Kind]]]:
    found: dict[str, list[tuple[Work, Kind]]] = {}
    for one in work:
        for kind in one.kinds:
            found.setdefault(kind.kind, []).append((one, kind))
    return found


def kind_of(engine_kind: str) -> str:
    """The kind of the graph that an engine's operator belongs to: FusedConv is Conv."""
    if engine_kind in KINDS:
        return KINDS[engine_kind]
    begins = [name for name in BEGINS if engine_kind.startswith(name)]
    if not begins or engine_kind.startswith(NOT_THESE):
        return OTHER
    return BEGINS[max(begins, key=len)]


def _sentence(phase: Roof, memory: Bandwidth, gains: Sequence[Gain]) -> str:
    """The answer to "why is it slow", and to "what would help"."""
    said = {
        COMPUTE: "arithmetic",
        BANDWIDTH: f"reading from {memory.level}",
        OVERHEAD: "overhead (dispatch, small sizes, kernels far from the machine's peak)",
    }
    text = (
        f"{phase.name}: bound by {said[phase.bound]}: {phase.ms:.3g} ms, "
        f"{phase.roof_ms:.3g} ms at the roof ({phase.of_roof:.0%} of it reached)"
    )
    if not gains:
        return text
    best = min(gains, key=lambda gain: gain.ratio)
    if best.ratio > 0.95:
        return f"{text}; neither {' nor '.join(gain.change for gain in gains)} would help much"
    return f"{text}; {best.change} would take {best.ratio:.2f} of the time"
