"""Attention over a flat micro-batch is attention over each example alone."""

import numpy as np
import pytest
import torch
from microstages_training.attention import SHORT, attend, grouped, layout
from torch.nn.functional import scaled_dot_product_attention

LENGTHS = [[5], [3, 3, 3], [7, 1, 4, 7, 2], [SHORT + 40, 3, SHORT + 30, 9, 2 * SHORT]]


def heads(query_heads, key_heads, tokens, dtype):
    torch.manual_seed(0)
    shapes = [(1, n, tokens, 16) for n in (query_heads, key_heads, key_heads)]
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]


def alone(q, k, v, lengths, scale):
    gqa = q.shape[1] != k.shape[1]
    parts = zip(*(t.split(lengths, dim=2) for t in (q, k, v)), strict=True)
    out = [scaled_dot_product_attention(*p, is_causal=True, scale=scale, enable_gqa=gqa) for p in parts]
    return torch.cat(out, dim=2).transpose(1, 2)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_outputs_and_gradients_are_those_of_each_example_alone(lengths, dtype, near, key_heads):
    q, k, v = heads(4, key_heads, sum(lengths), dtype)
    flat, _ = attend(torch.nn.Module(), q, k, v, None, scaling=0.3, layout=layout(np.asarray(lengths)))
    weights = torch.randn_like(flat)
    gradients = torch.autograd.grad((flat * weights).sum(), (q, k, v))
    expected = alone(q, k, v, lengths, 0.3)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    assert flat.shape == expected.shape
    for is_, should in zip((flat, *gradients), (expected, *expected_gradients), strict=True):
        assert (is_ - should).abs().max() <= near * should.abs().max()


def test_nothing_of_one_example_reaches_another():
    lengths = np.asarray([6, 9, 4])
    q, k, v = heads(2, 2, 19, torch.float32)
    before, _ = attend(torch.nn.Module(), q, k, v, None, layout=layout(lengths))
    with torch.no_grad():
        for t in (q, k, v):
            t[:, :, 6:15] = torch.randn_like(t[:, :, 6:15])
    after, _ = attend(torch.nn.Module(), q, k, v, None, layout=layout(lengths))
    assert torch.equal(before[:, :6], after[:, :6]) and torch.equal(before[:, 15:], after[:, 15:])


def test_groups_waste_little_where_examples_are_long_and_join_where_they_are_short():
    assert [g.tolist() for g in grouped(np.asarray([10, 60, 30]))] == [[1, 2, 0]]
    assert [g.tolist() for g in grouped(np.asarray([100, 1000, 800, 90, 20]))] == [[1, 2], [0, 3], [4]]


@pytest.mark.parametrize("option", [{"softcap": 50.0}, {"s_aux": torch.ones(4)}, {"sliding_window": 3}])
def test_what_it_cannot_do_is_refused(option):
    q, k, v = heads(4, 4, 9, torch.float32)
    with pytest.raises(NotImplementedError):
        attend(torch.nn.Module(), q, k, v, None, layout=layout(np.asarray([5, 4])), **option)
