import msgspec
import numpy as np
import pytest
import torch

from edgegen.exporters._weights import weights_of
from edgegen.models import gpt
from edgegen.models._numpy import Decoder

LLAMA = gpt.Config(vocab_size=61, hidden_size=32, num_hidden_layers=1, intermediate_size=48)
GPT2 = msgspec.structs.replace(LLAMA, style="gpt2", num_key_value_heads=4)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_a_net_and_its_twin_in_numpy_have_the_same_weights(config):
    net = gpt.Net(config)
    twin = Decoder(config, {name: t.numpy() for name, t in net.state_dict().items()})
    want, found = weights_of(net), weights_of(twin)
    assert want.keys() == found.keys()
    assert ("frequencies" in want) == (config.style == "llama")
    for name, array in want.items():
        np.testing.assert_allclose(found[name], array, rtol=3e-7)


def test_another_module_has_none():
    assert weights_of(torch.nn.Linear(2, 2)) == {}
