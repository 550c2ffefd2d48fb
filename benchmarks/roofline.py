"""What the roofline predicted, and what the change then bought.

    python benchmarks/roofline.py [--source CHECKPOINT] [--repeats 40] [--rounds 10] [--tiny]

Exports one model at fp32, int8 and int4, profiles all of them in turns in fresh processes, and
prints for each the predicted and the measured ratio of its time to that of fp32. The prediction is
the one of the fp32 profile's roofline, made before the others were looked at. Without --source it
takes untrained models with the sizes of a small GPT and of a decoder of 64 x 64 images: speed does
not depend on the weights' values. `--tiny` only tries the script out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgegen import checkpoint, measure, rooms
from edgegen.compare import compare
from edgegen.export import export
from edgegen.profile import Profile
from edgegen.spec import ModelSpec
from edgegen.tables import number

GPT = {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408}
TINY = {"vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
PRECISIONS = {"gpt": ("fp32", "int8", "int4"), "vae": ("fp32", "int8")}
# Of a quieter random embedding plain rounding to 4 bits leaves 12 dB, which `export` refuses.
LOUDER = 5
ENGINES = ("onnxruntime", "openvino")


def untrained(family: str, folder: Path, tiny: bool) -> Path:
    """A checkpoint of random weights."""
    import torch

    torch.manual_seed(0)
    model = rooms.load("edgegen.models", family)
    config = model.Config(**((TINY if tiny else GPT) if family == "gpt" else {}))
    net = model.Net(config).eval()
    if family == "gpt":
        net.embed_tokens.weight.data.mul_(LOUDER)
    path = folder / family
    checkpoint.save(
        path,
        ModelSpec(family, msgspec.to_builtins(config)),
        net,
        (),
        byte_tokenizer() if family == "gpt" else None,
    )
    return path


def byte_tokenizer() -> bytes:
    """One token a byte: a text bundle must have a tokenizer, and nobody is going to read this."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer.to_str().encode()


def bundles(source: Path, family: str, folder: Path) -> list[Path]:
    """The model at every precision it can be had in, ONNX and OpenVINO."""
    precisions = PRECISIONS.get(family, PRECISIONS["vae"])
    export(str(source), folder / "bundle", formats=("onnx", "openvino"), precisions=precisions)
    return [folder / f"bundle-{precision}" for precision in precisions]


def profiles(paths: list[Path], engine: str, repeats: int, rounds: int) -> list[Profile]:
    """One profile each, taken in turns; the first one explained."""
    jobs = [
        measure.job(path, runtime=engine, repeats=repeats, roofline=n == 0)
        for n, path in enumerate(paths)
    ]
    return measure.interleave(jobs, rounds=rounds)


def lines(found: list[Profile]) -> Iterator[str]:
    """A row for each precision: predicted and measured ratio, and how far the first is off."""
    first = found[0].roofline
    assert first is not None
    predicted = {gain.change: gain.ratio for gain in first.gains}
    for row in compare(found).rows[1:]:
        ratio, guess = row.ratios["p50"], predicted[row.precision]
        spread = f"{number(ratio.low)} to {number(ratio.high)}" if ratio.low and ratio.high else "-"
        yield (
            f"| {row.family} | {row.engine} | {row.precision} | {number(guess)} | "
            f"{number(ratio.value)} | {spread} | {guess / ratio.value - 1:+.0%} |"
        )


def main() -> None:
    """Print the table, and why fp32 is as slow as it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, help="a checkpoint, instead of untrained models")
    parser.add_argument("--family", default="gpt", help="of --source: gpt, vae or gan")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    head = ("model", "engine", "precision", "predicted", "measured", "95 %", "prediction is off by")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)  # noqa: T201
    reasons = []
    for family in [options.family] if options.source else ["gpt", "vae"]:
        with tempfile.TemporaryDirectory() as made:
            source = options.source or untrained(family, Path(made), options.tiny)
            paths = bundles(source, family, Path(made))
            for engine in ENGINES:
                found = profiles(paths, engine, options.repeats, options.rounds)
                print("\n".join(lines(found)), flush=True)  # noqa: T201
                reasons.append(f"- {found[0].name()}: {found[0].roofline.sentence}")
    print("\n".join(["", *reasons]))  # noqa: T201


if __name__ == "__main__":
    main()
