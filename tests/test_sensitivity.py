"""The ledger: nothing changed is nothing lost, and nothing is measured twice."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models are torch's")

from edgegen import checkpoint, records, sensitivity  # noqa: E402
from edgegen.batches import Material  # noqa: E402
from edgegen.compress import Setting, Work  # noqa: E402
from edgegen.compress.quantize import Options, apply  # noqa: E402
from edgegen.errors import MismatchError, UnsupportedError, UsageError  # noqa: E402
from edgegen.sensitivity import Row, Sensitivity, changed, draw, inspect_rows, ledger  # noqa: E402

SMALL = {"samples": 4, "tokens": 16}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def opened(tiny_checkpoint):
    def open_(family):
        found = checkpoint.load(tiny_checkpoint(family))
        return Work(found.spec, found.net, found.tokenizer)

    return open_


@pytest.fixture
def run(capfd, monkeypatch):
    """`run("inspect", ...)`: exit code, stdout and stderr of the command line."""
    from edgegen import cli

    def run_(*arguments):
        monkeypatch.setattr("sys.argv", ["edgegen", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        found = capfd.readouterr()
        return end.value.code or 0, found.out, found.err

    return run_


def text():
    ids = (np.arange(2000) * 7 + np.random.default_rng(0).integers(0, 3, 2000)) % 250
    return Material(ids[:1500], ids[1500:], None, 33)


def setting_of(work, material=None, report=lambda *_: None):
    return Setting(work, material, Path("unused"), report=report)


def test_a_layer_that_rounding_does_not_change_loses_nothing(opened):
    work = opened("gpt")
    layer = work.net.layers[1].mlp.down_proj
    with torch.no_grad():
        q = torch.randint(0, 16, layer.weight.shape, generator=torch.Generator().manual_seed(0))
        q[:, ::16], q[:, 1::16] = 0, 15
        layer.weight.copy_((q - 7.0) / 32)
    found = ledger(work, setting_of(work, text()), ("int4-g16",), **SMALL)
    assert found.loss("layers.1.mlp.down_proj", "int4-g16") < 1e-11
    others = [row.loss for row in found.rows if row.layer != "layers.1.mlp.down_proj"]
    assert min(others) > 10 * found.loss("layers.1.mlp.down_proj", "int4-g16")


def test_fewer_bits_and_more_pruning_lose_more(opened):
    work = opened("gpt")
    changes = ("int8", "int3-g0", "prune-0.25", "prune-0.75")
    found = ledger(work, setting_of(work, text()), changes, **SMALL)
    assert found.measure == "kl_nats" and found.reference > 0
    assert found.data == "4 x 16 tokens of --data"
    layers = list(dict.fromkeys(row.layer for row in found.rows))
    assert layers == list(sensitivity.layers_of(work))
    for layer in layers:
        assert found.loss(layer, "int8") < found.loss(layer, "int3-g0")
    assert sum(found.loss(n, "prune-0.25") for n in layers) < sum(
        found.loss(n, "prune-0.75") for n in layers
    )
    with pytest.raises(MismatchError, match="was not measured"):
        found.loss("layers.0.mlp.up_proj", "int2")


def test_each_loss_is_that_of_the_whole_model_with_one_layer_changed(opened):
    """Although blocks in front of the layer were not computed again."""
    work = opened("gpt")
    found = ledger(work, setting_of(work, text()), ("int3-g0",), **SMALL)
    from edgegen.compress._probe import measured, probe

    batches = probe(work, setting_of(work, text()), **SMALL)
    _, loss, _ = measured(work, setting_of(work, text()), batches)
    for name in ("embed_tokens", "layers.0.self_attn.k_proj", "layers.1.mlp.gate_proj"):
        layer = work.net.get_submodule(name)
        before = layer.weight.detach().clone()
        layer.weight.data = changed(before, "int3-g0")
        assert found.loss(name, "int3-g0") == pytest.approx(loss(work.net), rel=1e-4, abs=1e-9)
        layer.weight.data = before


@pytest.mark.parametrize(("family", "measure"), [("vae", "elbo_nats"), ("gan", "noise")])
def test_images_lose_elbo_or_their_outputs(opened, family, measure):
    work = opened(family)
    rng = np.random.default_rng(0)
    images = Material(rng.random((40, 1, 8, 8), np.float32), rng.random((8, 1, 8, 8)), None)
    found = ledger(work, setting_of(work, images), ("int4", "prune-0.9"), samples=8)
    assert found.measure == measure
    exported = {row.layer for row in found.rows}
    assert exported and not any(n.startswith(("discriminator", "generator")) for n in exported)
    assert all(row.loss != 0 for row in found.rows if row.change == "prune-0.9")
    drawn = ledger(work, setting_of(work), ("int4",), samples=8)
    assert drawn.measure == "noise" and "drawn" in drawn.data


def test_a_second_time_is_read_and_not_computed(opened):
    work, calls = opened("gpt"), []
    setting = setting_of(work, text(), lambda *step: calls.append(step))
    first = ledger(work, setting, ("int8",), **SMALL)
    assert calls and sensitivity.cached(first.key).is_file()
    calls.clear()
    assert ledger(work, setting, ("int8",), **SMALL) == first and not calls
    ledger(work, setting, ("int4",), **SMALL)
    assert calls
    calls.clear()
    with torch.no_grad():
        work.net.norm.weight[0] += 1
    assert ledger(work, setting, ("int8",), **SMALL).key != first.key and calls


def test_a_killed_run_goes_on_where_it_was(opened, monkeypatch):
    work = opened("gpt")
    monkeypatch.setattr(sensitivity, "EVERY", 4)
    done = []

    def stop(what, step, total):
        done.append(step)
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger(work, setting_of(work, text(), stop), ("int8", "int4"), **SMALL)
    measured = []
    real = sensitivity._changed_loss
    monkeypatch.setattr(sensitivity, "_changed_loss", lambda *a: measured.append(a[1]) or real(*a))
    whole = ledger(work, setting_of(work, text()), ("int8", "int4"), **SMALL)
    assert len(measured) == 2 * (len(done) and len(sensitivity.layers_of(work)) - 8)
    assert len(whole.rows) == 2 * len(sensitivity.layers_of(work))
    assert not sensitivity._unfinished(sensitivity.cached(whole.key)).exists()


def test_what_cannot_be_measured_is_refused(opened):
    work = opened("gpt")
    for change in ("int9", "prune-1.5", "prune-half", "fp4"):
        with pytest.raises(UsageError, match=change):
            ledger(work, setting_of(work, text()), (change,))
    with pytest.raises(UsageError, match="text needs data") as error:
        ledger(work, setting_of(work))
    assert "--data text:FILES" in error.value.hint
    quantized = apply(work, Options(), setting_of(work))
    with pytest.raises(UnsupportedError, match="quantized already"):
        ledger(quantized, setting_of(work, text()))
    with torch.no_grad():
        work.net.norm.weight[0] = float("nan")
    with pytest.raises(MismatchError, match="not finite"):
        ledger(work, setting_of(work, text()), ("int8",), **SMALL)


def rows():
    names = ["embed_tokens", *(f"layers.{n}.mlp.{p}" for n in range(3) for p in ("up", "down"))]
    return tuple(
        Row(name, "Linear", 1000, change, loss * (index + 1))
        for index, name in enumerate(names)
        for change, loss in (("int8", 1e-5), ("int4", -1e-3 if index == 2 else 1e-3))
    )


def test_the_heat_map_is_a_picture_with_a_cell_a_layer(tmp_path):
    heat = pytest.importorskip("edgegen.charts.heat", reason="needs the report extra")
    image = pytest.importorskip("PIL.Image", reason="the picture is read with Pillow")
    draw(Sensitivity("kl_nats", 3.0, "data", "k", rows()), tmp_path / "heat.png")
    with image.open(tmp_path / "heat.png") as picture:
        assert picture.width > 300 and picture.height > 300
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20
    assert heat.axes_of([row.layer for row in rows()]) == (
        ["-", "0", "1", "2"],
        ["embed_tokens", "mlp.up", "mlp.down"],
    )
    assert heat.place_of("average.body.2") == ("2", "average.body")


def test_the_table_shows_the_most_sensitive_layer_first():
    titles, lines = inspect_rows(Sensitivity("kl_nats", 3.0, "data", "k", rows()))
    assert titles == ("layer", "kind", "parameters", "int8: kl_nats", "int4: kl_nats")
    assert lines[0] == ("layers.2.mlp.down", "Linear", "1,000", "7e-05", "0.007")
    assert lines[-1][0] == "layers.0.mlp.down"


def test_the_command_prints_the_ledger_and_draws_it(tiny_checkpoint, tmp_path, run):
    path = str(tiny_checkpoint("gan"))
    asked = ("inspect", path, "--sensitivity", "--change", "int4")
    code, out, _ = run(*asked, "-o", str(tmp_path / "heat.png"))
    assert code == 0 and "average.body.2" in out and "int4: noise" in out
    assert (tmp_path / "heat.png").stat().st_size > 1000
    code, out, _ = run(*asked, "--json")
    assert records.decode(Sensitivity, out.encode(), "stdout").measure == "noise"
    code, _, err = run("inspect", path, "--change", "int4")
    assert code == 2 and "add --sensitivity" in err
    code, _, err = run("inspect", str(tiny_checkpoint("gpt")), "--sensitivity")
    assert code == 2 and "give --data text:FILES" in err


def test_a_ledger_is_a_record(tmp_path):
    found = Sensitivity("kl_nats", 3.0, "data", "k", rows())
    records.write(found, tmp_path / "s.json")
    assert records.read(Sensitivity, tmp_path / "s.json") == found
