"""The accuracy matrices of a configuration's runs."""

import numpy as np

from clplat.directory import MATRIX
from clplat.metrics import Matrix, check_matrix
from clplat.report.configurations import Configuration


def matrices_of(configuration: Configuration) -> list[Matrix]:
    """One a run; none where one is missing or damaged, or they differ in shape."""
    try:
        files = [run.out / MATRIX for run in configuration.runs]
        found = [check_matrix(np.load(file, allow_pickle=False)) for file in files]
    except (OSError, ValueError, EOFError):
        return []
    return found if len({matrix.shape for matrix in found}) == 1 else []
