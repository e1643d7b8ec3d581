"""The accuracy matrix, and every metric as a pure function of it.

R[i, j] is the score on the test data of experience j after training on experience i, for i and j
in 0..T-1. The array has one row more: R[-1], its last, is the untrained model. So the formulas
below can be read as they stand, R[j - 1, j] included. A score is higher-is-better.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]  # (T + 1, T)


def check_matrix(matrix: Matrix) -> Matrix:
    """Refuse what is not an accuracy matrix, naming the shape that was given."""
    matrix = np.asarray(matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1 or matrix.shape[1] == 0:
        raise ValueError(
            f"an accuracy matrix of T experiences has shape (T + 1, T), its last row being the "
            f"untrained model; got {matrix.shape}"
        )
    return matrix


def _size(matrix: Matrix) -> int:
    return check_matrix(matrix).shape[1]


def accuracy(matrix: Matrix) -> float:
    """ACC: mean over experiences of the score after the last one (Lopez-Paz & Ranzato 2017)."""
    return float(matrix[_size(matrix) - 1].mean())


def accuracy_so_far(matrix: Matrix) -> list[float]:
    """After each experience i: the mean score over experiences 0..i."""
    return [float(matrix[i, : i + 1].mean()) for i in range(_size(matrix))]


def average_incremental_accuracy(matrix: Matrix, classes: Sequence[int] | None = None) -> float:
    """AIA: mean over i of the accuracy over experiences 0..i (Rebuffi et al. 2017).

    With `classes`, the number of classes of each experience, the inner mean is over classes
    rather than experiences (PODNet's protocol, Douillard et al. 2020).
    """
    size = _size(matrix)
    weights = np.ones(size) if classes is None else np.asarray(classes, dtype=np.float64)
    if weights.shape != (size,):
        raise ValueError(
            f"the matrix has {size} experiences but there are {weights.size} class counts; give "
            "one for each experience"
        )
    return float(
        np.mean([np.average(matrix[i, : i + 1], weights=weights[: i + 1]) for i in range(size)])
    )


def forgetting(matrix: Matrix) -> float:
    """FM: mean over old j of the best score before the last experience, less the final one.

    Chaudhry et al. 2018. Negative where a score was still rising; 0 for a single experience.
    """
    size = _size(matrix)
    if size == 1:
        return 0.0
    best = matrix[: size - 1, : size - 1].max(axis=0)
    return float((best - matrix[size - 1, : size - 1]).mean())


def backward_transfer(matrix: Matrix) -> float:
    """BWT: mean over old j of R[T-1, j] - R[j, j] (Lopez-Paz & Ranzato 2017)."""
    size = _size(matrix)
    if size == 1:
        return 0.0
    return float((matrix[size - 1] - np.diag(matrix))[: size - 1].mean())


def forward_transfer(matrix: Matrix) -> float:
    """FWT: mean over j > 0 of R[j-1, j] less the untrained score (Lopez-Paz & Ranzato 2017)."""
    size = _size(matrix)
    if size == 1:
        return 0.0
    return float(np.mean([matrix[j - 1, j] - matrix[-1, j] for j in range(1, size)]))


def learning_accuracy(matrix: Matrix) -> float:
    """Mean of R[j, j]: how well each experience is learned when it comes (Riemer et al. 2019)."""
    _size(matrix)
    return float(np.diag(matrix).mean())


def intransigence(matrix: Matrix, joint: Matrix) -> float:
    """IM: mean over j of R*[j, j] - R[j, j], R* from the joint run (Chaudhry et al. 2018)."""
    if _size(matrix) != _size(joint):
        raise ValueError(
            f"the joint run has {_size(joint)} experiences, this one {_size(matrix)}: "
            "intransigence compares runs of the same scenario"
        )
    return float((np.diag(joint) - np.diag(matrix)).mean())


def stability_gap(curve: Sequence[tuple[int, Sequence[float]]]) -> float:
    """Worst drop of an old experience's score inside an experience (De Lange et al. 2023).

    `curve`: (experience being trained, scores of all test experiences) in order of evaluation.
    The drop is from the last evaluation before the experience began; 0 if nothing drops.
    """
    worst, before = 0.0, None
    for k, (experience, scores) in enumerate(curve):
        if k == 0 or curve[k - 1][0] != experience:
            before = curve[k - 1][1] if k else None
        if before is not None:
            drops = [before[j] - scores[j] for j in range(experience)]
            worst = np.max([worst, *drops])  # unlike Python's max, keeps a NaN
    return float(worst)


def anytime_accuracy(curve: Sequence[tuple[int, float]]) -> float:
    """Area under the accuracy over the samples seen, as a share of their number (Koh et al. 2022).

    `curve`: (samples seen so far, accuracy then), in order; each evaluation stands for the samples
    since the one before it.
    """
    samples, accuracies = np.asarray(curve, dtype=np.float64).T
    return float(np.average(accuracies, weights=np.diff(samples, prepend=0)))


def summary(matrix: Matrix) -> dict[str, float]:
    """All metrics that need nothing but the matrix, under the names that result.json uses."""
    return {
        "accuracy": accuracy(matrix),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix),
        "learning_accuracy": learning_accuracy(matrix),
    }
