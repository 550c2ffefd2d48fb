import math
from itertools import pairwise

import msgspec
import numpy as np
import pytest
import torch

from edgegen.models import _decoder, _numpy, gpt

LLAMA = gpt.Config(vocab_size=61, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
CONFIGS = {
    "llama": LLAMA,
    "gpt2": msgspec.structs.replace(LLAMA, style="gpt2", num_key_value_heads=4),
    "untied": msgspec.structs.replace(LLAMA, tie_word_embeddings=False, qkv_bias=True, head_dim=12),
    "scaled": msgspec.structs.replace(LLAMA, rope_factors=(1.0, 2.0, 8.0, 8.0), rope_theta=500.0),
    "one": msgspec.structs.replace(LLAMA, num_key_value_heads=1, num_hidden_layers=1),
}
EVERY = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def both(config):
    """The net, weights and biases large enough to matter, and the same in numpy."""
    torch.manual_seed(0)
    net = gpt.Net(config).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.2)
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    return net, _numpy.Decoder(config, weights)


def feed(config, ids, mask, past):
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
    if past is None:
        past = [np.zeros((len(ids), config.num_key_value_heads, 0, config.head_size), np.float32)]
        past *= 2 * config.num_hidden_layers
    return ids, mask, positions, *past


def alike(net, decoder, given):
    with torch.no_grad():
        want = net(*(torch.from_numpy(array) for array in given))
    found = decoder(*given)
    assert len(found) == len(want)
    for mine, theirs in zip(found, want, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=2e-5)
    return found


@EVERY
def test_numpy_computes_what_torch_does_with_padding_and_through_the_cache(config):
    net, decoder = both(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
    mask = np.ones_like(ids)
    mask[1, :3] = 0
    _, *cache = alike(net, decoder, feed(config, ids, mask, None))
    for count in (1, 4):
        more = ids[:, :count]
        mask = np.concatenate([mask, np.ones_like(more)], axis=1)
        _, *cache = alike(net, decoder, feed(config, more, mask, cache))


@EVERY
def test_the_shapes_of_a_config_are_those_of_the_net(config):
    state = gpt.Net(config).state_dict()
    assert _decoder.shapes(config) == {name: tuple(t.shape) for name, t in state.items()}


@EVERY
def test_the_frequencies_are_those_of_the_net(config):
    found = _numpy.frequencies(config)
    np.testing.assert_allclose(found, gpt.rope_frequencies(config).numpy(), rtol=3e-7)


def test_a_rotation_by_a_quarter_turn_swaps_the_pair():
    x = np.array([[[[1.0, 2.0, 3.0, 4.0]]]], np.float32)
    cos, sin = np.zeros((1, 1, 1, 2), np.float32), np.ones((1, 1, 1, 2), np.float32)
    assert _numpy.rotate(x, cos, sin).ravel().tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_a_position_sees_itself_and_what_is_real_before_it():
    mask = np.array([[0, 1, 1, 1]])
    assert _numpy.visible(mask, 2)[0].tolist() == [
        [False, True, True, False],
        [False, True, True, True],
    ]
    assert _numpy.visible(mask, 4)[0, 0].tolist() == [True, False, False, False]


def test_gelu_is_nothing_far_below_zero_and_the_identity_far_above():
    x = np.array([-20.0, 0.0, 1.0, 20.0], np.float32)
    near_one = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))
    np.testing.assert_allclose(_numpy.gelu(x), [0.0, 0.0, near_one, 20.0], rtol=1e-6)
    assert all(low < high for low, high in pairwise(_numpy.gelu(np.arange(0, 9, dtype=np.float32))))


def test_large_values_do_not_overflow():
    """Warnings are errors in these tests: exp of what a gate may hold would warn."""
    _, decoder = both(LLAMA)
    decoder.weights["layers.0.mlp.gate_proj.weight"][:] *= 1e4
    ids = np.array([[1, 2, 3]])
    logits, *_ = decoder(*feed(LLAMA, ids, np.ones_like(ids), None))
    assert np.isfinite(logits).all()
