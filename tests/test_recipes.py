"""Every shipped recipe on a tiny model of each family that it is for."""

import msgspec
import pytest

from edgegen import recipe
from edgegen.recipe import Gate, Recipe

LETTERS = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 60
DATA = {"gpt": "text:{}/prose.txt", "vae": "digits", "gan": "digits"}
CASES = [
    (name, family)
    for name in recipe.shipped()
    for family in recipe.read(name).families
    if family != "module"
]


def quick(name):
    """Two steps of training, and one run in a process: what is learnt and won is not the point."""
    found = recipe.read(name)
    short = {"steps": 2, "batch": 2}
    steps = tuple(
        msgspec.structs.replace(
            step, options=step.options | {k: v for k, v in short.items() if k in step.options}
        )
        for step in found.steps
    )
    quality = {figure: bound for figure, bound in found.gate.quality.items() if figure != "kid"}
    return Recipe(steps, Gate(repeats=1, rounds=1, num=10, quality=quality))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_shipped_recipe_runs_on_its_family(name, family, tmp_path, tiny_checkpoint):
    pytest.importorskip("torch", reason="compression needs torch")
    from edgegen.compress import compress
    from edgegen.export import export

    (tmp_path / "prose.txt").write_text(LETTERS)
    entries = compress(
        str(tiny_checkpoint(family)),
        quick(name),
        tmp_path / "out",
        data=DATA[family].format(tmp_path),
        keep_anyway=True,
    )
    assert [entry.kind for entry in entries] == [step.kind for step in recipe.read(name).steps]
    last = entries[-1].verdict
    assert last.outcome in ("passed", "kept anyway") and last.after.quality
    assert last.after.size_mb < last.before.size_mb or "distil" in name or "half" in name
    (bundle,) = export(str(tmp_path / "out"), tmp_path / "bundle", formats=["onnx"])
    assert len(bundle.manifest.history) == len(entries)
