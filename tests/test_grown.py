"""Tensors that grew: views and copies of what they were."""

import torch

from clplat.grown import extended, extended_state, holds, leading


def test_leading_entries_are_a_view():
    new = torch.arange(12.0).reshape(4, 3)
    view = leading(new, torch.zeros(2, 3))
    assert view.tolist() == [[0, 1, 2], [3, 4, 5]]
    view.zero_()
    assert not new[:2].any()
    assert leading(new, new) is new


def test_only_a_shape_that_grew_holds_the_old_one():
    old = torch.zeros(2, 3)
    assert holds(torch.zeros(2, 3), old)
    assert holds(torch.zeros(4, 3), old)
    assert not holds(torch.zeros(4, 2), old)
    assert not holds(torch.zeros(4, 3, 1), old)


def test_extended_is_a_copy_that_begins_with_the_old_entries():
    old, new = torch.ones(2, 3), torch.full((4, 3), 5.0)
    assert extended(old, new).tolist() == [[1.0] * 3] * 2 + [[5.0] * 3] * 2
    assert new.eq(5.0).all()
    assert extended(None, new).data_ptr() != new.data_ptr()


def test_state_of_the_parameters_shape_grows_with_zeros_and_all_other_is_copied():
    old, new = torch.zeros(2), torch.zeros(3)
    moment = torch.tensor([1.0, 2.0], dtype=torch.float64)
    grown = extended_state(moment, old, new)
    assert grown.tolist() == [1.0, 2.0, 0.0]
    assert grown.dtype == torch.float64
    step = torch.tensor(7.0)
    assert extended_state(step, old, new).equal(step)
    assert extended_state(step, old, new) is not step
    assert extended_state(0.5, old, new) == 0.5
