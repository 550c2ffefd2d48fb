import msgspec
import numpy as np
import pytest

from edgegen.errors import UnsupportedError, UsageError
from edgegen.runtimes.callable import CallableSession
from edgegen.runtimes.loops import autoregressive
from edgegen.spec import GraphSpec, Request, Sampling, TensorSpec

DRAWN = Sampling(temperature=2.0, top_k=40, top_p=0.95, min_p=0.001, repetition_penalty=1.2)
RAGGED = ((1, 2, 3), (7,), (250, 9))


@pytest.fixture
def session(toys):
    return CallableSession(toys.MODEL, toys.toy_text)


def drain(loop):
    steps = []
    while True:
        try:
            steps.append(next(loop))
        except StopIteration as end:
            return end.value, steps


def generate(toys, session, prompts, new_tokens=12, sampling=DRAWN, **fields):
    request = Request(
        len(prompts), prompts=prompts, new_tokens=new_tokens, sampling=sampling, **fields
    )
    rng = np.random.default_rng(request.seed)
    return drain(autoregressive.steps({"model": session}, toys.TEXT, request, rng))


def never_ending(toys, new_tokens):
    """A prompt whose greedy text does not end within `new_tokens`."""
    found = ((a, b) for a in range(9) for b in range(9))
    return next(p for p in found if len(toys.continuation(p, new_tokens)) == new_tokens)


def ending(toys):
    """A prompt whose greedy text ends after a few tokens."""
    found = ((a, b) for a in range(250) for b in range(9))
    return next(p for p in found if 0 < len(toys.continuation(p, 20)) < 10)


def test_greedy_text_is_the_one_worked_out_by_hand(toys, session):
    prompt = never_ending(toys, 20)
    (text,), steps = generate(toys, session, (prompt,), 20, Sampling())
    assert text == toys.continuation(prompt, 20)
    assert [step.tolist() for step in steps] == [[token] for token in text]


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
def test_each_sequence_of_a_ragged_batch_is_the_one_it_is_alone(toys, session, sampling):
    together, _ = generate(toys, session, RAGGED, sampling=sampling)
    alone = [generate(toys, session, (prompt,), sampling=sampling)[0][0] for prompt in RAGGED]
    assert together == alone


def test_the_seed_decides_and_copies_of_a_prompt_differ(toys, session):
    once, again = (generate(toys, session, ((5,), (5,)), seed=3)[0] for _ in range(2))
    assert once == again
    assert once[0] != once[1]
    assert generate(toys, session, ((5,), (5,)), seed=4)[0] != once
    assert generate(toys, session, ((5,),), seed=3)[0] == once[:1]


def test_a_sequence_ends_at_its_end_token_and_repeats_it_until_all_have(toys, session):
    short, long = ending(toys), never_ending(toys, 12)
    texts, steps = generate(toys, session, (short, long), 12, Sampling())
    assert texts == [toys.continuation(short, 12), toys.continuation(long, 12)]
    assert len(steps) == 12
    assert {int(step[0]) for step in steps[len(texts[0]) :]} == {toys.END}
    alone, steps = generate(toys, session, (short,), 12, Sampling())
    assert len(steps) == len(alone[0]) + 1  # the end token is a step as well


def test_the_end_token_can_be_ignored(toys, session):
    texts, steps = generate(toys, session, (ending(toys),), 12, Sampling(), ignore_eos=True)
    assert len(steps) == len(texts[0]) == 12
    assert toys.END in texts[0]


class KeepsItself(CallableSession):
    """An engine that keeps the cache: here, all ids so far, read in full for every token."""

    def cached(self):
        self.fed = None
        return self.forward

    def forward(self, input_ids, attention_mask, position_ids, *, fresh):
        new = np.stack([input_ids, position_ids])
        self.fed = new if fresh else np.concatenate([self.fed, new], axis=2)
        ids, positions = self.fed
        empty = {s.name: np.zeros((len(ids), 1, 0, 1), np.float32) for s in self.graph.inputs[3:]}
        feed = {"input_ids": ids, "attention_mask": attention_mask, "position_ids": positions}
        return self.run(feed | empty)["logits"][:, -1]


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
def test_cached_decode_is_full_decode_token_for_token(toys, session, sampling):
    whole = KeepsItself(toys.MODEL, toys.toy_text)
    found, _ = generate(toys, whole, RAGGED, sampling=sampling)
    assert whole.fed is not None
    assert found == generate(toys, session, RAGGED, sampling=sampling)[0]


def fixed(spec, past, length):
    """The graph at batch 1, with that much past and new tokens."""
    sizes = {"batch": 1, "seq": length, "past": past, "past+seq": past + length}
    specs = (
        tuple(
            msgspec.structs.replace(s, shape=tuple(sizes.get(n, n) for n in s.shape)) for s in side
        )
        for side in (spec.inputs, spec.outputs)
    )
    return GraphSpec(spec.name, *specs)


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "drawn"])
def test_a_graph_of_fixed_length_gives_the_same_text(toys, session, sampling):
    window = CallableSession(fixed(toys.MODEL, 0, 16), toys.toy_text)
    for prompt in RAGGED:
        found = generate(toys, window, (prompt,), sampling=sampling)[0]
        assert found == generate(toys, session, (prompt,), sampling=sampling)[0]


def test_a_graph_of_fixed_length_and_batch_refuses_what_does_not_fit(toys):
    window = CallableSession(fixed(toys.MODEL, 0, 16), toys.toy_text)
    with pytest.raises(UsageError, match="17 tokens, the model has 16 positions"):
        generate(toys, window, ((1,) * 17,))
    with pytest.raises(UsageError, match="batch is 3, the graph was exported for batch 1"):
        generate(toys, window, RAGGED)
    with pytest.raises(UnsupportedError, match="a past of fixed length") as error:
        generate(toys, CallableSession(fixed(toys.MODEL, 4, 16), toys.toy_text), ((1,),))
    assert "--static batch=1,seq=256" in error.value.hint


def test_a_graph_needs_no_positions_and_may_take_32_bit_ids(toys):
    ids = TensorSpec("input_ids", "int32", ("batch", "seq"))
    mask = TensorSpec("attention_mask", "int32", ("batch", "seq"))
    graph = GraphSpec("model", (ids, mask), toys.MODEL.outputs[:1])

    def last_plus_one(feed):
        return {"logits": np.eye(toys.VOCABULARY, dtype=np.float32)[feed["input_ids"] + 1]}

    with pytest.raises(Exception, match="attention_mask"):  # it has no past to go with its mask
        generate(toys, CallableSession(graph, last_plus_one), ((3,),), 4, Sampling())
    graph = GraphSpec("model", (ids,), toys.MODEL.outputs[:1])
    found, _ = generate(toys, CallableSession(graph, last_plus_one), ((3,),), 4, Sampling())
    assert found == [[4, 5, 6, 7]]


def test_prompts_are_drawn_from_the_seed_when_there_are_none(toys, session):
    def text(seed):
        request = Request(2, seed, prompt_tokens=5, new_tokens=3, ignore_eos=True)
        rng = np.random.default_rng(seed)
        return drain(autoregressive.steps({"model": session}, toys.TEXT, request, rng))[0]

    assert text(1) == text(1) != text(2)
    prompts = autoregressive.random_prompts(
        toys.TEXT, Request(2, prompt_tokens=5), np.random.default_rng(1)
    )
    assert text(1) == [toys.continuation(p, 3) for p in prompts]


def test_padding_is_on_the_left_and_masked():
    ids, mask = autoregressive.pad_left(((5, 6, 7), (8,)))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({"prompts": ((1,) * 65,)}, "65 tokens, the model has 64 positions", "shorten the prompt"),
        ({"new_tokens": 65}, "do not fit the model's 64 positions", "62 new tokens or fewer"),
        ({"new_tokens": 10**12}, "do not fit the model's 64 positions", "--max-new-tokens"),
        ({"new_tokens": 0}, "new_tokens is 0, wanted 1 or more", ""),
        ({"new_tokens": -4}, "new_tokens is -4, wanted 1 or more", ""),
        ({"prompts": ((),)}, "an empty prompt", "one token"),
        ({"prompts": (), "prompt_tokens": 0}, "an empty prompt", "one token"),
        ({"prompts": (), "prompt_tokens": -3}, "an empty prompt", "one token"),
        ({"prompts": ((1, 257),)}, "ids go from 0 to 256, found 1 to 257", ""),
        ({"prompts": ((-1, 2),)}, "ids go from 0 to 256, found -1 to 2", ""),
        ({"batch": 2}, "1 prompts for a batch of 2", ""),
        ({"prompts": (), "prompt_tokens": 9, "batch": 10**9}, r"need about 9,668.0 GB", "smaller"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature is -1.0", ""),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_before_anything_runs(
    toys, session, fields, message, hint
):
    request = msgspec.structs.replace(Request(prompts=((1, 2, 3),), new_tokens=4), **fields)
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match=message) as error:
        autoregressive.steps({"model": session}, toys.TEXT, request, rng)
    assert hint in error.value.hint


def test_the_last_position_can_be_used(toys, session):
    (text,), _ = generate(toys, session, ((1, 2, 3),), 62, Sampling(), ignore_eos=True)
    assert len(text) == 62


def test_inputs_are_refused(toys, session):
    request = Request(prompts=((1,),), new_tokens=1)
    with pytest.raises(UsageError, match="takes prompts, not inputs"):
        autoregressive.steps(
            {"model": session}, toys.TEXT, request, np.random.default_rng(0), {"x": np.ones(1)}
        )
