"""Two pixels and the networks built by hand: enumeration in plain Python, exact outputs, laws, wrong variants, bad input."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from linconv.pooling import (
    SITES,
    SumOverSites,
    allowed_scales,
    hold_out_distances,
    move_pixels,
    pooling_solution,
    two_pixels,
)

F64 = torch.float64
KINDS = ["low-frequency", "high-frequency"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def listed(grid, xi, gap, periodic):
    """(sites, distance) of every pair that is kept, by two loops over sites."""
    places = list(itertools.product(*map(range, grid)))
    found = []
    for a, b in itertools.combinations(places, 2):
        steps = [abs(i - j) for i, j in zip(a, b, strict=True)]
        if periodic:
            steps = [min(step, n - step) for step, n in zip(steps, grid, strict=True)]
        d = math.sqrt(sum(step**2 for step in steps))
        if (d < xi - gap / 2 or d >= xi + gap / 2) and d != xi:
            found.append((a, b, d))
    return found


def every_pair(sites=SITES):
    """All pairs on a ring, at every distance: no integer lies at ξ = 1.5."""
    return two_pixels((sites,), xi=1.5, gap=0)


# Data


@pytest.mark.parametrize(
    ("grid", "xi", "gap", "periodic"),
    [
        ((9,), 3, 0, True),
        ((8,), 2.5, 0, False),
        ((5, 4), 2, 1, True),
        ((4, 5), 2.5, 0, False),
        ((3, 2, 4), 2, 0, True),
        ((3, 3, 3), 2, 1, False),
    ],
)
def test_every_pair_comes_once(grid, xi, gap, periodic, dtype):
    data = two_pixels(grid, xi=xi, gap=gap, periodic=periodic, dtype=dtype)
    expected = listed(grid, xi, gap, periodic)
    images = torch.zeros(len(expected), 1, *grid, dtype=dtype)
    for image, (a, b, _) in zip(images, expected, strict=True):
        image[0][a] = image[0][b] = 1
    assert torch.equal(data.images, images)
    assert torch.equal(data.distances, torch.tensor([d for *_, d in expected], dtype=F64).to(dtype))
    assert torch.equal(data.labels, torch.sign(xi - data.distances))
    assert {tensor.dtype for tensor in data} == {dtype}


def test_the_ring_has_496_pairs_at_16_distances():
    data = every_pair()
    values, counts = data.distances.unique(return_counts=True)
    assert values.tolist() == list(range(1, 17))
    assert counts.tolist() == [32] * 15 + [16]


def test_published_parameters():
    ring, plane = two_pixels(), two_pixels((28, 28), samples=2000, generator=seeded())
    assert ring.distances.unique().tolist() == [1, 2, 3, 4, 5, *range(8, 17)]
    assert torch.equal(ring.labels, torch.sign(7 - ring.distances))
    assert torch.equal(plane.labels, torch.sign(14 - plane.distances))
    assert not ((plane.distances >= 13) & (plane.distances < 15)).any()
    assert plane.distances.max() > math.hypot(14, 14)  # not periodic
    assert (plane.distances == 15).any()  # the upper edge of the gap is outside


def test_pairs_at_xi_have_no_sign():
    assert 7 not in two_pixels(gap=0).distances.tolist()
    assert {6, 8} <= set(two_pixels(gap=0).distances.tolist())


def test_samples_are_distinct_pairs_of_the_data():
    everything, drawn = two_pixels((6, 5), xi=3), two_pixels((6, 5), xi=3, samples=40, generator=seeded())
    again, other = two_pixels((6, 5), xi=3, samples=40, generator=seeded()), two_pixels((6, 5), xi=3, samples=40, generator=seeded(1))
    rows = {tuple(row.tolist()) for row in drawn.images.flatten(1)}
    assert len(rows) == 40
    assert rows <= {tuple(row.tolist()) for row in everything.images.flatten(1)}
    assert torch.equal(drawn.images, again.images)
    assert not torch.equal(drawn.images, other.images)
    assert torch.equal(drawn.labels, torch.sign(3 - drawn.distances))
    shuffled = two_pixels((6, 5), xi=3, samples=len(everything.labels), generator=seeded())
    assert sorted(shuffled.distances.tolist()) == sorted(everything.distances.tolist())


def test_held_out_distances_are_seen_by_the_test_set_alone():
    data = two_pixels()
    train, test = hold_out_distances(data, [2, 5, 11])
    assert set(test.distances.tolist()) == {2, 5, 11}
    assert not set(train.distances.tolist()) & {2, 5, 11}
    assert len(train.labels) + len(test.labels) == len(data.labels)
    assert torch.equal(test.labels, torch.sign(7 - test.distances))
    plane = two_pixels((6, 6), xi=3, dtype=torch.float32)
    _, diagonal = hold_out_distances(plane, [math.sqrt(2)])
    assert torch.equal(diagonal.distances.unique(), torch.tensor([2.0]).sqrt())


def test_a_circular_network_with_pooling_sees_only_the_distance():
    # The reason for holding out distances: 496 images are 16 inputs. Without pooling over sites they are 496.
    data = every_pair()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        convolution = nn.Conv1d(1, 5, 5, padding="same", padding_mode="circular").double()
    pooled = nn.Sequential(convolution, nn.ReLU(), SumOverSites())(data.images)
    for d in range(1, 17):
        outputs = pooled[data.distances == d]
        torch.testing.assert_close(outputs, outputs[:1].expand_as(outputs), rtol=1e-13, atol=1e-13)
    assert len(nn.Flatten()(convolution(data.images)).detach().unique(dim=0)) == 496


# Moves


@pytest.mark.parametrize(("moves", "steps"), [("stay", (-1, 0, 1)), ("step", (-1, 1))])
def test_moves_are_independent_and_equally_likely(moves, steps):
    images = torch.zeros(20_000, 1, 12, dtype=F64)
    images[:, 0, [0, 6]] = 1
    moved = move_pixels(images, moves=moves, generator=seeded())[:, 0]
    near, far = torch.roll(moved, 3, 1)[:, :6], torch.roll(moved, 3, 1)[:, 6:]
    assert bool((near.sum(1) == 1).all())
    assert bool((far.sum(1) == 1).all())
    both = torch.stack([near.argmax(1) - 3, far.argmax(1) - 3], 1)
    values, counts = both.unique(dim=0, return_counts=True)
    assert {tuple(v) for v in values.tolist()} == set(itertools.product(steps, steps))
    share = 1 / len(steps) ** 2
    # Five standard deviations of a binomial.
    assert bool(((counts / 20_000 - share).abs() < 5 * math.sqrt(share * (1 - share) / 20_000)).all())


@given(st.integers(0, 10**6), st.integers(4, 40), st.sampled_from(["stay", "step"]))
@settings(max_examples=20)
def test_moving_keeps_two_pixels(seed, sites, moves):
    images = every_pair(sites).images
    moved = move_pixels(images, moves=moves, generator=seeded(seed))
    assert bool((moved.sum((1, 2)) == 2).all())
    assert bool((moved >= 0).all())
    assert moved.shape == images.shape
    assert torch.equal(moved, move_pixels(images, moves=moves, generator=seeded(seed)))
    reach = images + images.roll(1, 2) + images.roll(-1, 2)
    assert not bool((moved[reach == 0] != 0).any())


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize(("moves", "steps"), [("stay", (-1, 0, 1)), ("step", (-1, 1))])
def test_on_a_plane_each_coordinate_moves_by_itself(moves, steps, periodic):
    """Pixels at a corner and at an edge: frequencies of all places, against those of all moves, around or up to the border."""
    grid, ends, count = (7, 9), ((0, 0), (3, 8)), 20_000
    images = torch.zeros(count, 1, *grid, dtype=F64)
    for end in ends:
        images[:, 0, end[0], end[1]] = 1
    moved = move_pixels(images, moves=moves, periodic=periodic, generator=seeded())[:, 0]
    expected = torch.zeros(grid, dtype=F64)
    for (y, x), a, b in itertools.product(ends, steps, steps):
        place = ((y + a) % 7, (x + b) % 9) if periodic else (min(max(y + a, 0), 6), min(max(x + b, 0), 8))
        expected[place] += 1 / len(steps) ** 2
    # A place is met by at most two pixels, each a binomial: five standard deviations of both.
    assert bool(((moved.mean(0) - expected).abs() < 5 * math.sqrt(2 * 0.25 / count)).all())
    assert bool((moved.mean(0)[expected == 0] == 0).all())
    # Rows and columns, and the two pixels, are independent: the share of images that stay is that of four coordinates.
    free = (3, 4)
    alone = torch.zeros(count, 1, 7, 9, dtype=F64)
    alone[:, 0, 1, 1] = alone[:, 0, free[0], free[1]] = 1
    stayed = float((move_pixels(alone, moves=moves, periodic=periodic, generator=seeded(1)) == alone).flatten(1).all(1).double().mean())
    share = (steps.count(0) / len(steps)) ** 4
    assert abs(stayed - share) <= 5 * math.sqrt(share * (1 - share) / count)


def test_moves_on_the_published_plane(dtype):
    plane = two_pixels((28, 28), samples=500, generator=seeded(), dtype=dtype)
    moved = move_pixels(plane.images, generator=seeded())
    assert moved.shape == plane.images.shape
    assert moved.dtype == dtype
    assert bool((moved.sum((1, 2, 3)) == 2).all())
    near = nn.functional.max_pool2d(plane.images, 3, 1, 1)
    assert bool((near[moved > 0] > 0).all())


def test_neighbours_that_meet_add_to_two(dtype):
    images = torch.zeros(500, 1, 6, dtype=dtype)
    images[:, 0, [0, 2]] = 1
    moved = move_pixels(images, generator=seeded())
    assert moved.dtype == dtype
    assert moved.max() == 2


# Solutions


def by_hand(kind, k, x):
    """f in NumPy, from its description: fields of 2k + 1 sites that meet, minus one, rectified, summed."""
    if kind == "low-frequency":
        for _ in range(k):
            x = np.roll(x, 1, -1) + x + np.roll(x, -1, -1)
    else:
        x = x + sum(np.roll(x, s, -1) + np.roll(x, -s, -1) for s in range(1, k + 1))
    return np.maximum(x - 1, 0).sum(-1)


def law(kind, xi, distances):
    constant = 2 * 3 ** ((xi - 1) // 2) - 2 * xi if kind == "low-frequency" else 0
    return constant + torch.relu(xi - distances)


@pytest.mark.parametrize(("sites", "dtype"), [(5, F64), (6, F64), (9, F64), (12, F64), (33, F64), (SITES, F64), (SITES, torch.float32)])
@pytest.mark.parametrize("kind", KINDS)
def test_solutions_are_exact_for_every_pair(kind, sites, dtype):
    data = two_pixels((sites,), xi=1.5, gap=0, dtype=dtype)
    for xi in allowed_scales(sites):
        solution = pooling_solution(kind, xi, sites=sites, dtype=dtype)
        outputs = solution(data.images)
        assert outputs.dtype == dtype
        assert torch.equal(outputs, law(kind, xi, data.distances)[:, None])
        assert np.array_equal(outputs[:, 0].numpy(), by_hand(kind, (xi - 1) // 2, data.images[:, 0].numpy()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_law_holds_where_pixels_meet(kind):
    one_place = 2 * torch.eye(SITES, dtype=F64)[:, None]
    for xi in allowed_scales():
        assert torch.equal(pooling_solution(kind, xi)(one_place)[:, 0], law(kind, xi, torch.zeros(SITES, dtype=F64)))


@pytest.mark.parametrize("kind", KINDS)
def test_solutions_classify_with_one_threshold(kind):
    for xi in allowed_scales()[:-1]:
        data = two_pixels(xi=xi, gap=0)
        outputs, constant = pooling_solution(kind, xi)(data.images)[:, 0], law(kind, xi, torch.tensor(float(xi)))
        assert torch.equal(torch.where(outputs > constant, 1.0, -1.0).double(), data.labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sites", [SITES, 31])
def test_beyond_half_the_ring_the_law_fails(kind, sites):
    # A longer ring allows the next ξ; on this one the fields of the farthest pixels meet on the other side too.
    xi, data = allowed_scales(sites)[-1] + 2, every_pair(sites)
    wide = pooling_solution(kind, xi, sites=2 * xi)(data.images)[:, 0]
    assert torch.equal(wide != law(kind, xi, data.distances), data.distances > sites - xi)
    assert bool((data.distances > sites - xi).any())


def test_wrong_variants_differ():
    data, xi = every_pair(), 7
    solution = pooling_solution("low-frequency", xi)
    without_constant = torch.relu(xi - data.distances)
    assert not torch.equal(solution(data.images)[:, 0], without_constant)
    solution.conv3.bias.zero_()
    assert bool((solution(data.images)[:, 0] == 2 * 3**3).all())  # without the bias there is no interference to see
    other = pooling_solution("high-frequency", xi)
    other.conv2.weight[:2] = other.conv2.weight[:2].flip(2)  # shifts the other way round
    assert not torch.equal(other(data.images)[:, 0], without_constant)


def test_low_frequency_filters_are_constant_and_the_others_are_shifts():
    low, high = (pooling_solution(kind, 9) for kind in KINDS)
    for k in range(1, 5):
        assert torch.equal(getattr(low, f"conv{k}").weight, torch.ones(1, 1, 3, dtype=F64))
    assert [getattr(high, f"conv{k}").out_channels for k in range(1, 5)] == [3, 3, 3, 1]
    x = torch.randn(2, 1, SITES, dtype=F64, generator=seeded())
    left, right, both = high.conv1(x).unbind(1)
    assert torch.equal(left, x[:, 0].roll(-1, 1))
    assert torch.equal(right, x[:, 0].roll(1, 1))
    torch.testing.assert_close(both, x[:, 0] + left + right)
    for solution in (low, high):
        assert not any(p.requires_grad for p in solution.parameters())
        assert [name for name, p in solution.named_parameters() if name.endswith("bias")] == ["conv4.bias"]


@given(st.integers(6, 40), st.sampled_from(KINDS), st.integers(0, 39), st.data())
@settings(max_examples=10)
def test_solutions_are_invariant_to_shifts_and_reflection(sites, kind, shift, draw):
    xi = draw.draw(st.sampled_from(allowed_scales(sites)))
    solution, x = pooling_solution(kind, xi, sites=sites), torch.randn(4, 1, sites, dtype=F64, generator=seeded(shift))
    for other in (x.roll(shift, 2), x.flip(2)):
        torch.testing.assert_close(solution(other), solution(x), rtol=1e-10, atol=1e-10)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    pooling_solution("high-frequency", 9)
    two_pixels((6, 6), xi=3, samples=5, generator=seeded())
    move_pixels(every_pair().images, generator=seeded())
    assert torch.equal(before, torch.random.get_rng_state())


# Bad input


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: two_pixels((2, 2, 2, 2)), ValueError, "grid: expected 1, 2 or 3"),
        (lambda: two_pixels((3, 3, 3)), ValueError, "xi: expected a distance for 3 dimensions"),
        (lambda: two_pixels(xi=-1), ValueError, "xi: expected a finite number > 0"),
        (lambda: two_pixels(xi=40), ValueError, "xi: expected pairs closer and farther than ξ = 40"),
        (lambda: two_pixels(gap=40), ValueError, "xi: .* beyond a gap of 40"),
        (lambda: two_pixels(gap=float("nan")), ValueError, "gap: expected a finite number"),
        (lambda: two_pixels(samples=10), TypeError, "generator: expected a torch.Generator"),
        (lambda: two_pixels(samples=10_000, generator=seeded()), ValueError, "samples: expected at most the 432 pairs"),
        (lambda: two_pixels(samples=0, generator=seeded()), ValueError, "samples: expected a positive integer"),
        (lambda: two_pixels(dtype=torch.int64), TypeError, "dtype: expected torch.float32 or torch.float64"),
        (lambda: two_pixels((500, 500)), ValueError, "grid: expected sizes whose arrays fit in memory"),
        (
            lambda: hold_out_distances(two_pixels(), [7]),
            ValueError,
            r"held_out: expected distances .* got \[7.0\]; the data have 1",
        ),
        (lambda: hold_out_distances(two_pixels(), []), ValueError, "held_out: expected some but not all"),
        (lambda: hold_out_distances(two_pixels(), two_pixels().distances.unique().tolist()), ValueError, "held_out: expected some but not"),
        (lambda: move_pixels(torch.ones(2, 1, 6), generator=seeded()), ValueError, "images: expected one channel, black but for two"),
        (lambda: move_pixels(torch.ones(2, 1, 2), generator=None), TypeError, "generator"),
        (lambda: move_pixels(torch.ones(2, 6), generator=seeded()), ValueError, r"images: expected \(N, 1, \*grid\)"),
        (lambda: move_pixels(two_pixels().images, moves="jump", generator=seeded()), ValueError, "moves: expected 'stay' .* or 'step'"),
        (lambda: pooling_solution("band-pass", 7), ValueError, "kind: expected 'low-frequency' or 'high-frequency'"),
        (lambda: pooling_solution("low-frequency", 8), ValueError, "one of 3, 5, 7, 9, 11, 13, 15; got 8"),
        (lambda: pooling_solution("low-frequency", 17), ValueError, "one of 3, 5, 7, 9, 11, 13, 15; got 17"),
        (lambda: pooling_solution("low-frequency", 1), ValueError, "got 1"),
        (lambda: pooling_solution("low-frequency", True), ValueError, "got True"),
        (lambda: pooling_solution("low-frequency", 7.5), ValueError, "got 7.5"),
        (lambda: pooling_solution("low-frequency", 3, sites=4), ValueError, "for 4 sites one of none; take at least 5 sites"),
        (lambda: pooling_solution("low-frequency", 3, sites=0), ValueError, "sites: expected a positive integer"),
    ],
)
def test_bad_input_is_refused(call, error, says):
    with pytest.raises(error) as caught:
        call()
    assert re.search(says, str(caught.value)), caught.value
