import msgspec
import numpy as np
import pytest
import torch

from edgegen import batches, checkpoint, images
from edgegen.compress import Work
from edgegen.compress._material import read_material
from edgegen.errors import MismatchError, NotFoundError, UsageError
from edgegen.spec import ModelSpec


def work_of(path):
    found = checkpoint.load(path)
    return Work(found.spec, found.net, found.tokenizer)


@pytest.fixture
def text(tmp_path):
    def make(content):
        (tmp_path / "text.txt").write_text(content)
        return f"text:{tmp_path / 'text.txt'}"

    return make


@pytest.fixture
def pictures(tmp_path):
    """`--data` of a folder of grey pictures of those values."""

    def make(values, size=8, channels=1):
        for n, value in enumerate(values):
            pixels = np.full((1, channels, size, size), value, np.float32)
            images.write_grid(tmp_path / "pictures" / f"{n}.png", pixels)
        return f"images:{tmp_path / 'pictures'}"

    return make


def test_text_is_read_with_the_models_own_tokenizer(tiny_checkpoint, text):
    letters = "abcdefghij" * 100
    found = read_material(work_of(tiny_checkpoint("gpt")), text(letters))
    assert found.training.tolist() == list(letters[:900].encode())
    assert found.held_out.tolist() == list(letters[900:].encode())
    assert found.window == 65  # 64 positions and the token after them
    assert batches.take(found, 3, 0, 0).shape == (3, 65)


def test_text_shorter_than_a_window_makes_the_window_shorter(tiny_checkpoint, text):
    found = read_material(work_of(tiny_checkpoint("gpt")), text("abcdefghij" * 10))
    assert found.window == 10 == len(found.held_out)


def test_images_are_split_as_for_training(tiny_checkpoint):
    found = read_material(work_of(tiny_checkpoint("vae")), "digits")
    assert found.training.shape[1:] == (1, 8, 8)
    assert (len(found.training), len(found.held_out)) == (1618, 179)
    assert found.config.image_size == 8


@pytest.mark.parametrize(
    ("family", "data", "fix"),
    [
        ("gpt", "digits", "use --data text:FILES"),
        ("vae", "text:a.txt", "use --data digits, idx:DIR or images:DIR"),
    ],
)
def test_data_of_the_other_kind_is_refused(tiny_checkpoint, family, data, fix):
    with pytest.raises(UsageError, match=f"a model of family {family} does not take that") as e:
        read_material(work_of(tiny_checkpoint(family)), data)
    assert e.value.hint == fix


def test_images_of_another_shape_are_refused_with_both(tiny_checkpoint, pictures):
    with pytest.raises(UsageError, match=r"images of 1x9x9 .*this vae has 1x8x8"):
        read_material(work_of(tiny_checkpoint("vae")), pictures([0, 1], size=9))


def test_one_image_is_too_few(tiny_checkpoint, pictures):
    with pytest.raises(UsageError, match="1 image, wanted 2"):
        read_material(work_of(tiny_checkpoint("vae")), pictures([0.5]))


def test_images_that_are_all_the_same_are_refused(tiny_checkpoint, pictures):
    with pytest.raises(UsageError, match="every image is the same"):
        read_material(work_of(tiny_checkpoint("vae")), pictures([0.5, 0.5, 0.5]))


def test_text_of_one_letter_is_refused(tiny_checkpoint, text):
    with pytest.raises(UsageError, match="every token is the same"):
        read_material(work_of(tiny_checkpoint("gpt")), text("a" * 500))


@pytest.mark.parametrize(("content", "error"), [("", NotFoundError), ("abc", UsageError)])
def test_next_to_no_text_is_refused(tiny_checkpoint, text, content, error):
    with pytest.raises(error):
        read_material(work_of(tiny_checkpoint("gpt")), text(content))


def test_text_for_a_model_without_tokenizer_is_refused(tiny_checkpoint, text):
    work = work_of(tiny_checkpoint("gpt"))._replace(tokenizer=None)
    with pytest.raises(NotFoundError, match="no tokenizer"):
        read_material(work, text("some text, " * 30))


def test_a_tokenizer_of_another_model_is_noticed(tiny_checkpoint, text):
    work = work_of(tiny_checkpoint("gpt"))
    spec = ModelSpec("gpt", work.spec.config | {"vocab_size": 100})
    with pytest.raises(MismatchError, match="token 121, the model's vocabulary has 100"):
        read_material(work._replace(spec=spec), text("any text " * 30))


MODULE = "from torch import nn\ndef build(): return nn.Conv2d(1, 2, 3)\n"


@pytest.fixture
def module(tmp_path):
    """Any module, of those inputs."""

    def make(inputs):
        (tmp_path / "conv.py").write_text(MODULE)
        config = {"source": f"{tmp_path / 'conv.py'}:build", "inputs": [inputs]}
        spec = ModelSpec("module", config)
        return Work(spec, checkpoint.build(spec))

    return make


def test_images_go_into_any_module_that_takes_them(module, pictures):
    data = pictures([0, 0.5, 1])
    found = read_material(module("input:float32[batch,1,8,8]"), data)
    assert found.training.shape[1:] == (1, 8, 8)
    assert len(read_material(module("input:float32[batch,1,high,wide]"), data).training) == 3 - 1
    with pytest.raises(UsageError, match="input input takes 1x9x9"):
        read_material(module("input:float32[batch,1,9,9]"), data)


def test_images_are_not_for_a_module_without_any(tmp_path, pictures):
    (tmp_path / "line.py").write_text("from torch import nn\ndef build(): return nn.Linear(4, 2)\n")
    config = {"source": f"{tmp_path / 'line.py'}:build", "inputs": ["input:float32[batch,4]"]}
    work = Work(ModelSpec("module", config), torch.nn.Linear(4, 2))
    with pytest.raises(UsageError, match="input input takes no images"):
        read_material(work, pictures([0, 1]))
    assert msgspec.to_builtins(work.spec)["family"] == "module"
