"""Every metric against a naive double loop, its algebra, and Avalanche's own classes."""

import math

import numpy as np
import pytest
from avalanche.evaluation.metrics.forgetting_bwt import BWT, Forgetting
from avalanche.evaluation.metrics.forward_transfer import ForwardTransfer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from clplat import metrics

EXACT = 1e-12  # sums of at most 40 numbers in 0..1
OF_A_MATRIX = [
    metrics.accuracy,
    metrics.average_incremental_accuracy,
    metrics.forgetting,
    metrics.backward_transfer,
    metrics.forward_transfer,
    metrics.learning_accuracy,
]
TRANSFERS = [metrics.forgetting, metrics.backward_transfer, metrics.forward_transfer]

# R[0..2] and the untrained row: experience 0 is forgotten, 1 improves after it was learned.
EXAMPLE = np.array([[0.9, 0.3, 0.2], [0.7, 0.6, 0.1], [0.4, 0.8, 0.5], [0.2, 0.1, 0.0]])


def matrices(low: int = 1, high: int = 6) -> st.SearchStrategy:
    return st.integers(low, high).flatmap(
        lambda size: arrays(np.float64, (size + 1, size), elements=st.floats(0, 1))
    )


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def naive(name: str, matrix: np.ndarray) -> float:
    """The table of the design, entry by entry: r[i][j] from plain lists, b the untrained row."""
    *r, b = matrix.tolist()
    size = len(b)
    last, old = size - 1, range(size - 1)
    if name == "accuracy":
        return mean([r[last][j] for j in range(size)])
    if name == "average_incremental_accuracy":
        return mean([mean([r[i][j] for j in range(i + 1)]) for i in range(size)])
    if name == "forgetting":
        return mean([max(r[i][j] for i in range(size - 1)) - r[last][j] for j in old])
    if name == "backward_transfer":
        return mean([r[last][j] - r[j][j] for j in old])
    if name == "forward_transfer":
        return mean([r[j - 1][j] - b[j] for j in range(1, size)])
    assert name == "learning_accuracy"
    return mean([r[j][j] for j in range(size)])


@pytest.mark.parametrize("metric", OF_A_MATRIX)
@given(matrix=matrices())
def test_metric_equals_the_naive_double_loop(metric, matrix):
    assert metric(matrix) == pytest.approx(naive(metric.__name__, matrix), abs=EXACT)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (metrics.accuracy, 1.7 / 3),
        (metrics.average_incremental_accuracy, (0.9 + 0.65 + 1.7 / 3) / 3),
        (metrics.forgetting, ((0.9 - 0.4) + (0.6 - 0.8)) / 2),
        (metrics.backward_transfer, ((0.4 - 0.9) + (0.8 - 0.6)) / 2),
        (metrics.forward_transfer, ((0.3 - 0.1) + (0.1 - 0.0)) / 2),
        (metrics.learning_accuracy, 2.0 / 3),
    ],
)
def test_metric_of_a_matrix_worked_by_hand(metric, value):
    assert metric(EXAMPLE) == pytest.approx(value, abs=EXACT)


def test_forgetting_counts_the_best_score_even_before_the_experience_was_trained():
    matrix = EXAMPLE.copy()
    matrix[0, 1] = 0.95  # better at 1 before training on it than ever after
    assert metrics.forgetting(matrix) == pytest.approx((0.5 + 0.15) / 2, abs=EXACT)


def test_forgetting_does_not_look_at_the_last_row_for_the_best_score():
    assert metrics.forgetting(np.array([[0.1, 0.0], [0.7, 0.5], [0.0, 0.0]])) == pytest.approx(-0.6)


# --- algebra ---------------------------------------------------------------------------------


@given(matrix=matrices())
def test_levels_are_within_0_and_1_and_transfers_within_minus_1_and_1(matrix):
    for metric in OF_A_MATRIX:
        low = -1 if metric in TRANSFERS else 0
        assert low - EXACT <= metric(matrix) <= 1 + EXACT, metric.__name__


@given(row=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_matrix_of_equal_rows_neither_forgets_nor_transfers(row):
    matrix = np.tile(row, (len(row) + 1, 1))
    assert [metric(matrix) for metric in TRANSFERS] == [0, 0, 0]


@given(matrix=matrices())
def test_forgetting_is_at_least_minus_backward_transfer(matrix):
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - EXACT


@given(matrix=matrices())
def test_forgetting_is_minus_backward_transfer_where_scores_never_rise_after_learning(matrix):
    size = matrix.shape[1]
    for j in range(size):
        for i in range(size - 1):
            matrix[i, j] = min(matrix[i, j], matrix[j, j])
    assert metrics.forgetting(matrix) == pytest.approx(
        -metrics.backward_transfer(matrix), abs=EXACT
    )


@given(matrix=matrices(), data=st.data())
def test_old_experiences_may_be_renumbered_without_changing_forgetting_or_bwt(matrix, data):
    size = matrix.shape[1]
    order = [*data.draw(st.permutations(range(size - 1))), size - 1]
    renumbered = np.vstack([matrix[order][:, order], matrix[-1:, order]])
    for metric in (
        metrics.accuracy,
        metrics.forgetting,
        metrics.backward_transfer,
        metrics.learning_accuracy,
    ):
        assert metric(renumbered) == pytest.approx(metric(matrix), abs=EXACT), metric.__name__


@given(matrix=matrices(), data=st.data())
def test_accuracy_ignores_the_order_of_columns_and_forgetting_that_of_earlier_rows(matrix, data):
    size = matrix.shape[1]
    columns = data.draw(st.permutations(range(size)))
    assert metrics.accuracy(matrix[:, columns]) == pytest.approx(
        metrics.accuracy(matrix), abs=EXACT
    )
    rows = [*data.draw(st.permutations(range(size - 1))), size - 1, size]
    assert metrics.forgetting(matrix[rows]) == pytest.approx(metrics.forgetting(matrix), abs=EXACT)


def test_incremental_accuracy_and_forward_transfer_depend_on_the_order():
    order = [1, 0, 2]
    renumbered = np.vstack([EXAMPLE[order][:, order], EXAMPLE[-1:, order]])
    for metric in (metrics.average_incremental_accuracy, metrics.forward_transfer):
        assert abs(metric(renumbered) - metric(EXAMPLE)) > 0.01, metric.__name__


@given(matrix=matrices(), rise=st.floats(-2, 2))
def test_raising_every_score_raises_levels_by_as_much_and_transfers_not_at_all(matrix, rise):
    for metric in OF_A_MATRIX:
        expected = metric(matrix) + (0 if metric in TRANSFERS else rise)
        assert metric(matrix + rise) == pytest.approx(expected, abs=EXACT), metric.__name__


@given(matrix=matrices())
def test_accuracy_so_far_ends_in_accuracy_and_averages_to_the_incremental_one(matrix):
    so_far = metrics.accuracy_so_far(matrix)
    assert len(so_far) == matrix.shape[1]
    assert so_far[-1] == pytest.approx(metrics.accuracy(matrix), abs=EXACT)
    assert mean(so_far) == pytest.approx(metrics.average_incremental_accuracy(matrix), abs=EXACT)


@given(classes=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_pooled_incremental_accuracy_is_the_mean_over_all_classes_seen(classes, seed):
    size = len(classes)
    of_class = np.random.default_rng(seed).random((size + 1, sum(classes)))  # a score per class
    ends = np.cumsum(classes)
    matrix = np.stack([c.mean(1) for c in np.split(of_class, ends[:-1], axis=1)], axis=1)
    pooled = mean([mean(of_class[i, : ends[i]].tolist()) for i in range(size)])
    assert metrics.average_incremental_accuracy(matrix, classes) == pytest.approx(pooled, abs=EXACT)


@given(matrix=matrices(), width=st.integers(1, 9))
def test_pooled_incremental_accuracy_is_the_plain_one_where_all_bring_as_many_classes(
    matrix, width
):
    pooled = metrics.average_incremental_accuracy(matrix, [width] * matrix.shape[1])
    assert pooled == pytest.approx(metrics.average_incremental_accuracy(matrix), abs=EXACT)


def test_a_single_experience_has_its_accuracy_and_no_transfer():
    matrix = np.array([[0.75], [0.1]])
    assert [metric(matrix) for metric in OF_A_MATRIX] == [0.75, 0.75, 0, 0, 0, 0.75]
    assert metrics.accuracy_so_far(matrix) == [0.75]


@given(matrix=matrices())
def test_summary_holds_each_metric_under_its_own_name(matrix):
    assert metrics.summary(matrix) == {m.__name__: m(matrix) for m in OF_A_MATRIX}


# --- intransigence ---------------------------------------------------------------------------


@given(data=st.data(), size=st.integers(1, 6))
def test_intransigence_equals_the_naive_loop_and_is_0_against_itself(data, size):
    shape = st.just((size + 1, size))
    one, joint = (data.draw(arrays(np.float64, shape, elements=st.floats(0, 1))) for _ in "ab")
    expected = mean([joint[j, j] - one[j, j] for j in range(size)])
    assert metrics.intransigence(one, joint) == pytest.approx(expected, abs=EXACT)
    assert metrics.intransigence(one, one) == 0


def test_intransigence_refuses_runs_of_different_length():
    with pytest.raises(ValueError, match="joint run has 2 experiences, this one 3: intransigence"):
        metrics.intransigence(EXAMPLE, np.zeros((3, 2)))


# --- Avalanche -------------------------------------------------------------------------------


def avalanche_values(metric: Forgetting, matrix: np.ndarray) -> dict[int, float]:
    """What Avalanche's class holds when it is told the scores of a run in their order."""
    size = matrix.shape[1]
    for i in range(size):
        metric.reset_last()
        for j in range(size):
            metric.update(j, matrix[i, j], initial=i == j)
    return {j: v for j, v in metric.result().items() if j < size - 1}


@given(matrix=matrices(low=2))
def test_backward_transfer_is_avalanches(matrix):
    theirs = avalanche_values(BWT(), matrix)
    assert metrics.backward_transfer(matrix) == pytest.approx(mean([*theirs.values()]), abs=EXACT)


@given(matrix=matrices(low=2))
def test_avalanches_forgetting_is_minus_our_backward_transfer_and_never_above_ours(matrix):
    theirs = mean([*avalanche_values(Forgetting(), matrix).values()])
    assert theirs == pytest.approx(-metrics.backward_transfer(matrix), abs=EXACT)
    assert theirs <= metrics.forgetting(matrix) + EXACT


@given(matrix=matrices(low=2, high=2))
def test_forgetting_is_avalanches_for_two_experiences(matrix):
    theirs = avalanche_values(Forgetting(), matrix)
    assert metrics.forgetting(matrix) == pytest.approx(theirs[0], abs=EXACT)


def test_forgetting_is_not_avalanches_where_the_best_score_came_later_than_the_first():
    matrix = np.array([[0.5, 0, 0], [0.9, 0.6, 0], [0.4, 0.6, 0.5], [0, 0, 0]])
    theirs = avalanche_values(Forgetting(), matrix)
    assert theirs == pytest.approx({0: 0.1, 1: 0.0})  # first minus last
    assert metrics.forgetting(matrix) == pytest.approx((0.5 + 0.0) / 2)  # best minus last


@given(matrix=matrices(low=2))
def test_forward_transfer_is_avalanches(matrix):
    theirs, size = ForwardTransfer(), matrix.shape[1]
    for j in range(1, size):
        theirs.update(j, matrix[-1, j], initial=True)
        theirs.update(j, matrix[j - 1, j])
    assert metrics.forward_transfer(matrix) == pytest.approx(
        mean([*theirs.result().values()]), abs=EXACT
    )


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*OF_A_MATRIX, metrics.accuracy_so_far, metrics.summary])
@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (5, 3), (4,), (1, 0), (2, 3, 2), ()])
def test_a_matrix_of_another_shape_is_refused_and_its_shape_is_named(metric, shape):
    with pytest.raises(ValueError, match=r"has shape \(T \+ 1, T\)") as error:
        metric(np.zeros(shape))
    assert str(error.value).endswith(f"the untrained model; got {shape}")


@pytest.mark.parametrize("classes", [[2, 2], [2, 2, 2, 2], []])
def test_class_counts_must_be_one_for_each_experience(classes):
    with pytest.raises(ValueError, match=f"3 experiences.*{len(classes)} class counts"):
        metrics.average_incremental_accuracy(EXAMPLE, classes)


def test_a_missing_score_shows_in_every_metric_that_reads_it_and_in_no_other():
    readers = {
        (0, 0): {"average_incremental_accuracy", "forgetting", "backward_transfer"}
        | {"learning_accuracy"},
        (0, 1): {"forgetting", "forward_transfer"},
        (0, 2): set(),
        (2, 0): {"accuracy", "average_incremental_accuracy", "forgetting", "backward_transfer"},
        (3, 0): set(),
        (3, 2): {"forward_transfer"},
    }
    for entry, names in readers.items():
        matrix = EXAMPLE.copy()
        matrix[entry] = math.nan
        assert {n for n, v in metrics.summary(matrix).items() if math.isnan(v)} == names, entry


# --- stability gap ---------------------------------------------------------------------------


def naive_stability_gap(scores: list[np.ndarray]) -> float:
    """`scores[e]`: (evaluations, T) within experience e."""
    drops = [0.0]
    for e in range(1, len(scores)):
        before = scores[e - 1][-1]
        drops += [before[j] - now[j] for now in scores[e] for j in range(e)]
    return max(drops)


def as_curve(scores: list[np.ndarray]) -> list[tuple[int, list[float]]]:
    return [(e, row.tolist()) for e, rows in enumerate(scores) for row in rows]


@given(
    evaluations=st.lists(st.integers(1, 4), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1)
)
def test_stability_gap_equals_the_naive_loop(evaluations, seed):
    random = np.random.default_rng(seed)
    scores = [random.random((count, len(evaluations))) for count in evaluations]
    assert metrics.stability_gap(as_curve(scores)) == pytest.approx(
        naive_stability_gap(scores), abs=EXACT
    )


def test_stability_gap_is_seen_though_the_score_recovers():
    curve = [(0, [0.9, 0.0]), (1, [0.2, 0.5]), (1, [0.6, 0.7]), (1, [0.9, 0.8])]
    assert metrics.stability_gap(curve) == pytest.approx(0.7)


def test_stability_gap_is_measured_from_before_the_experience_not_from_the_best_since():
    curve = [(0, [0.5, 0.0]), (1, [0.9, 0.5]), (1, [0.4, 0.7])]
    assert metrics.stability_gap(curve) == pytest.approx(0.1)


def test_stability_gap_is_0_where_nothing_old_drops():
    assert metrics.stability_gap([]) == 0
    assert metrics.stability_gap([(0, [0.9, 0.5]), (0, [0.1, 0.5])]) == 0  # 0 is being trained
    assert metrics.stability_gap([(0, [0.5, 0.9]), (1, [0.6, 0.1])]) == 0  # so is 1


def test_stability_gap_does_not_hide_a_score_that_is_not_a_number():
    assert math.isnan(metrics.stability_gap([(0, [0.9, 0.1]), (1, [math.nan, 0.5])]))
