"""The native engine: every kind of kernel against the plain one, the plain one against torch."""

import ctypes
import json
import subprocess
import sys
from collections import namedtuple

import msgspec
import numpy as np
import psutil
import pytest
import torch

from edgegen.errors import (
    FormatError,
    MismatchError,
    MissingExtraError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from edgegen.exporters import native as packer
from edgegen.exporters._native_file import interleave, save
from edgegen.models import gpt
from edgegen.proof import readers
from edgegen.runtimes import _native_library as library
from edgegen.runtimes import native
from edgegen.runtimes.loops import autoregressive
from edgegen.spec import Options, Request, Sampling
from edgegen.survey import ask
from edgegen.verify import sqnr_db

try:
    native.built()
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)

SIZES = {
    "vocab_size": 515,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 72,  # not whole groups: padded
    "max_position_embeddings": 96,
}
STYLES = {
    "llama": {"num_key_value_heads": 2, "qkv_bias": True},
    "llama-untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "gpt2": {"style": "gpt2", "num_key_value_heads": 4},
}
KERNELS = [
    k for k in ("avx2", "avxvnni", "avx512", "neon") if library.library().eg_kernels(k.encode())
]


def make(style):
    torch.manual_seed(0)
    net = gpt.Net(gpt.Config(**SIZES, **STYLES[style]))
    for parameter in net.parameters():  # norms and biases that do something
        torch.nn.init.normal_(parameter, float(parameter.dim() < 2), 0.2)
    return gpt.graphs(net)["model"]


@pytest.fixture(scope="module", params=STYLES)
def model(request):
    return make(request.param)


def written(model, folder, precision="fp32"):
    path = folder / packer.FILE
    packer.write(*model, path)
    if precision != "fp32":
        packer.quantize(path, model[1], precision)
    return path


def opened(path, graph, threads=1, kernels=""):
    provider = {"kernels": kernels} if kernels else {}
    return native.open_graph(path, graph, "cpu", Options(threads=threads, provider=provider))


def feed_of(graph, batch=2, time=37, past=5):
    """More tokens than a tile holds, a filled cache, and padding on the left of one sequence."""
    rng = np.random.default_rng(0)
    mask = np.ones((batch, past + time), np.int64)
    mask[-1, :3] = 0
    feed = {
        "input_ids": rng.integers(0, 515, (batch, time)),
        "attention_mask": mask,
        "position_ids": np.tile(np.arange(past, past + time), (batch, 1)),
    }
    for spec in graph.inputs[3:]:
        feed[spec.name] = rng.standard_normal((batch, spec.shape[1], past, 16)).astype(np.float32)
    return feed


def test_fp32_computes_what_torch_does_caches_included(model, tmp_path):
    module, graph = model
    feed = feed_of(graph)
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(feed[spec.name]) for spec in graph.inputs))
    found = opened(written(model, tmp_path), graph, threads=2).run(feed)
    for spec, want in zip(graph.outputs, wanted, strict=True):
        assert sqnr_db(want.numpy(), found[spec.name]) > 100, spec.name


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_every_kernel_computes_what_the_plain_one_does(model, tmp_path, precision, kernels):
    """Sums of products are exact integers, so most tokens agree to the last bits; an input on the
    edge may be rounded either way, and what follows from that is small."""
    graph, path = model[1], written(model, tmp_path, precision)
    feed = feed_of(graph)
    plain = opened(path, graph, kernels="plain").run(feed)["logits"].reshape(-1, 515)
    found = opened(path, graph, kernels=kernels).run(feed)["logits"].reshape(-1, 515)
    rows = [sqnr_db(a, b) for a, b in zip(plain, found, strict=True)]
    assert np.median(rows) > 100
    assert min(rows) > 25


def by_row(path, precision, times):
    """The fp32 file at `path`, rounded with a scale a row that is stored `times` times or once."""
    sizes, tensors = packer.read(path)
    bits = {"int8": 8, "int4": 4}[precision]
    top = 2 ** (bits - 1) - 1
    for name in [name for name in tensors if tensors[name].ndim == 3]:
        blocks = tensors[name].swapaxes(1, 2)  # (block, row, k)
        scale = (np.abs(blocks).max(axis=-1) / top).astype(np.float16)
        wide = np.maximum(scale, np.float16(1e-4)).astype(np.float32)[..., None]
        q = (np.rint(blocks / wide).clip(-top, top) + top + 1).astype(np.uint8)
        count = blocks.shape[2] // 32 if times else 1
        tensors[name] = interleave(q, bits)
        tensors[f"{name.removesuffix('.weight')}.scale"] = np.repeat(scale[:, None], count, axis=1)
    save(path, msgspec.structs.replace(sizes, bits=bits, outer_bits=bits), tensors)
    return path


@pytest.mark.parametrize("kernels", ["plain", *KERNELS])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_scale_a_row_is_one_a_group_that_is_always_the_same(model, tmp_path, precision, kernels):
    graph, feed = model[1], feed_of(model[1], time=6)
    found = []
    for times in (False, True):
        path = by_row(written(model, tmp_path), precision, times)
        found.append(opened(path, graph, kernels=kernels).run(feed)["logits"])
    rows = [sqnr_db(a, b) for a, b in zip(*(f.reshape(-1, 515) for f in found), strict=True)]
    assert np.median(rows) > 100
    assert min(rows) > 25  # an input on the edge is rounded either way


def test_threads_change_no_bit(model, tmp_path):
    graph, path = model[1], written(model, tmp_path, "int8")
    feed = feed_of(graph)
    one, two = (opened(path, graph, threads=n).run(feed)["logits"] for n in (1, 2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "time"), [(1, 5), (1, 70), (3, 11), (9, 2), (40, 3), (3, 1)])
def test_last_logits_are_those_of_a_pass_that_computes_all(model, tmp_path, batch, time, threads):
    """Tokens whose logits nobody wants leave the last layer early; some tiles have none that stay,
    some more than are kept by every thread."""
    graph, path = model[1], written(model, tmp_path, "int8")
    feed = feed_of(graph, batch, time, past=0)
    feed["attention_mask"][:, :3] = 1
    run = opened(path, graph, threads).ready(batch)
    where = feed["input_ids"], feed["position_ids"], feed["attention_mask"] != 0
    every = run.forward(*where, every=True)[:, -1]
    assert np.array_equal(run.forward(*where, every=False)[:, 0], every)
    after = feed["input_ids"][:, :1], feed["position_ids"][:, -1:] + 1
    mask = np.ones((batch, time + 1), np.uint8)
    one = run.forward(*after, mask, every=False)
    run.forward(*where, every=True)
    assert np.array_equal(run.forward(*after, mask, every=False), one)


def test_greedy_text_is_that_of_the_logits_for_prompts_of_unlike_length(model, tmp_path):
    session = opened(written(model, tmp_path, "int8"), model[1])
    prompts = ((5, 9, 300), (7,), (1, 2, 3, 4, 5, 6))
    fast, plain = (
        session.decoder(Sampling(), 0),
        autoregressive.PlainDecoder(session.cached(), 515, 0),
    )
    ids = fast.start(prompts, Sampling())
    mine = [ids, *(fast.step() for _ in range(12))]
    ids = plain.start(prompts, Sampling())
    theirs = [ids, *(plain.step() for _ in range(12))]
    assert np.array_equal(mine, theirs)


def test_a_cached_decode_is_the_full_forward_token_for_token(model, tmp_path):
    session = opened(written(model, tmp_path), model[1])
    request = Request(prompts=((3, 1, 4, 1, 5),), new_tokens=9, ignore_eos=True)
    loop = gpt.loop(gpt.Config(**SIZES))
    tokens = [int(ids[0]) for ids in autoregressive.steps({"model": session}, loop, request, None)]
    row = [3, 1, 4, 1, 5]
    for token in tokens:
        ids = np.array([row])
        every = np.arange(len(row))[None]
        logits = session.cached()(ids, np.ones_like(ids), every, fresh=True)
        assert int(logits.argmax()) == token
        row.append(token)


PROMPTS = ((5, 9, 300), (7,), (1, 2, 3, 4, 5, 6), (7,))
SAMPLINGS = {
    "temperature": Sampling(temperature=0.8),
    "top-k": Sampling(temperature=1.3, top_k=7),
    "top-p": Sampling(temperature=1.0, top_p=0.6),
    "min-p": Sampling(temperature=1.5, min_p=0.2),
    "penalty": Sampling(repetition_penalty=1.4),
    "all": Sampling(1.1, top_k=100, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
}


def by_the_loop(session, prompts, sampling, seed, steps):
    """Tokens (steps, batch) as the common loop draws them."""
    plain = autoregressive.PlainDecoder(session.cached(), 515, seed)
    return np.array([plain.start(prompts, sampling), *(plain.step() for _ in range(steps - 1))])


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_seed_draws_the_tokens_that_the_common_loop_draws(tmp_path, sampling, seed):
    model = make("llama")
    session = opened(written(model, tmp_path, "int8"), model[1])
    decoder = session.decoder(sampling, seed)
    mine = [decoder.start(PROMPTS, sampling), *(decoder.step() for _ in range(70))]
    theirs = by_the_loop(session, PROMPTS, sampling, seed, 71)
    assert np.array_equal(mine, theirs)
    if sampling.temperature:
        assert (theirs[:, 1] != theirs[:, 3]).any()  # copies of a prompt are drawn apart


@pytest.mark.parametrize("kernels", ["plain", *KERNELS])
def test_equal_logits_are_drawn_as_the_common_loop_does(tmp_path, kernels):
    """Ties: top-k keeps all that equal the last, top-p the first of them."""
    module, graph = make("llama-untied")
    with torch.no_grad():
        module.lm_head.weight[:] = module.lm_head.weight[::4].repeat_interleave(4, 0)[:515]
    session = opened(written((module, graph), tmp_path), graph, kernels=kernels)
    for sampling in (Sampling(1.0, top_k=5), Sampling(1.0, top_p=0.7), Sampling()):
        decoder = session.decoder(sampling, 3)
        mine = [decoder.start(PROMPTS, sampling), *(decoder.step() for _ in range(39))]
        assert np.array_equal(mine, by_the_loop(session, PROMPTS, sampling, 3, 40))


def test_the_whole_loop_is_one_call(tmp_path):
    model = make("llama")
    session = opened(written(model, tmp_path, "int8"), model[1])
    sampling, told = SAMPLINGS["all"], []
    decoder = session.decoder(sampling, 5)
    decoder.begin(PROMPTS, sampling)
    found = decoder.write(30, tell=lambda ids: told.append(ids.tolist()))
    assert np.array_equal(found, by_the_loop(session, PROMPTS, sampling, 5, 30))
    assert told == found.tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_tokens_at_once_are_those_of_the_steps(tmp_path, temperature):
    model = make("llama")
    sessions = {"model": opened(written(model, tmp_path), model[1])}
    loop = gpt.loop(gpt.Config(**SIZES))
    sampling = Sampling(temperature=temperature)
    request = Request(
        batch=2, prompts=((3, 1, 4), (1, 5)), new_tokens=20, sampling=sampling, ignore_eos=True
    )
    ids = np.stack(list(autoregressive.steps(sessions, loop, request, None)))
    assert np.array_equal(autoregressive.tokens(sessions, loop, request, None), ids)
    # An end that the first sequence meets in the middle, and the second does not.
    end = next(i for i in ids[5:15, 0].tolist() if i not in ids[:, 1].tolist())
    loop = msgspec.structs.replace(loop, eos=(end,))
    request = msgspec.structs.replace(request, ignore_eos=False)
    ids = np.stack(list(autoregressive.steps(sessions, loop, request, None)))
    assert (ids[-1, 0], len(ids)) == (end, 20)
    assert np.array_equal(autoregressive.tokens(sessions, loop, request, None), ids)


def test_a_sequence_repeats_its_end_and_all_ends_end_the_loop(tmp_path):
    model = make("llama")
    session = opened(written(model, tmp_path, "int8"), model[1])
    sampling = Sampling(temperature=1.0)
    free = by_the_loop(session, PROMPTS, sampling, 5, 30)
    ends = sorted({int(row[2 + i]) for i, row in enumerate(free.T)})
    request = Request(batch=4, prompts=PROMPTS, new_tokens=30, sampling=sampling, seed=5)
    loop = msgspec.structs.replace(gpt.loop(gpt.Config(**SIZES)), eos=tuple(ends))
    steps = list(autoregressive.steps({"model": session}, loop, request, None))
    decoder = session.decoder(sampling, 5)
    decoder.begin(PROMPTS, sampling)
    found = decoder.write(30, ends)
    assert len(found) <= 6
    assert np.array_equal(found, steps)


def test_a_listener_stops_the_loop_and_what_it_raises_comes_out(tmp_path):
    model = make("llama")
    session = opened(written(model, tmp_path, "int8"), model[1])
    decoder = session.decoder(Sampling(), 0)
    decoder.begin(((1, 2, 3),), Sampling())
    count = iter(range(100))
    assert len(decoder.write(50, tell=lambda ids: next(count) == 4)) == 5
    rest = decoder.write(5)
    assert np.array_equal(rest, by_the_loop(session, ((1, 2, 3),), Sampling(), 0, 10)[5:])

    def interrupted(ids):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoder.write(5, tell=interrupted)


def test_cancelling_in_the_middle_leaves_an_engine_that_works(tmp_path):
    model = make("llama")
    session = opened(written(model, tmp_path, "int8"), model[1], threads=2)
    prompts = (tuple(range(80)),)
    decoder = session.decoder(Sampling(), 0)
    decoder.begin(prompts, Sampling())
    decoder.cancel()  # before the second tile of the prompt
    assert len(decoder.write(9)) == 0
    with pytest.raises(UsageError, match="was cancelled"):
        decoder.step()
    decoder.begin(prompts, Sampling())
    found = decoder.write(9, tell=lambda ids: decoder.cancel())
    assert np.array_equal(found, by_the_loop(session, prompts, Sampling(), 0, 1))


def test_more_tokens_than_the_cache_holds_are_refused(tmp_path):
    model = make("llama")
    session = opened(written(model, tmp_path, "int8"), model[1])
    decoder = session.decoder(Sampling(), 0)
    decoder.begin((tuple(range(90)),), Sampling())
    with pytest.raises(MismatchError, match="1 tokens after 96, the cache holds 96"):
        decoder.write(8)
    decoder.begin((tuple(range(97)),), Sampling())
    with pytest.raises(MismatchError, match="97 tokens after 0"):
        decoder.write(1)


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLINGS["all"]], ids=["greedy", "drawn"])
def test_logits_that_are_no_numbers_are_refused(tmp_path, sampling):
    """Weights are finite, but so large that what they give is not."""
    module, graph = make("llama")
    with torch.no_grad():
        module.norm.weight[:] = 3e38
    session = opened(written((module, graph), tmp_path), graph)
    with pytest.raises(MismatchError, match="logits are not finite"):
        session.decoder(sampling, 0).start(PROMPTS, sampling)


def test_any_number_of_threads_draws_the_same_tokens_also_while_it_changes(tmp_path):
    model = make("llama")
    path = written(model, tmp_path, "int8")
    sampling = SAMPLINGS["all"]
    wanted = by_the_loop(opened(path, model[1]), PROMPTS, sampling, 2, 40)
    session = opened(path, model[1], threads=2)
    decoder = session.decoder(sampling, 2)
    found = [decoder.start(PROMPTS, sampling)]
    for step in range(39):
        library.library().eg_run_use(session.ready(4).handle, 1 + step % 2)
        found.append(decoder.step())
    assert np.array_equal(found, wanted)


def test_a_busy_machine_changes_no_token(tmp_path):
    model = make("llama")
    path = written(model, tmp_path, "int8")
    wanted = by_the_loop(opened(path, model[1]), PROMPTS, Sampling(), 0, 60)
    session = opened(path, model[1], threads=2)
    burn = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(burn) for _ in range(3)]
    try:
        for _ in range(5):
            decoder = session.decoder(Sampling(), 0)
            decoder.begin(PROMPTS, Sampling())
            assert np.array_equal(decoder.write(60), wanted)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    threads, late = session.pace
    assert 1 <= threads <= 2
    assert late == 0 or session.remarks()[0].startswith(f"native: {late} times a thread's core")


def test_a_session_at_rest_has_nothing_to_remark(tmp_path):
    model = make("llama")
    session = opened(written(model, tmp_path), model[1])
    assert session.pace == (1, 0)
    assert session.remarks() == ()


def long_feed(graph):
    return feed_of(graph, batch=2, time=90, past=0)


@pytest.mark.parametrize("kernels", ["plain", *KERNELS])
def test_a_cache_at_8_bit_is_near_the_one_in_fp32_at_a_quarter_of_its_memory(
    model, tmp_path, kernels
):
    graph, path = model[1], written(model, tmp_path)
    feed = long_feed(graph)
    small = native.open_graph(
        path, graph, "cpu", Options(threads=1, provider={"cache": "int8", "kernels": kernels})
    )
    large = opened(path, graph, kernels=kernels)
    wanted, found = large.run(feed), small.run(feed)
    for name in wanted:
        assert 30 < sqnr_db(wanted[name], found[name]) < 90, name
    head_dim = 16
    assert small.ready(2).cache_bytes * 4 * head_dim == large.ready(2).cache_bytes * (head_dim + 4)


def test_a_past_that_was_rounded_comes_back_as_it_was(tmp_path):
    model = make("llama")
    path = written(model, tmp_path)
    session = native.open_graph(path, model[1], "cpu", Options(provider={"cache": "int8"}))
    feed = feed_of(model[1], past=40, time=1)
    first = session.run(feed)
    pasts = [s.name for s in model[1].inputs if s.name.startswith("past")]
    rounded = {n: first[n.replace("past_key_values", "present")][:, :, :40] for n in pasts}
    again = session.run(feed | rounded)
    for name in rounded:
        there = again[name.replace("past_key_values", "present")][:, :, :40]
        np.testing.assert_allclose(there, rounded[name], rtol=1e-6)


def test_a_bundle_can_ask_for_the_cache_at_8_bit(tmp_path):
    model = make("llama")
    path = written(model, tmp_path)
    asked = native.open_graph(path, model[1], "cpu", Options(kv_cache="int8"))
    told = native.open_graph(path, model[1], "cpu", Options(provider={"cache": "int8"}))
    feed = feed_of(model[1])
    assert np.array_equal(asked.run(feed)["logits"], told.run(feed)["logits"])
    assert asked.ready(1).cache_bytes < opened(path, model[1]).ready(1).cache_bytes


def test_a_cache_of_another_precision_is_refused(tmp_path):
    model = make("llama")
    path = written(model, tmp_path)
    with pytest.raises(UsageError, match="no cache 'int2'"):
        native.open_graph(path, model[1], "cpu", Options(provider={"cache": "int2"}))


def test_the_record_of_a_text_is_that_of_the_c_code():
    assert ctypes.sizeof(library.Text) == library.library().eg_text_size()


@pytest.mark.slow
def test_memory_stays_flat_over_many_calls(tmp_path):
    """`benchmarks/leaks.py` makes 10,000 of them."""
    model = make("llama")
    path = written(model, tmp_path, "int8")
    session, sizes = opened(path, model[1]), []
    for call in range(500):
        if call % 50 == 49:
            session.close()
            session = opened(path, model[1])
        sampling = list(SAMPLINGS.values())[call % len(SAMPLINGS)]
        decoder = session.decoder(sampling, call)
        decoder.begin(((call % 500, 2, 3),) * (1 + call % 50 // 49), sampling)
        decoder.write(4, tell=lambda ids, call=call: call % 10 == 0)
        sizes.append(psutil.Process().memory_info().rss)
    assert sizes[-1] - sizes[200] < 1_000_000


def test_a_token_or_position_out_of_range_is_named(tmp_path):
    model = make("llama")
    session = opened(written(model, tmp_path), model[1])
    one = np.ones((1, 1), np.int64)
    with pytest.raises(MismatchError, match="token id 515, they go from 0 to 514"):
        session.cached()(one * 515, one, one * 0, fresh=True)
    with pytest.raises(MismatchError, match="position 96, they go from 0 to 95"):
        session.cached()(one, one, one * 96, fresh=True)
    with pytest.raises(MismatchError, match="1 tokens after 96, the cache holds 96"):
        session.cached()(one, np.ones((1, 97), np.int64), one, fresh=False)


def test_a_learned_position_out_of_range_reads_nothing(tmp_path):
    model = make("gpt2")
    session = opened(written(model, tmp_path), model[1])
    one = np.ones((1, 1), np.int64)
    with pytest.raises(MismatchError, match="position -1"):
        session.cached()(one, one, -one, fresh=True)


def test_more_threads_than_cores_are_refused(tmp_path):
    model = make("llama")
    with pytest.raises(UsageError, match="4096 threads, this process may use"):
        opened(written(model, tmp_path), model[1], threads=4096)


def test_unknown_kernels_devices_and_options_are_refused(tmp_path):
    model = make("llama")
    path = written(model, tmp_path)
    with pytest.raises(UsageError, match="no kernels 'abacus'"):
        opened(path, model[1], kernels="abacus")
    with pytest.raises(NotFoundError, match="no device 'gpu', only cpu"):
        native.open_graph(path, model[1], "gpu", Options())
    with pytest.raises(UnsupportedError, match="no option 'speed'"):
        native.open_graph(path, model[1], "cpu", Options(provider={"speed": "9"}))


def test_a_closed_session_says_so(tmp_path):
    model = make("llama")
    session = opened(written(model, tmp_path), model[1])
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(feed_of(model[1]))


def header_of(path):
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def rewrite(path, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def change(path, sizes=None, drop=(), **entries):
    header, data = header_of(path)
    meta = header["__metadata__"]
    meta["sizes"] = json.dumps(json.loads(meta["sizes"]) | (sizes or {}))
    header = {name: entry for name, entry in header.items() if name not in drop}
    rewrite(path, header | entries, data)


@pytest.mark.parametrize("size", [0, 7, 8, 40, 3000, -64])
def test_a_truncated_file_is_refused(tmp_path, size):
    model = make("llama")
    path = written(model, tmp_path, "int8")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FormatError) as caught:
        opened(path, model[1])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"hidden": 0}, "size 0 of the configuration is 0"),
        ({"hidden": 63}, "hidden size 63"),
        ({"layers": 3}, "layer 2 has not all of its tensors"),
        ({"layers": 65536}, "65536 layers"),
        ({"vocabulary": 1 << 30}, "size 6"),
        ({"positions": -5}, "size 7"),
        ({"intermediate": 4000}, "bytes, wanted"),
        ({"bits": 5}, "5 bits a weight"),
        ({"epsilon": "x"}, "could not convert"),
        ({"heads": None}, "TypeError"),
    ],
)
def test_a_configuration_that_is_not_the_tensors_own_is_refused(tmp_path, sizes, said):
    model = make("llama")
    path = written(model, tmp_path, "int8")
    change(path, sizes)
    with pytest.raises(FormatError) as caught:
        opened(path, model[1])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name", ["embedding.weight", "layers.1.down.scale", "last.weight", "frequencies"]
)
def test_a_missing_tensor_is_noticed(tmp_path, name):
    model = make("llama")
    path = written(model, tmp_path, "int8")
    change(path, drop=(name,))
    with pytest.raises(FormatError, match=r"missing|not all of its tensors"):
        opened(path, model[1])


@pytest.mark.parametrize(
    "name",
    [
        "layers.9.qkv.weight",
        "layers.0.nothing.weight",
        "layers.-1.qkv.weight",
        "qkv.weight",
        "x" * 500,
    ],
)
def test_a_tensor_that_the_engine_does_not_know_is_refused(tmp_path, name):
    model = make("llama")
    path = written(model, tmp_path, "int8")
    change(path, **{name: {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}})
    with pytest.raises(FormatError, match="no such tensor"):
        opened(path, model[1])


@pytest.mark.parametrize("ends", [[-4, 60], [0, 1 << 60], [64, 0], [2, 66]])
def test_a_tensor_outside_the_file_is_refused(tmp_path, ends):
    model = make("llama")
    path = written(model, tmp_path)
    change(path, **{"last.weight": {"dtype": "F32", "shape": [64], "data_offsets": ends}})
    with pytest.raises(FormatError, match=r"last\.weight lies at"):
        opened(path, model[1])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_number_that_is_not_finite_is_named(tmp_path, precision):
    module, graph = make("llama")
    with torch.no_grad():
        module.layers[1].self_attn.o_proj.weight[3, 5] = float("inf")
    path = tmp_path / packer.FILE
    packer.write(module, graph, path)
    if precision == "int8":
        with np.errstate(all="ignore"):
            packer.quantize(path, graph, precision)
    with pytest.raises(FormatError, match=r"layers.1.out.\w+ holds a value that is not finite"):
        opened(path, graph)


@pytest.fixture
def unbuilt(monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", "edgegen.runtimes._engine_of_nobody")
    library.library.cache_clear()
    yield
    library.library.cache_clear()


def test_an_engine_that_was_not_compiled_says_so_when_it_is_asked_for(tmp_path, unbuilt):
    model = make("llama")
    with pytest.raises(MissingExtraError, match="no C compiler was there") as caught:
        opened(written(model, tmp_path), model[1])
    assert "apt-get install gcc" in caught.value.hint
    assert "--runtime onnxruntime" in caught.value.hint
    assert ask("native").problem == "not installed"


def test_an_engine_that_was_not_compiled_is_skipped_by_name(tmp_path, unbuilt):
    of = namedtuple("Bundle", "path formats")
    both = of(tmp_path, lambda: ["onnx", "native"])
    found, skipped = readers(both)
    assert found == ["onnxruntime"]
    assert "install gcc" in skipped["native"]
    with pytest.raises(MissingExtraError, match="no installed engine reads that"):
        readers(of(tmp_path, lambda: ["native"]))
    assert "native" not in readers(of(tmp_path, lambda: ["onnx"]))[1]


def test_a_library_of_another_system_is_no_stack_trace(tmp_path, monkeypatch):
    broken = tmp_path / "_engine.so"
    broken.write_bytes(b"\x7fELF of another machine")
    monkeypatch.setattr(library, "built", lambda: str(broken))
    library.library.cache_clear()
    with pytest.raises(MissingExtraError, match="cannot be loaded"):
        native.version()
    library.library.cache_clear()


def test_random_damage_never_crashes(tmp_path):
    """Bytes of the header changed at random: refused or read, but the process lives."""
    model = make("llama")
    path = written(model, tmp_path, "int8")
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(whole)
        for at in rng.integers(0, length, 3):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            opened(path, model[1]).run(feed_of(model[1], time=2))
        except (FormatError, MismatchError):
            refused += 1
    assert refused > 100
