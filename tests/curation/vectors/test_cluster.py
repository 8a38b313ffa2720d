import numpy as np
import pytest

from dinov2_hf.curation.vectors import Hierarchy, VectorShards, assign, hierarchical_kmeans, kmeans
from dinov2_hf.curation.vectors.cluster import _start, nearest_rows


def squared_distances(vectors, centroids):
    return ((vectors[:, None].astype(np.float64) - centroids[None].astype(np.float64)) ** 2).sum(axis=2)


def plain_lloyd(vectors, centroids, iterations, spherical):
    for _ in range(iterations):
        clusters = squared_distances(vectors, centroids).argmin(axis=1)
        for cluster in range(len(centroids)):
            mean = vectors[clusters == cluster].astype(np.float64).mean(axis=0)
            centroids[cluster] = mean / np.linalg.norm(mean) if spherical else mean
    return centroids


@pytest.mark.parametrize("spherical", [False, True])
def test_kmeans_is_plain_lloyd_from_its_start(vectors, spherical):
    start = _start(vectors, 12, np.random.default_rng(5)).astype(np.float16)
    centroids = kmeans(vectors, 12, 6, seed=5, spherical=spherical)
    assert np.array_equal(centroids, plain_lloyd(vectors, start, 6, spherical))


def test_start_has_every_far_cluster_and_no_row_twice(vectors):
    """Of 151 rows in one place and one each in nine others, all ten places, which ten random rows would miss."""
    rows = np.concatenate([np.repeat(np.eye(1, 48), 151, axis=0), np.eye(10, 48)[1:]])
    for seed in range(5):
        assert len(np.unique(_start(rows, 10, np.random.default_rng(seed)), axis=0)) == 10
    assert len(np.unique(_start(vectors, 1000, np.random.default_rng(0)), axis=0)) == 1000


def test_kmeans_finds_the_centres_and_lowers_the_distance(vectors):
    rng = np.random.default_rng(1)
    centres = np.eye(6, 48)
    rows = centres[np.arange(600) % 6] + 0.02 * rng.standard_normal((600, 48))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    best = min(
        (kmeans(rows, 6, seed=seed) for seed in range(6)), key=lambda centroids: assign(rows, centroids)[1].sum()
    )
    assert np.allclose(sorted(best.argmax(axis=1)), range(6)) and (best.max(axis=1) > 0.99).all()
    costs = [assign(vectors, kmeans(vectors, 40, steps))[1].sum() for steps in (1, 2, 4, 20)]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("k", [1, 7, 200])
def test_assignment_is_the_naive_one_to_the_bit(vectors, k):
    centroids = kmeans(vectors, k, 3)
    clusters, distances = assign(vectors, centroids)
    expected = squared_distances(vectors, centroids)
    assert np.array_equal(clusters, expected.argmin(axis=1))
    assert np.allclose(distances, expected.min(axis=1), atol=1e-6)


def test_equal_centroids_share_nothing_the_first_takes_all(vectors):
    centroids = np.concatenate([vectors[:3]] * 2000)  # 6,000 of them: more than one portion of the exact comparison
    clusters, _ = assign(vectors[:100], centroids)
    assert np.array_equal(clusters, assign(vectors[:100], vectors[:3])[0])


def test_clusters_do_not_depend_on_threads_blocks_or_shards(vectors, threads, monkeypatch):
    threads(1)
    centroids = kmeans(vectors, 30, 8, seed=2)
    clusters, distances = assign(vectors, centroids)
    threads(4)
    monkeypatch.setattr("dinov2_hf.curation.vectors.cluster.BLOCK", 77)
    shards = VectorShards(np.array_split(vectors, 9))
    assert np.array_equal(kmeans(shards, 30, 8, seed=2), centroids)
    parts = [assign(part, centroids, block_size=13) for part in np.split(vectors, [1, 500])]
    assert np.array_equal(np.concatenate([part for part, _ in parts]), clusters)
    assert np.array_equal(np.concatenate([part for _, part in parts]), distances)


def test_seeds_differ_and_a_bounded_sample_is_used(vectors):
    assert not np.array_equal(kmeans(vectors, 10, 2, seed=0), kmeans(vectors, 10, 2, seed=1))
    small = kmeans(vectors, 10, 2, seed=0, max_points_per_centroid=5)
    sample = np.sort(np.random.default_rng(0).choice(1200, 50, replace=False))  # the first draw of the seed
    broken = np.full_like(vectors, np.nan)
    broken[sample] = vectors[sample]  # rows outside the sample are never looked at
    assert np.array_equal(kmeans(broken, 10, 2, seed=0, max_points_per_centroid=5), small)


def test_as_many_clusters_as_rows_are_the_rows(vectors):
    centroids = kmeans(vectors[:50], 50, 3)
    assert np.array_equal(np.unique(assign(vectors[:50], centroids)[0]), np.arange(50))


def test_empty_clusters_start_again_in_the_largest(vectors):
    """Of 500 copies of one row and 60 others, k random rows are mostly the same one; the others get clusters too."""
    rows = np.concatenate([np.repeat(vectors[:1], 500, axis=0), vectors[1:61]])
    clusters = assign(rows, kmeans(rows, 30, 20))[0]
    assert len(np.unique(clusters)) > 20


def test_equal_rows_in_more_clusters_than_values_do_not_fail(vectors):
    rows = np.repeat(vectors[:2], 20, axis=0)
    clusters, distances = assign(rows, kmeans(rows, 5))
    assert len(np.unique(clusters)) == 2 and distances.max() < 1e-5


def test_opposite_rows_have_no_direction_and_no_nan():
    rows = np.array([[1, 0], [-1, 0]], dtype=np.float16)
    assert np.isfinite(kmeans(rows, 1, 5)).all()
    assert kmeans(rows, 1, 5, spherical=False).tolist() == [[0, 0]]


@pytest.mark.parametrize("k", [0, 1201])
def test_more_clusters_than_rows_are_refused(vectors, k):
    with pytest.raises(ValueError, match=f"k={k} clusters of 1200 vectors; use 1 to 1200"):
        kmeans(vectors, k)


def test_broken_rows_are_named(vectors):
    broken = vectors.copy()
    broken[1100, 3] = np.nan
    with pytest.raises(ValueError, match="vector 1100 is not finite"):
        assign(broken, vectors[:5])
    with pytest.raises(ValueError, match="is not finite"):
        kmeans(broken, 1200, 2)
    with pytest.raises(ValueError, match="not 1; divide"):
        kmeans(2 * vectors, 5)
    with pytest.raises(ValueError, match="must be at least 1"):
        kmeans(vectors, 5, 0)


def test_nearest_rows_of_each_cluster_by_hand():
    clusters = np.array([0, 0, 0, 1, 1, 3])
    distances = np.array([0.3, 0.1, 0.1, 0.5, 0.4, 0.9])
    assert nearest_rows(clusters, distances, np.array([1, 1, 1, 5])).tolist() == [1, 4, 5]
    assert nearest_rows(clusters, distances, np.array([2, 0, 0, 0])).tolist() == [1, 2]


def test_hierarchy_nests_and_assigns_to_the_nearest(vectors):
    hierarchy = hierarchical_kmeans(vectors, [100, 20, 4], iterations=5, resampling_steps=2, seed=1)
    assert [len(level) for level in hierarchy.centroids] == [100, 20, 4]
    assert [len(level) for level in hierarchy.parents] == [1200, 100, 20]
    for points, centroids, parents in zip([vectors, *hierarchy.centroids], hierarchy.centroids, hierarchy.parents):
        assert np.array_equal(parents, squared_distances(points, centroids).argmin(axis=1))
    finest, middle, coarsest = hierarchy.parents
    assert np.array_equal(hierarchy.clusters(0), finest)
    assert np.array_equal(hierarchy.clusters(1), middle[finest])
    assert np.array_equal(hierarchy.clusters(), coarsest[middle[finest]])
    assert np.array_equal(hierarchy.clusters(2), hierarchy.clusters(-1))


def test_hierarchy_does_not_depend_on_threads_or_shards(vectors, threads):
    threads(1)
    one = hierarchical_kmeans(vectors, [60, 8], iterations=4, resampling_steps=2)
    threads(3)
    other = hierarchical_kmeans(VectorShards(np.array_split(vectors, 4)), [60, 8], iterations=4, resampling_steps=2)
    for got, expected in zip(one.centroids + one.parents, other.centroids + other.parents):
        assert np.array_equal(got, expected)


def test_resampling_spreads_the_clusters():
    """A crowd of 3,000 rows in one corner and 300 spread wide: with resampling the crowd gets fewer clusters."""
    rng = np.random.default_rng(0)
    crowd = np.eye(1, 16) + 0.05 * rng.standard_normal((3000, 16))
    wide = rng.standard_normal((300, 16))
    rows = np.concatenate([crowd, wide])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    of_crowd = []
    for steps in (0, 10):
        hierarchy = hierarchical_kmeans(rows, [60], iterations=10, resampling_steps=steps)
        of_crowd.append(len(np.unique(hierarchy.parents[0][:3000])))
    assert of_crowd[1] < 0.9 * of_crowd[0]


@pytest.mark.parametrize("sizes", [[], [10, 10], [10, 20], [1201, 5], [10, 0]])
def test_levels_must_fall(vectors, sizes):
    with pytest.raises(ValueError, match="must fall from level to level"):
        hierarchical_kmeans(vectors, sizes)


def test_equal_rows_can_be_clustered_with_resampling(vectors):
    rows = np.repeat(vectors[:3], 20, axis=0)
    hierarchy = hierarchical_kmeans(rows, [10, 2], iterations=3, resampling_steps=2)
    assert isinstance(hierarchy, Hierarchy) and len(np.unique(hierarchy.clusters(0))) == 3
