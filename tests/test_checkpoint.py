import json
import resource

import msgspec
import pytest
import torch
from torch import nn

from edgegen import checkpoint
from edgegen.errors import FormatError, NotFoundError, UsageError
from edgegen.models import gan, vae
from edgegen.spec import ModelSpec

CONFIG = vae.Config(width=4, latent=3)
SPEC = ModelSpec("vae", msgspec.to_builtins(CONFIG))


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a small VAE: (path, net)."""
    torch.manual_seed(0)
    net = vae.Net(CONFIG)
    checkpoint.save(tmp_path / "vae", SPEC, net, ({"kind": "train", "steps": 3},), b"{}")
    return tmp_path / "vae", net


@pytest.fixture
def full_disk():
    """No file may grow beyond 4 kB, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def edit(path, **changes):
    record = json.loads(path.read_text())
    record["config"] |= changes
    path.write_text(json.dumps(record))


def test_what_was_saved_is_what_is_loaded(saved):
    path, net = saved
    found = checkpoint.load(path)
    assert (found.spec, found.tokenizer) == (SPEC, b"{}")
    assert found.history == ({"kind": "train", "steps": 3},)
    assert not found.net.training
    assert all(torch.equal(a, found.net.state_dict()[n]) for n, a in net.state_dict().items())


def test_a_chat_template_comes_back_and_no_file_is_none(saved, tmp_path):
    path, net = saved
    assert checkpoint.load(path).chat_template == ""
    checkpoint.save(tmp_path / "chat", SPEC, net, (), b"{}", "{{ ünicode }}")
    assert checkpoint.load(tmp_path / "chat").chat_template == "{{ ünicode }}"


def test_graphs_are_those_of_the_family(saved):
    found = checkpoint.graphs(SPEC, saved[1])
    assert found.keys() == vae.graphs(saved[1]).keys() == {"encoder", "decoder"}


MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
"""


def test_any_module_comes_back_with_its_own_weights_and_graph(tmp_path):
    (tmp_path / "net.py").write_text(MODULE)
    config = {"source": f"{tmp_path / 'net.py'}:build", "inputs": ["input:float32[batch,4]"]}
    spec = ModelSpec("module", config)
    net = checkpoint.build(spec)
    with torch.no_grad():
        net[0].weight.fill_(0.5)
    checkpoint.save(tmp_path / "any", spec, net, ())
    found = checkpoint.load(tmp_path / "any")
    assert torch.equal(found.net[0].weight, net[0].weight)
    ((name, (module, graph)),) = checkpoint.graphs(spec, found.net).items()
    assert (name, graph.inputs[0].shape, graph.outputs[0].shape) == (
        "model",
        ("batch", 4),
        ("batch", 3),
    )
    assert torch.equal(module(torch.ones(2, 4))[0], net(torch.ones(2, 4)))


def test_equal_models_are_equal_files(saved, tmp_path):
    path, net = saved
    checkpoint.save(tmp_path / "again", SPEC, net, ())
    one, two = ((p / "model.safetensors").read_bytes() for p in (path, tmp_path / "again"))
    assert one == two


def test_a_gan_keeps_its_average_and_the_state_of_its_spectral_norm(tmp_path):
    net = gan.Net(gan.Config(width=4, spectral_norm=True))
    net.discriminator(torch.rand(2, 1, 8, 8))
    gan.after_step(net, 5)
    spec = ModelSpec("gan", msgspec.to_builtins(net.config))
    checkpoint.save(tmp_path / "gan", spec, net, ())
    found = checkpoint.load(tmp_path / "gan").net.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in net.state_dict().items())


def test_tied_weights_are_stored_once_and_come_back_tied():
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    packed = checkpoint.pack(tied.state_dict())
    assert b"0.weight" in packed and b"1.weight" not in packed


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="no checkpoint there") as error:
        checkpoint.load(tmp_path / "nowhere")
    assert error.value.hint.startswith("make one with: edgegen train")


def test_truncated_weights_are_named(saved):
    path, _ = saved
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(FormatError, match=r"model\.safetensors: not a whole safetensors") as error:
        checkpoint.load(path)
    assert "restore the file" in error.value.hint


def test_missing_weights_are_named(saved):
    path, _ = saved
    (path / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"model\.safetensors: no such file"):
        checkpoint.load(path)


def test_an_unknown_field_of_the_config_gets_a_guess(saved):
    path, _ = saved
    edit(path / "config.json", latnet=3)
    with pytest.raises(FormatError, match="unknown field `latnet`") as error:
        checkpoint.load(path)
    assert error.value.hint == "did you mean 'latent'?"


def test_weights_of_another_size_name_the_tensor_and_both_shapes(saved):
    path, _ = saved
    edit(path / "config.json", latent=5)
    with pytest.raises(FormatError, match=r"decoder\.first\.weight: wanted \[128, 5\], found") as e:
        checkpoint.load(path)
    assert "of two models" in e.value.hint


def test_weights_that_are_not_wanted_are_named(saved):
    path, net = saved
    extra = {**net.state_dict(), "adapter": torch.zeros(1)}
    (path / "model.safetensors").write_bytes(checkpoint.pack(extra))
    with pytest.raises(FormatError, match="adapter: wanted no such tensor"):
        checkpoint.load(path)


def test_an_unknown_family_gets_a_guess(saved):
    path, _ = saved
    (path / "config.json").write_text('{"family": "vea", "config": {}}')
    with pytest.raises(NotFoundError, match=r"no .vea. in edgegen\.models") as error:
        checkpoint.load(path)
    assert "vae" in error.value.hint


def test_only_a_checkpoint_is_ever_replaced(saved, tmp_path):
    path, net = saved
    checkpoint.save(path, SPEC, net, ())
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="exists and is not a checkpoint") as error:
        checkpoint.save(tmp_path / "home", SPEC, net, ())
    assert "choose another" in error.value.hint
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_a_full_disk_leaves_the_old_checkpoint_whole(saved, full_disk):
    path, net = saved
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    with pytest.raises(OSError):
        checkpoint.save(path, SPEC, net, ({"kind": "new"},))
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert [p.name for p in path.parent.iterdir()] == ["vae"]
