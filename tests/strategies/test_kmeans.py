"""k-means against scikit-learn's from the same start, and how a start is drawn."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from strategies.kmeans import k_means, spread


def drawn(count, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, dtype=torch.float64, generator=generator)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("count", "width", "clusters"), [(57, 3, 5), (40, 7, 10), (9, 2, 1)])
def test_centres_are_those_of_scikit_learn(count, width, clusters):
    points = drawn(count, width)
    first = points[:clusters]
    fitted = KMeans(clusters, init=first.numpy(), n_init=1, tol=0, algorithm="lloyd").fit(points)
    np.testing.assert_allclose(k_means(points, first), fitted.cluster_centers_, rtol=1e-9)


def test_as_many_clusters_as_points_have_the_points_as_centres():
    points = drawn(6, 3)
    centres = k_means(points, spread(points, 6, generator()))
    assert sorted(centres.tolist()) == sorted(points.tolist())


def test_a_centre_that_is_nearest_to_no_point_stays():
    points = torch.tensor([[0.0], [1.0]])
    centres = k_means(points, torch.tensor([[0.4], [9.0]]))
    assert centres.tolist() == [[0.5], [9.0]]


def test_fewer_points_than_clusters_are_taken_again():
    points = drawn(3, 2)
    first = spread(points, 8, generator())
    assert {tuple(row) for row in first.tolist()} == {tuple(row) for row in points.tolist()}
    assert torch.equal(k_means(points, first), first)


def test_a_start_is_drawn_by_the_square_of_the_distance_to_what_was_drawn_before():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    counts = np.zeros((4, 4))
    for seed in range(4000):
        one, other = spread(points, 2, generator(seed))[:, 0]
        counts[(points[:, 0] == one).nonzero()[0, 0], (points[:, 0] == other).nonzero()[0, 0]] += 1
    np.testing.assert_allclose(counts.sum(1) / 4000, 1 / 4, atol=0.04)
    squares = (points - points.T).square().double().numpy()
    expected = squares / squares.sum(1, keepdims=True)
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), expected, atol=0.04)


def test_a_start_is_the_seeds_alone():
    points = drawn(30, 4)
    torch.manual_seed(1)
    one = spread(points, 5, generator(3))
    torch.manual_seed(2)
    assert torch.equal(spread(points, 5, generator(3)), one)
    assert not torch.equal(spread(points, 5, generator(4)), one)
