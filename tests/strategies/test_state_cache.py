"""The cache of hidden states: what it holds, and for which weights and texts."""

import hashlib

import pytest
import torch
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import single
from clplat.backbones.sequence import SequenceModel
from clplat.errors import InputError
from clplat.layers.gated import MinGRU
from scenarios.text import Tokens
from strategies.state_cache import StateCache, digest, last_states

KINDS, WINDOW = 11, 7


def model(dropout=0.0, pooling="none"):
    torch.manual_seed(0)
    shape = {"width": 6, "depth": 2, "dropout": dropout, "pooling": pooling, "vocabulary": KINDS}
    return classifier(SequenceModel((WINDOW,), MinGRU, **shape), single(6, KINDS))


def texts(count=10):
    x = torch.randint(KINDS, (count, WINDOW), generator=torch.Generator().manual_seed(1))
    return [x.to(torch.uint8), x.long(), torch.zeros(count, dtype=torch.long)]


# --- digests -----------------------------------------------------------------------------------


def test_a_digest_is_of_names_types_shapes_and_bytes_in_the_order_of_names():
    tensors = {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor([[1.5]])}
    expected = hashlib.sha256(
        b"a torch.float32 (1, 1)" + b"\x00\x00\xc0\x3f" + b"b torch.uint8 (2,)" + b"\x01\x02"
    )
    assert digest(tensors) == expected.hexdigest()
    assert digest(dict(reversed(tensors.items()))) == digest(tensors)


def test_equal_tensors_have_one_digest_however_they_lie():
    x = torch.arange(12.0).view(3, 4)
    assert digest({"x": x}) == digest({"x": x.mT.contiguous().mT}) == digest({"x": x.clone()})
    assert digest({"x": nn.Parameter(x)}) == digest({"x": x})
    assert digest({"x": torch.tensor(2.0)}) != digest({"x": torch.tensor([2.0])})
    assert digest({"x": torch.ones(2, dtype=torch.bfloat16)})
    assert digest({"x": torch.empty(0, 3)}) != digest({"x": torch.empty(3, 0)})


def test_another_value_name_type_or_shape_is_another_digest():
    x = torch.arange(6.0)
    nudged = x.clone()
    nudged[3] = torch.nextafter(x[3], x[4])
    others = [{"x": nudged}, {"y": x}, {"x": x.double()}, {"x": x.view(2, 3)}, {"x": x, "y": x}]
    assert len({digest(tensors) for tensors in ({"x": x}, *others)}) == 6


# --- states ------------------------------------------------------------------------------------


def test_states_are_what_the_encoder_gives_for_one_text_at_a_time(make_learner):
    net, columns = model(), texts()
    learner = make_learner(net, prepare=Tokens(), eval_batch_size=4)
    states = last_states(learner, columns)
    assert states.shape == (10, WINDOW, 6)
    assert not states.requires_grad
    for text, state in zip(columns[0], states, strict=True):
        torch.testing.assert_close(state, net.encoder(text[None].float())[0].detach())


def test_reading_states_leaves_no_trace(make_learner):
    net = model(dropout=0.5)
    learner = make_learner(net, prepare=Tokens())
    batch = learner.mbatch = [torch.zeros(1)]
    net.train()
    net.head.eval()
    state = torch.get_rng_state()
    first, again = (last_states(learner, texts()) for _ in range(2))
    assert torch.equal(first, again)  # without dropout
    assert torch.equal(torch.get_rng_state(), state)
    assert learner.mbatch is batch
    assert net.encoder.training
    assert not net.head.training
    assert not net.encoder._forward_hooks


def test_states_are_read_in_the_loops_precision(make_learner):
    half, full = (
        last_states(make_learner(model(), prepare=Tokens(), precision=precision), texts())
        for precision in ("bf16", "fp32")
    )
    assert not torch.equal(half.float(), full)
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.1)


def test_one_state_a_text_is_refused(make_learner):
    with pytest.raises(InputError) as caught:
        last_states(make_learner(model(pooling="last"), prepare=Tokens()), texts())
    assert str(caught.value) == (
        "strategy: GeRe holds a hidden state at every position, and this backbone gives (6,) for a "
        "text; set backbone.pooling=none"
    )


# --- the check ---------------------------------------------------------------------------------


def test_the_weights_of_the_cache_and_what_they_became_are_known():
    cache = StateCache(torch.zeros(1, 1, 1), weights="a" * 64, texts="b" * 64)
    cache.check("b" * 64, "a" * 64, "c" * 64)
    cache.check("b" * 64, "c" * 64, "c" * 64)
    with pytest.raises(InputError) as caught:
        cache.check("b" * 64, "d" * 64, "c" * 64)
    assert str(caught.value) == (
        "strategy: the hidden states that were restored are another model's (its weights of "
        "digest aaaaaaaa, cccccccc when saved; this run's: dddddddd); expected the same model; "
        "restore its weights too, or begin without the saved state"
    )
    with pytest.raises(InputError) as caught:
        cache.check("e" * 64, "a" * 64, "c" * 64)
    assert str(caught.value) == (
        "strategy: the hidden states that were restored are of other general texts (of digest "
        "bbbbbbbb; this run's: eeeeeeee); expected the same ones; set the scenario and its seed as "
        "they were, or begin without the saved state"
    )
