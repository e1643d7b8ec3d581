"""What a trained network does and why: measured after each experience, and at the end of a run.

An analysis has `check(model)`, called before training, `after_experience(learner, index)` and
`at_end(learner, scenario)`, which return numbers by name: floats, tensors (n,) of which the
histogram is shown, and curves (n, 2) of x and y. It leaves the learner as it found it.
"""


def nothing() -> None:
    """No analysis at all."""
