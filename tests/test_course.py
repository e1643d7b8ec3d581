"""Where each evaluation of a run goes: rows of the matrix, and the points of the curve."""

from types import SimpleNamespace

import numpy as np
import pytest

from clplat.course import Course
from clplat.metrics import anytime_accuracy


class Told:
    """Notes every call of any method."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *what: self.calls.append((name, *what))

    def names(self):
        return [name for name, *_ in self.calls]


def course(marks=(), begins=(), size=3, every=4):
    scenario = SimpleNamespace(test_stream=[None] * size, marks=marks, begins=begins, segments=())
    return Course(scenario, Told(), Told(), every)


def test_between_experiences_a_row_is_filled_and_a_point_counts_those_trained():
    run = course()
    run.row(-1, [0.1, 0.2, 0.3])
    run.after_experience(0, 50, [0.8, 0.2, 0.3])
    run.during(1, 70, [0.4, 0.6, 0.3])
    run.after_experience(1, 100, [0.5, 0.7, 0.3])
    np.testing.assert_array_equal(run.matrix[0], [0.8, 0.2, 0.3])
    np.testing.assert_array_equal(run.matrix[-1], [0.1, 0.2, 0.3])
    assert np.isnan(run.matrix[2]).all()
    assert run.anytime == [(50, 0.8), (70, 0.5), (100, pytest.approx(0.6))]
    assert [experience for experience, _ in run.curve] == [0, 1, 1]
    assert run.record.names() == [
        "experience",
        *("point", "experience"),
        "point",
        *("point", "experience"),
    ]
    assert run.record.calls[3] == ("point", 1, 70, 0.5, [0.4, 0.6, 0.3])
    assert run.progress.names() == ["experience", "experience"]
    assert run.summary() == {
        "stability_gap": pytest.approx(0.4),
        "anytime_accuracy": pytest.approx((50 * 0.8 + 20 * 0.5 + 30 * 0.6) / 100),
    }


def test_without_evaluations_inside_there_is_no_curve_to_sum_up():
    run = course(every=None)
    run.after_experience(0, 0, [0.8, 0.2, 0.3])
    assert run.record.names() == ["experience"]
    assert run.summary() == {"stability_gap": None, "anytime_accuracy": None}


def test_a_streams_rows_are_filled_at_its_marks_and_points_count_what_has_begun():
    run = course(marks=(30, 60, 100), begins=(1, 25, 61))
    for samples, scores in ((20, [0.9, 0, 0]), (30, [0.7, 0.2, 0]), (60, [0.6, 0.8, 0])):
        run.during(0, samples, scores)
    run.during(0, 100, [0.3, 0.6, 0.9])
    np.testing.assert_allclose(run.matrix[:3], [[0.7, 0.2, 0], [0.6, 0.8, 0], [0.3, 0.6, 0.9]])
    # What is trained on is the row that comes next.
    assert [experience for experience, _ in run.curve] == [0, 0, 1, 2]
    expected = [(20, 0.9), (30, 0.45), (60, 0.7), (100, 0.6)]
    assert run.anytime == [(n, pytest.approx(value)) for n, value in expected]
    assert run.progress.names().count("samples") == 4


def test_marks_that_one_batch_passes_share_its_scores():
    run = course(marks=(30, 32, 90), begins=(1, 1, 1))
    run.during(0, 40, [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(run.matrix[0], run.matrix[1])
    assert np.isnan(run.matrix[2]).all()


def test_anytime_accuracy_is_the_area_under_steps():
    assert anytime_accuracy([(10, 1.0), (20, 0.5), (40, 0.25)]) == pytest.approx(
        (10 * 1.0 + 10 * 0.5 + 20 * 0.25) / 40
    )
    assert anytime_accuracy([(7, 0.3)]) == pytest.approx(0.3)
