import math

import msgspec
import numpy as np
import pytest
import torch

from edgegen.errors import UsageError
from edgegen.models import gpt

LLAMA = gpt.Config(vocab_size=61, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
GPT2 = msgspec.structs.replace(LLAMA, style="gpt2", num_key_value_heads=4)
UNTIED = msgspec.structs.replace(LLAMA, tie_word_embeddings=False, qkv_bias=True, head_dim=12)
STYLES = pytest.mark.parametrize("config", [LLAMA, GPT2, UNTIED], ids=["llama", "gpt2", "untied"])


def net_of(config):
    """Weights large enough for attention to matter."""
    torch.manual_seed(0)
    net = gpt.Net(config).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(std=0.2)
    return net


def ids_of(config, batch, time):
    return torch.randint(config.vocab_size, (batch, time), generator=torch.manual_seed(1))


def run(net, ids, mask=None, past=None):
    """Logits and cache, positions counted from the first real token."""
    past = net.empty_cache(len(ids)) if past is None else past
    length = past[0].shape[2] + ids.shape[1]
    mask = torch.ones(len(ids), length, dtype=torch.int64) if mask is None else mask
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        logits, *present = net(ids, mask, positions, *past)
    return logits, present


@STYLES
def test_cached_decode_equals_the_full_forward_token_for_token(config):
    net, ids = net_of(config), ids_of(config, 2, 12)
    whole, _ = run(net, ids)
    logits, cache = run(net, ids[:, :5])
    steps = [logits]
    for time in range(5, 12):
        logits, cache = run(net, ids[:, time : time + 1], past=cache)
        steps.append(logits)
    cached = torch.cat(steps, dim=1)
    torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(cached.argmax(-1), whole.argmax(-1))


@STYLES
def test_padding_on_the_left_changes_nothing(config):
    net, ids = net_of(config), ids_of(config, 1, 6)
    alone, _ = run(net, ids)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.int64), ids), dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    logits, _ = run(net, padded, mask)
    torch.testing.assert_close(logits[:, 3:], alone, rtol=1e-5, atol=1e-5)
    assert logits.isfinite().all()


def test_a_token_sees_no_later_one():
    net, ids = net_of(LLAMA), ids_of(LLAMA, 1, 8)
    changed = ids.clone()
    changed[0, 5] = (ids[0, 5] + 1) % LLAMA.vocab_size
    before, after = run(net, ids)[0], run(net, changed)[0]
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5], after[:, 5])


def test_the_mask_is_causal_and_padded_and_leaves_no_row_empty():
    mask = gpt.causal_mask(torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]), time=2, past=2)
    wanted = [[[1, 1, 1, 0], [1, 1, 1, 1]], [[0, 1, 1, 0], [0, 1, 1, 1]]]
    assert mask.shape == (2, 1, 2, 4)
    assert mask[:, 0].int().tolist() == wanted
    empty = gpt.causal_mask(torch.zeros(1, 3, dtype=torch.int64), time=3, past=0)
    assert empty[0, 0].int().tolist() == torch.eye(3, dtype=torch.int).tolist()


def test_a_shared_head_equals_that_head_repeated():
    shared = net_of(LLAMA)
    config = msgspec.structs.replace(LLAMA, num_key_value_heads=4)
    repeated = gpt.Net(config).eval()
    state = shared.state_dict()
    for name, weight in state.items():
        if "k_proj" in name or "v_proj" in name:
            heads = weight.view(2, LLAMA.head_size, -1).repeat_interleave(2, dim=0)
            state[name] = heads.reshape(-1, weight.shape[1])
    repeated.load_state_dict(state)
    ids = ids_of(LLAMA, 2, 7)
    torch.testing.assert_close(run(shared, ids)[0], run(repeated, ids)[0])


def test_rotary_scores_depend_on_the_distance_alone():
    turns = torch.arange(20.0)[:, None] * gpt.rope_frequencies(LLAMA)
    x = torch.randn(2, 1, LLAMA.head_size, generator=torch.manual_seed(0))
    q, k = (gpt.rotate(side, turns.cos(), turns.sin()) for side in x)
    scores = q @ k.T
    torch.testing.assert_close(scores[2:, 2:], scores[:-2, :-2])
    torch.testing.assert_close(q.norm(dim=1), q.norm(dim=1)[:1].expand(20))


def test_a_rope_factor_of_two_halves_every_angle():
    halved = msgspec.structs.replace(LLAMA, rope_factors=(2.0,) * 4)
    assert torch.equal(gpt.rope_frequencies(halved) * 2, gpt.rope_frequencies(LLAMA))


def test_a_net_that_knows_nothing_loses_the_log_of_the_vocabulary():
    net = gpt.Net(LLAMA)
    with torch.no_grad():
        net.norm.weight.zero_()
    found = gpt.loss(net, ids_of(LLAMA, 2, 9), "net", torch.Generator())
    assert next(iter(found)) == "loss"
    assert found["loss"].item() == pytest.approx(math.log(61))
    assert found["bits_per_token"].item() == pytest.approx(math.log2(61))


@pytest.mark.slow
@STYLES
def test_training_learns_a_sequence_by_heart(config):
    torch.manual_seed(0)
    net, batch = gpt.Net(config), ids_of(config, 2, 9)
    (weights,) = gpt.phases(net).values()
    optimizer = torch.optim.AdamW(weights, lr=2e-2)
    for _ in range(12):
        loss = gpt.loss(net, batch, "net", torch.Generator())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.5 < math.log(61)


def test_every_weight_is_trained_and_text_has_no_pictures():
    net = gpt.Net(UNTIED)
    assert {id(p) for p in gpt.phases(net)["net"]} == {id(p) for p in net.parameters()}
    assert gpt.samples(net, 4, torch.Generator()) is None


@STYLES
def test_the_graph_is_what_its_spec_says(config):
    net = net_of(config)
    module, spec = gpt.graphs(net)["model"]
    names = [tensor.name for tensor in spec.inputs]
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert names[3:5] == ["past_key_values.0.key", "past_key_values.0.value"]
    assert [t.name for t in spec.outputs][:3] == ["logits", "present.0.key", "present.0.value"]
    inputs = example(config, batch=2, time=3, past=4)
    spec.check({name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    outputs = module(*inputs)
    for tensor, wanted in zip(outputs, spec.outputs, strict=True):
        wanted.check(tensor.detach().numpy())
    assert outputs[1].shape[2] == 7
    assert not module.training


def test_the_loop_knows_the_cache_and_the_ends():
    config = msgspec.structs.replace(LLAMA, bos_token_id=1, eos_token_ids=(2, 3))
    loop = gpt.loop(config)
    assert (loop.layers, loop.kv_heads, loop.head_dim, loop.max_positions) == (2, 2, 8, 256)
    assert (loop.bos, loop.eos, loop.vocab_size) == (1, (2, 3), 61)


@pytest.mark.parametrize(
    ("wrong", "message", "hint"),
    [
        ({"num_attention_heads": 3}, "3 attention heads do not share 2", "divisor of 3"),
        ({"hidden_size": 30}, "hidden_size 30 does not divide into 4 heads", "set head_dim"),
        ({"num_hidden_layers": 0}, "below 1", "at least 1"),
        ({"rope_factors": (1.0,)}, "1 rope_factors", "each pair of channels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong, message, hint):
    with pytest.raises(UsageError, match=message) as error:
        msgspec.structs.replace(LLAMA, **wrong)
    assert hint in error.value.hint


def example(config, batch, time, past, padding=0):
    rng = np.random.default_rng(batch + time + past)
    mask = torch.ones(batch, past + time, dtype=torch.int64)
    mask[-1, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past:]
    ids = torch.from_numpy(rng.integers(config.vocab_size, size=(batch, time)))
    shape = (2 * config.num_hidden_layers, batch, config.num_key_value_heads, past)
    cache = torch.from_numpy(rng.standard_normal((*shape, config.head_size), dtype=np.float32))
    return ids, mask, positions, *cache


# batch, time, past, padding on the left of the last sequence
SHAPES = [(1, 1, 0, 0), (2, 1, 0, 0), (2, 7, 0, 3), (2, 1, 5, 2), (1, 4, 3, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
# torch says so for every axis after the first that has a name: the name is what was meant.
@pytest.mark.filterwarnings("ignore:# The axis name. .* will not be used:UserWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")  # torch in torch
def test_as_onnx_it_is_the_same_function_with_attention_in_one_piece(config, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    module, spec = gpt.graphs(net_of(config))["model"]
    axes = [{i: n for i, n in enumerate(s.shape) if isinstance(n, str)} for s in spec.inputs]
    program = torch.onnx.export(
        module,
        example(config, 2, 3, 4),
        dynamo=True,
        opset_version=23,
        dynamic_shapes=(*axes[:3], tuple(axes[3:])),
        input_names=[tensor.name for tensor in spec.inputs],
        verbose=False,
    )
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("Attention") == config.num_hidden_layers
    program.save(tmp_path / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in SHAPES:
        inputs = example(config, *shape)
        feed = {s.name: tensor.numpy() for s, tensor in zip(spec.inputs, inputs, strict=True)}
        same(module, inputs, session.run(None, feed))


@pytest.mark.slow
@STYLES
# openvino converts through torch.jit.trace, which torch would rather see gone.
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_in_openvino_it_is_the_same_function_with_attention_in_one_piece(config):
    openvino = pytest.importorskip("openvino")
    module, _ = gpt.graphs(net_of(config))["model"]
    model = openvino.convert_model(module, example_input=example(config, 2, 3, 4))
    kinds = [node.get_type_name() for node in model.get_ops()]
    assert kinds.count("ScaledDotProductAttention") == config.num_hidden_layers
    compiled = openvino.compile_model(model, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"})
    for shape in SHAPES:
        inputs = example(config, *shape)
        same(module, inputs, list(compiled([t.numpy() for t in inputs]).values()))


def same(module, inputs, found):
    with torch.no_grad():
        wanted = module(*inputs)
    for mine, theirs in zip(wanted, found, strict=True):
        assert np.isfinite(theirs).all()
        np.testing.assert_allclose(theirs, mine.numpy(), rtol=1e-5, atol=1e-5)
