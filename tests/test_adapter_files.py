"""Adapters in PEFT's files: ours in peft, peft's in ours."""

import copy
import json

import pytest
import torch
from torch import nn

from edgegen import adapters
from edgegen.adapter_files import CONFIG, WEIGHTS, Factors, fitted, load_peft, read_peft, save_peft
from edgegen.checkpoint import pack, unpack
from edgegen.errors import FormatError, MismatchError, NotFoundError, UnsupportedError, UsageError


class Toy(nn.Module):
    """Linear layers, of which one's name ends like another's, and convolutions."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, (3, 2), stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 3, 2)
        self.block = nn.ModuleDict({"fc": nn.Linear(4, 4)})
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        h = self.up(self.conv(x))[..., :4]
        return self.fc(self.block["fc"](h).relu())


X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(3))


def toy(ranks=None, scales=None):
    torch.manual_seed(0)
    net = Toy().eval()
    adapters.attach(net, ranks or {})
    for name, adapter in adapters.adapted(net).items():
        nn.init.normal_(adapter.B)
        adapter.scale.fill_((scales or {}).get(name, 0.5))
    return net


@pytest.mark.parametrize(
    "ranks", [{"conv": 2, "fc": 2, "block.fc": 2}, {"fc": 3, "conv": 2}, {"block.fc": 1, "fc": 4}]
)
def test_peft_reads_our_adapters_and_gives_the_same_numbers(tmp_path, ranks):
    peft = pytest.importorskip("peft")
    net = toy(ranks, {"fc": 2.0})
    save_peft(net, tmp_path)
    theirs = peft.PeftModel.from_pretrained(toy(), tmp_path)
    got = theirs(X)
    torch.testing.assert_close(got, net(X), rtol=1e-6, atol=1e-6)
    assert not torch.equal(got, toy()(X))


@pytest.mark.parametrize("rslora", [False, True])
def test_we_read_pefts_adapters_and_give_the_same_numbers(tmp_path, rslora):
    peft = pytest.importorskip("peft")
    options = {} if rslora else {"rank_pattern": {"conv": 2}, "alpha_pattern": {"block.fc": 3}}
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["conv", "fc"], use_rslora=rslora, **options
    )
    theirs = peft.get_peft_model(toy(), config).eval()
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    theirs.save_pretrained(tmp_path)
    mine = toy()
    ranks = load_peft(mine, tmp_path)
    assert ranks == {"conv": 4 if rslora else 2, "fc": 4, "block.fc": 4}
    torch.testing.assert_close(mine(X), theirs(X), rtol=1e-6, atol=1e-6)


def test_what_was_saved_is_read_back_bit_for_bit_transposed_convolutions_too(tmp_path):
    net = toy({"up": 2, "conv": 1, "fc": 3}, {"up": 0.3})
    save_peft(net, tmp_path)
    again = toy()
    assert load_peft(again, tmp_path) == {"up": 2, "conv": 1, "fc": 3}
    for name, adapter in adapters.adapted(net).items():
        assert torch.equal(adapter.A, adapters.adapted(again)[name].A)
        assert torch.equal(adapter.B, adapters.adapted(again)[name].B)
    torch.testing.assert_close(again(X), net(X), rtol=1e-6, atol=1e-6)


def test_a_name_that_is_the_end_of_another_is_written_as_a_pattern(tmp_path):
    save_peft(toy({"fc": 1}), tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == "fc"
    save_peft(toy({"fc": 1, "block.fc": 1}), tmp_path)
    found = json.loads((tmp_path / CONFIG).read_text())
    assert found["target_modules"] == ["block.fc", "fc"]
    assert (found["r"], found["lora_alpha"], found["rank_pattern"]) == (1, 0.5, {})


def test_hugging_faces_leading_model_is_taken_off():
    fc = Factors(torch.zeros(2, 4), torch.zeros(5, 2), 1.0)
    assert list(fitted(toy(), {"model.fc": fc}, "here")) == ["fc"]


def test_nothing_attached_is_nothing_to_save(tmp_path):
    with pytest.raises(UsageError, match="no adapter to save"):
        save_peft(toy(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_adapter_of_another_model_is_refused_with_both_shapes(tmp_path):
    save_peft(toy({"fc": 2}), tmp_path)
    other = nn.ModuleDict({"fc": nn.Linear(3, 5)})
    wanted = r"adapter of fc: A \[2, 4\] and B \[5, 2\], wanted A \[2, 3\] and B \[5, 2\]"
    with pytest.raises(MismatchError, match=wanted) as error:
        load_peft(other, tmp_path)
    assert "another model" in error.value.hint
    assert not adapters.adapted(other)
    with pytest.raises(MismatchError, match="an adapter of fc, which this model does not have"):
        load_peft(nn.ModuleDict({"fd": nn.Linear(3, 5)}), tmp_path)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(NotFoundError, match=CONFIG):
        read_peft(tmp_path)
    save_peft(toy({"fc": 2}), tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"x")
    with pytest.raises(FormatError, match=WEIGHTS):
        read_peft(tmp_path)
    (tmp_path / CONFIG).write_text('{"r": 2}')
    with pytest.raises(FormatError, match="peft_type"):
        read_peft(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "LOHA"}, "LOHA, bias none"),
        ({"bias": "all"}, "LORA, bias all"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path, change, said):
    save_peft(toy({"fc": 2}), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text()) | change
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=f"{said}: only plain LoRA is read") as error:
        read_peft(tmp_path)
    assert "merge it with peft" in error.value.hint


def test_a_tensor_that_is_no_lora_and_a_lone_half_are_named(tmp_path):
    save_peft(toy({"fc": 2}), tmp_path)
    tensors = unpack(tmp_path / WEIGHTS)
    lone = {name: t for name, t in tensors.items() if "lora_A" in name}
    (tmp_path / WEIGHTS).write_bytes(pack(lone))
    with pytest.raises(FormatError, match="fc has only lora_A"):
        read_peft(tmp_path)
    other = {"base_model.model.wte.lora_embedding_A": copy.copy(tensors).popitem()[1]}
    (tmp_path / WEIGHTS).write_bytes(pack(other))
    with pytest.raises(UnsupportedError, match=r"wte\.lora_embedding_A is no LoRA of a layer"):
        read_peft(tmp_path)
