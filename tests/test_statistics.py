"""Intervals, trends and distances: laws, enumeration by hand, coverage with a binomial bound, and samples that have no spread."""

import itertools
import math
from operator import attrgetter

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from linconv.statistics import (
    Interval,
    bootstrap_interval,
    correlation,
    correlation_interval,
    cosine_distance,
    crossed_interval,
    first_moment,
    jackknife_interval,
    kl_divergence,
    mean_interval,
    permutation_test,
    total_variation,
    trend,
)
from linconv.statistics.slopes import rising_pairs, sen_slope

F64 = torch.float64
EPS = torch.finfo(F64).eps
DISTANCES = [kl_divergence, total_variation, cosine_distance]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, dtype=F64, generator=seeded(seed)).to(dtype)


def least_count(trials, probability, chance=1e-4):
    """The count that so many trials fall below with this chance."""
    return stats.binom.ppf(chance, trials, probability)


def whole_numbers(least, most):
    return st.lists(st.integers(-5, 5), min_size=least, max_size=most).map(lambda values: torch.tensor(values, dtype=F64))


# Bootstrap


@given(st.integers(0, 1000), st.integers(2, 12), st.integers(-20, 20))
def test_the_interval_scales_with_the_data(seed, n, exponent):
    x = normal(n, seed=seed)
    plain = bootstrap_interval(x, generator=seeded(1), resamples=199)
    scaled = bootstrap_interval(x * 2.0**exponent, generator=seeded(1), resamples=199)
    assert scaled == Interval(*(bound * 2.0**exponent for bound in (plain.estimate, plain.low, plain.high)), 0.95)
    # A mean of samples lies between them, up to rounding.
    slack = n * EPS * x.abs().max()
    assert x.min() - slack <= plain.low <= plain.high <= x.max() + slack


def test_a_higher_level_is_wider_and_the_generator_decides():
    x = normal(15)
    narrow, wide = (bootstrap_interval(x, generator=seeded(), level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.estimate < narrow.high < wide.high
    assert bootstrap_interval(x, generator=seeded(), level=0.8) == narrow
    assert bootstrap_interval(x, generator=seeded(1), level=0.8) != narrow
    source = seeded()
    bootstrap_interval(x, generator=source)
    assert not torch.equal(source.get_state(), seeded().get_state())  # a second call draws anew


def test_many_samples_agree_with_student(dtype):
    x = normal(400, dtype=dtype)
    found = bootstrap_interval(x, generator=seeded())
    error = float(x.std()) / 20
    low, high = stats.t.interval(0.95, 399, loc=float(x.mean()), scale=error)
    # 10⁴ resamples know a 2.5 % quantile to √(.025·.975/10⁴)/φ(1.96) = .027 standard errors; five of these, and the sample's skewness.
    assert abs(found.low - low) < 0.15 * error
    assert abs(found.high - high) < 0.15 * error
    assert type(found.low) is float


@pytest.mark.parametrize(("statistic", "truth"), [(np.mean, 0.0), (np.median, 0.0), (np.std, 1.0)])
def test_coverage(statistic, truth):
    trials = 200
    x = normal(40, trials, seed=3)
    found = bootstrap_interval(x, statistic, generator=seeded(), level=0.9, resamples=999)
    covered = int(((found.low <= truth) & (truth <= found.high)).sum())
    # At 40 samples the bootstrap covers some per cent less than it says, most for the standard deviation.
    assert least_count(trials, 0.84) <= covered
    assert trials - covered >= least_count(trials, 0.05)


def test_a_band_is_of_tensors_and_its_constant_entries_are_points():
    x = normal(12, 2, 3)
    x[:, 0, 1] = 0.1
    found = bootstrap_interval(x, generator=seeded(), resamples=499)
    assert found.low.shape == found.high.shape == found.estimate.shape == (2, 3)
    torch.testing.assert_close(found.estimate, x.mean(0))
    assert found.low[0, 1] == found.high[0, 1] == found.estimate[0, 1]
    others = torch.ones(2, 3, dtype=torch.bool)
    others[0, 1] = False
    assert (found.low < found.estimate)[others].all()
    assert (found.estimate < found.high)[others].all()
    turned = bootstrap_interval(x.movedim(0, -1), generator=seeded(), resamples=499, axis=-1)
    torch.testing.assert_close(turned.low, found.low, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e300, 1e-320])
def test_constant_samples_are_a_point(value):
    found = bootstrap_interval(torch.full((7,), value, dtype=F64), generator=seeded(), resamples=99)
    assert found.low == found.high == found.estimate
    assert math.isclose(found.estimate, value, rel_tol=8 * EPS)


@pytest.mark.parametrize("statistic", [np.max, np.median, np.min])
@pytest.mark.parametrize("values", [[0, 0, 0, 0, 1], [0, 1], [0, 0, 1, 1], [0, 1, 2, 3, 4]])
def test_where_bca_does_not_exist_percentiles_stand_in(values, statistic):
    found = bootstrap_interval(torch.tensor(values, dtype=F64), statistic, generator=seeded(), resamples=499)
    assert min(values) <= found.low <= found.high <= max(values)


def test_paired_samples_are_resampled_together():
    x = normal(10)

    def largest_difference(a, b, axis):
        return np.abs(a - b).max(axis)

    found = bootstrap_interval((x, x + 1), largest_difference, generator=seeded(), resamples=199)
    assert abs(found.low - 1) < 1e-14
    assert abs(found.high - 1) < 1e-14


# Correlation


@given(st.integers(0, 10**6), st.integers(3, 30))
def test_correlation_is_that_of_scipy_whatever_the_scale(seed, n):
    x, y = normal(2, n, seed=seed)
    expected = stats.pearsonr(x.numpy(), y.numpy()).statistic
    tolerance = 20 * n * EPS
    assert abs(correlation(x, y) - expected) < tolerance
    assert abs(correlation(y, x) - expected) < tolerance
    assert abs(correlation(-x, 3 * y) + expected) < tolerance
    assert abs(correlation(x * 1e250, y * 1e-250) - expected) < tolerance
    assert abs(correlation(x.reshape(1, -1), y.reshape(1, -1)) - expected) < tolerance
    assert correlation(x, 2 * x + 1) > 1 - tolerance


def fisher_density(r, rho, n):
    """Of the correlation r of n normal pairs; Fisher (1915) in the form of Hotelling (1953)."""
    scale = (n - 2) * math.gamma(n - 1) / (math.sqrt(2 * math.pi) * math.gamma(n - 0.5))
    shape = (1 - rho**2) ** ((n - 1) / 2) * (1 - r**2) ** ((n - 4) / 2) * (1 - rho * r) ** (1.5 - n)
    return scale * shape * mpmath.hyp2f1(0.5, 0.5, n - 0.5, (1 + rho * r) / 2)


@pytest.mark.parametrize(("n", "level"), [(4, 0.9), (5, 0.95), (12, 0.99), (40, 0.95)])
def test_the_ends_of_a_correlation_interval_are_where_fishers_distribution_has_its_tails(n, level):
    """Which is the coverage: of all correlations those between the ends, and no others, have what was found in their middle."""
    for seed in range(2):
        x, noise = normal(2, n, seed=seed)
        found = correlation_interval(x, x + noise, level=level)
        below = mpmath.quad(lambda r, f=found: fisher_density(r, f.low, n), [-1, found.low, found.estimate])
        above = mpmath.quad(lambda r, f=found: fisher_density(r, f.high, n), [found.estimate, found.high, 1])
        assert abs(1 - below - (1 - level) / 2) < 1e-9
        assert abs(1 - above - (1 - level) / 2) < 1e-9


@pytest.mark.parametrize("n", [3, 5])
def test_few_pairs_cover_their_correlation(n):
    """Of many samples with the correlation at an end of the interval of r, the share beyond r is that of the level."""
    draws, share = 40_000, 0.05
    x = torch.tensor([1.0, 2, 4, 3, 5], dtype=F64)[:n]
    found = correlation_interval(x, x.flip(0) ** 2 - 5 * x, level=1 - 2 * share)
    a, noise = normal(2, draws, n)
    for end, sign in ((found.low, 1), (found.high, -1)):
        b = end * a + math.sqrt(1 - end**2) * noise
        r = torch.linalg.vecdot(*(z / z.norm(dim=1, keepdim=True) for z in (y - y.mean(1, keepdim=True) for y in (a, b))))
        count = int((sign * (r - found.estimate) >= 0).sum())
        assert least_count(draws, share) <= count <= draws - least_count(draws, 1 - share)


@settings(max_examples=30)  # each of two intervals
@given(st.integers(0, 10**6), st.integers(3, 30), st.sampled_from([0.5, 0.9, 0.99]))
def test_correlation_intervals_exclude_zero_where_students_test_rejects(seed, n, level):
    x, y = normal(2, n, seed=seed)
    found = correlation_interval(x, y, level=level)
    assert -1 <= found.low < found.estimate < found.high <= 1
    assert (found.low > 0 or found.high < 0) == (stats.pearsonr(x.numpy(), y.numpy()).pvalue < 1 - level)
    mirrored = correlation_interval(3 * x, 1 - y, level=level)
    assert mirrored.low == pytest.approx(-found.high, abs=1e-8)
    assert mirrored.high == pytest.approx(-found.low, abs=1e-8)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9, 0.0])
@pytest.mark.parametrize("n", [3, 5, 1000])
def test_pairs_near_a_line_have_a_correlation_near_one(n, distance):
    x = torch.arange(n, dtype=F64)
    found = correlation_interval(x, x + distance * (x % 2))
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    assert (found.low == found.high == found.estimate) if distance == 0 else 1 - found.low < 1000 * distance


# Trends


def kendall_s(samples):
    return sum(
        (high > low) - (high < low)
        for a, b in itertools.combinations(samples, 2)
        for low, high in itertools.product(a.tolist(), b.tolist())
    )


def relabelled(samples):
    """All assignments of the values to the levels, each permutation counted."""
    pooled, ends = torch.cat(samples), list(itertools.accumulate(map(len, samples)))
    for order in itertools.permutations(range(len(pooled))):
        shuffled = pooled[list(order)]
        yield [shuffled[end - len(x) : end] for end, x in zip(ends, samples, strict=True)]


@given(st.lists(whole_numbers(1, 2), min_size=2, max_size=3).filter(lambda s: 3 <= sum(map(len, s)) <= 5))
def test_trend_is_exact_where_it_can_be(samples):
    observed = kendall_s(samples)
    null = np.array([kendall_s(s) for s in relabelled(samples)])
    for alternative, expected in (("greater", np.mean(null >= observed)), ("less", np.mean(null <= observed))):
        assert math.isclose(trend(samples, generator=seeded(), alternative=alternative).p_value, expected, rel_tol=1e-12)
    found = trend(samples, generator=seeded())
    assert math.isclose(found.p_value, min(1, 2 * min(np.mean(null >= observed), np.mean(null <= observed))), rel_tol=1e-12)
    pairs = math.comb(sum(map(len, samples)), 2)
    within = sum(math.comb(len(x), 2) for x in samples)
    ties = sum(math.comb(int(c), 2) for c in torch.cat(samples).unique(return_counts=True)[1])
    expected = observed / math.sqrt((pairs - within) * (pairs - ties)) if pairs > ties else 0
    assert math.isclose(found.tau, expected, rel_tol=1e-12, abs_tol=1e-12)


@given(st.integers(0, 1000), st.integers(2, 4), st.integers(1, 3))
def test_what_a_trend_depends_on(seed, count, runs):
    samples = list(normal(count, runs + 1, seed=seed))
    levels = [0.5 * 2**i for i in range(count)]
    found = trend(samples, levels, generator=seeded(), resamples=99)
    assert found.slope.low <= found.slope.estimate <= found.slope.high
    monotone = trend([x.exp() for x in samples], [level**2 for level in levels], generator=seeded(), resamples=99)
    assert (monotone.tau, monotone.p_value) == (found.tau, found.p_value)
    scaled = trend([4 * x for x in samples], [2 * level for level in levels], generator=seeded(), resamples=99)
    assert [scaled.slope.low, scaled.slope.estimate, scaled.slope.high] == [
        2 * found.slope.low,
        2 * found.slope.estimate,
        2 * found.slope.high,
    ]
    down = trend([-x for x in samples], levels, generator=seeded())
    assert math.isclose(down.tau, -found.tau, rel_tol=1e-12)
    assert down.slope.estimate == -found.slope.estimate


def test_p_values_are_not_too_small_without_a_trend_and_small_with_one():
    trials = 150
    found = [trend(list(normal(3, 3, seed=seed)), generator=seeded(seed), resamples=1680).p_value for seed in range(trials)]
    assert sum(p <= 0.1 for p in found) <= trials - least_count(trials, 0.9)
    steep = [torch.arange(3, dtype=F64) + 10 * i for i in range(3)]
    assert trend(steep, generator=seeded(), resamples=1680).p_value == 2 / 1680
    assert trend(steep, generator=seeded(), resamples=199, alternative="greater").p_value == 1 / 200  # by chance: the observed counts
    assert trend(steep, generator=seeded(), resamples=199, alternative="less").p_value == 1


def test_values_that_are_all_alike_have_no_trend():
    found = trend([torch.ones(3), torch.ones(2)], generator=seeded())
    assert (found.tau, found.p_value, found.slope) == (0.0, 1.0, Interval(0.0, 0.0, 0.0, 0.95))


@pytest.mark.parametrize("counts", [[2, 2], [1, 1, 1], [1, 3], [2, 1, 3]])
def test_how_many_pairs_rise_is_counted_over_all_orders(counts):
    samples = torch.arange(sum(counts), dtype=F64).split(counts)
    orders = list(relabelled(samples))
    pairs = sum(a * b for a, b in itertools.combinations(counts, 2))
    expected = np.bincount([(pairs + kendall_s(order)) // 2 for order in orders], minlength=pairs + 1)
    assert (np.array(rising_pairs(counts)) * math.prod(map(math.factorial, counts)) == expected).all()


def test_sens_interval_covers_what_it_says_or_is_infinite():
    """SciPy's, of normal counts, covers 69 % by two runs at each of two levels, where no interval of ordered slopes has 95 %."""
    trials, x = 1000, np.repeat([1.0, 2.0, 4.0], 2)
    rng = np.random.default_rng(0)
    found = [sen_slope(x, 0.5 * x + rng.exponential(size=6), 0.9) for _ in range(trials)]
    covered = sum(interval.low <= 0.5 <= interval.high for interval in found)
    ways = rising_pairs([2, 2, 2])
    exact = 1 - 2 * max(total for total in itertools.accumulate(ways) if total <= 0.05 * sum(ways)) / sum(ways)
    assert exact >= 0.9
    assert least_count(trials, exact) <= covered <= trials - least_count(trials, 1 - exact)
    few = sen_slope(np.repeat([0.0, 1.0], 2), np.array([0.0, 0.1, 1.0, 1.1]), 0.95)
    assert (few.low, few.estimate, few.high) == (-math.inf, 1.0, math.inf)
    many = rng.normal(size=60)
    at = np.repeat(np.arange(6.0), 10)
    expected = stats.theilslopes(many, at, 0.95)  # of so many the two agree but for a step or two of 1,500 slopes
    interval = sen_slope(at, many, 0.95)
    assert interval.estimate == pytest.approx(expected.slope, rel=1e-12)
    assert (interval.low, interval.high) == pytest.approx((expected.low_slope, expected.high_slope), abs=0.01)


# Runs and images


def effects(design, runs, images, sizes, kind, seed, trials):
    """Values of mean 0: an effect of each run, of each image (of each run's own, where it is nested), and of both together."""
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        z = rng.standard_normal((*shape, trials))
        return z if kind == "normal" else np.exp(z) - math.sqrt(math.e)

    image = drawn(1 if design == "crossed" else runs, images)
    return torch.from_numpy(sizes[0] * drawn(runs, 1) + sizes[1] * image + sizes[2] * rng.standard_normal((runs, images, trials)))


@pytest.mark.parametrize("design", ["crossed", "nested"])
@pytest.mark.parametrize("runs", [2, 3, 12])
@pytest.mark.parametrize("sizes", [(1, 0.5, 0.2), (1, 4, 1), (0.05, 4, 1)], ids=["runs", "both", "images"])
def test_few_runs_at_common_images_are_covered(design, runs, sizes):
    """The level at least.  Resampling runs, and then images in each, covers 40 to 81 % of the crossed ones at a nominal 95 %."""
    trials = 2000
    found = crossed_interval(effects(design, runs, 12, sizes, "normal", runs, trials), level=0.9)
    assert int(((found.low <= 0) & (found.high >= 0)).sum()) >= least_count(trials, 0.9)


@pytest.mark.parametrize(("runs", "least"), [(3, 0.8), (12, 0.8)])
def test_skewed_runs_are_covered_less(runs, least):
    """Log-normal effects, nominal 95 %: .87 and .88, where the bootstrap covers .64 and .76, and Student's over runs alone .83 and .80."""
    trials = 2000
    found = crossed_interval(effects("crossed", runs, 12, (1, 0.5, 0.2), "skewed", runs, trials))
    assert int(((found.low <= 0) & (found.high >= 0)).sum()) >= least_count(trials, least)


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(2, 5))
def test_the_interval_of_a_mean_is_two_of_students(seed, runs, images):
    """At a single image Student's alone; else the squares of the half-widths add."""
    values = normal(runs, images, seed=seed)
    found = crossed_interval(values)
    halves = [(part.high - part.low) / 2 for part in (mean_interval(values.mean(1)), mean_interval(values.mean(0)))]
    assert math.isclose((found.high - found.low) / 2, math.hypot(*halves), rel_tol=1e-9)
    assert math.isclose(found.high + found.low, 2 * float(values.mean()), rel_tol=1e-9, abs_tol=1e-12)
    alone = crossed_interval(values[:, :1])
    assert (alone.low, alone.high) == pytest.approx(attrgetter("low", "high")(mean_interval(values[:, 0])), rel=1e-9)


def test_crossed_intervals_of_curves_and_of_statistics():
    values = normal(4, 5, 3)
    found = crossed_interval(values)
    torch.testing.assert_close(found.estimate, values.mean((0, 1)))
    assert (found.low < found.high).all()
    one = crossed_interval(values[..., 1])
    assert (float(found.low[1]), float(found.high[1])) == pytest.approx((one.low, one.high), rel=1e-12)
    ratio = crossed_interval(values.exp(), lambda sample: sample[..., 0].mean() / sample[..., 1].mean())
    scaled = crossed_interval(values.exp() * torch.tensor([6.0, 2.0, 1.0]), lambda sample: sample[..., 0].mean() / sample[..., 1].mean())
    assert (scaled.low, scaled.high) == pytest.approx((3 * ratio.low, 3 * ratio.high), rel=1e-12)
    constant = crossed_interval(torch.ones(2, 3))
    assert constant.low == constant.high == constant.estimate == 1
    assert crossed_interval(values[..., 0], level=0.99).high > crossed_interval(values[..., 0], level=0.9).high


# Differences


@given(whole_numbers(2, 4), whole_numbers(2, 4))
def test_permutation_test_is_enumeration(a, b):
    pooled = torch.cat([a, b]).tolist()
    chosen = [set(c) for c in itertools.combinations(range(len(pooled)), len(a))]
    null = [sum(pooled[i] for i in c) / len(a) - sum(v for i, v in enumerate(pooled) if i not in c) / len(b) for c in chosen]
    observed = float(a.mean() - b.mean())
    above, below = (np.mean([sign * (value - observed) >= -1e-9 for value in null]) for sign in (1, -1))
    found = {
        alternative: permutation_test(a, b, generator=seeded(), alternative=alternative) for alternative in ("greater", "less", "two-sided")
    }
    assert math.isclose(found["greater"].estimate, observed, abs_tol=1e-12)
    assert math.isclose(found["greater"].p_value, above, rel_tol=1e-12)
    assert math.isclose(found["less"].p_value, below, rel_tol=1e-12)
    assert math.isclose(found["two-sided"].p_value, min(1, 2 * min(above, below)), rel_tol=1e-12)


# Distances


@st.composite
def curves(draw, count=2):
    n = draw(st.integers(2, 12))
    radii = torch.tensor(draw(st.lists(st.floats(0.01, 5), min_size=n, max_size=n)), dtype=F64).cumsum(0)
    positive = st.lists(st.floats(1e-3, 1e3), min_size=n, max_size=n)
    return [torch.tensor(draw(positive), dtype=F64) for _ in range(count)], radii


@given(curves(count=3), st.integers(-300, 300))
def test_laws_of_distances(drawn, exponent):
    (p, q, other), r = drawn
    tolerance = 100 * EPS
    for distance in DISTANCES:
        assert distance(p, q, r) >= 0
        assert distance(p, p, r) == 0
        assert math.isclose(distance(p * 2.0**exponent, q, r), distance(p, q, r), rel_tol=tolerance, abs_tol=tolerance)
    assert total_variation(p, q, r) == total_variation(q, p, r)
    assert cosine_distance(p, q, r) == cosine_distance(q, p, r)
    assert total_variation(p, q, r) <= total_variation(p, other, r) + total_variation(other, q, r) + tolerance
    assert 2 * total_variation(p, q, r) ** 2 <= kl_divergence(p, q, r) + tolerance  # Pinsker
    assert total_variation(p, q, r) <= 1 + tolerance
    assert cosine_distance(p, q, r) <= 1 + tolerance
    assert r[0] * (1 - tolerance) <= first_moment(p, r) <= r[-1] * (1 + tolerance)
    moment = first_moment(p, r)
    assert math.isclose(first_moment(p, 2 * r + 1), 2 * moment + 1, rel_tol=tolerance)


@given(curves())
def test_distances_by_the_trapezoidal_rule(drawn):
    (p, q), r = (([x.numpy() for x in drawn[0]]), drawn[1].numpy())
    x, y = p / np.trapezoid(p, r), q / np.trapezoid(q, r)
    rtol = 1e3 * EPS
    size = np.trapezoid(x * np.abs(np.log(x / y)), r)
    assert math.isclose(kl_divergence(*drawn[0], drawn[1]), np.trapezoid(x * np.log(x / y), r), abs_tol=rtol * max(size, 1))
    assert math.isclose(total_variation(*drawn[0], drawn[1]), np.trapezoid(np.abs(x - y), r) / 2, abs_tol=rtol)
    cosine = np.trapezoid(x * y, r) / math.sqrt(np.trapezoid(x * x, r) * np.trapezoid(y * y, r))
    assert math.isclose(cosine_distance(*drawn[0], drawn[1]), 1 - cosine, abs_tol=rtol)
    assert math.isclose(first_moment(drawn[0][0], drawn[1]), np.trapezoid(r * x, r), rel_tol=rtol)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9])
def test_small_distances_keep_their_digits(size):
    r = torch.linspace(0, 3, 20, dtype=F64)
    p, q = 1 + r, (1 + r) * (1 + size * torch.cos(r))
    with mpmath.workdps(50):
        numbers = [[mpmath.mpf(v) for v in curve.tolist()] for curve in (p, q, r)]
        weights = [(numbers[2][min(i + 1, 19)] - numbers[2][max(i - 1, 0)]) / 2 for i in range(20)]
        x, y = ([w * v for w, v in zip(weights, curve, strict=True)] for curve in numbers[:2])
        x, y = [v / mpmath.fsum(x) for v in x], [v / mpmath.fsum(y) for v in y]
        divergence = float(mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(x, y, strict=True)))
        dots = [mpmath.fsum(a * b / w for a, b, w in zip(s, t, weights, strict=True)) for s, t in ((x, y), (x, x), (y, y))]
        angle = float(1 - dots[0] / mpmath.sqrt(dots[1] * dots[2]))
    # A curve is known to ε, its difference to ε/size, and both distances are squares of it.
    assert math.isclose(kl_divergence(p, q, r), divergence, rel_tol=100 * EPS / size)
    assert math.isclose(cosine_distance(p, q, r), angle, rel_tol=100 * EPS / size)


def test_curves_that_vanish_somewhere():
    r = torch.tensor([0.0, 1.0, 3.0])
    left, right, both = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.5])
    assert kl_divergence(left, right, r) == math.inf
    assert total_variation(left, right, r) == cosine_distance(left, right, r) == 1
    assert math.isclose(kl_divergence(left, both, r), math.log(2))
    assert kl_divergence(both, left, r) == math.inf
    assert math.isclose(first_moment(both, r), 1.5)


# Bad input


X = torch.arange(5.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda g: bootstrap_interval(torch.tensor([1.0, math.nan]), generator=g), ValueError, "samples: expected finite numbers"),
        (lambda g: bootstrap_interval([1.0, 2.0], generator=g), TypeError, "samples: expected a torch tensor"),
        (lambda g: bootstrap_interval(torch.ones(1), generator=g), ValueError, "samples: expected at least two"),
        (lambda g: bootstrap_interval((X, X[:2]), generator=g), ValueError, "samples: expected one tensor or several of one shape"),
        (lambda g: bootstrap_interval((), generator=g), ValueError, "samples: expected one tensor"),
        (lambda g: bootstrap_interval(X, generator=g, axis=1), ValueError, "axis: expected one of the 1 axes"),
        (lambda g: bootstrap_interval(X, generator=g, level=95), ValueError, "level: expected a confidence"),
        (lambda g: bootstrap_interval(X, generator=g, level=1.0), ValueError, "level: expected a confidence"),
        (lambda g: bootstrap_interval(X, generator=g, resamples=0), ValueError, "resamples: expected a positive integer"),
        (lambda g: bootstrap_interval(X, generator=0), TypeError, "generator: expected a torch.Generator"),
        (lambda g: bootstrap_interval(X, lambda x, axis: x.sum(axis) * np.nan, generator=g), ValueError, "statistic: not finite"),
        (lambda g: correlation(X, X[:3]), ValueError, "a, b: expected one shape"),
        (lambda g: correlation(X[:2], X[:2]), ValueError, "a, b: expected one shape with at least three"),
        (lambda g: correlation(X, torch.ones(5)), ValueError, "b: expected entries that are not all alike, got 1 5 times"),
        (lambda g: correlation(torch.zeros(5), X), ValueError, "a: expected entries that are not all alike"),
        (lambda g: correlation(1 + EPS * X.double(), X.double()), ValueError, "a: expected entries that are not all alike"),
        (lambda g: correlation_interval(X, X.expand(2, 5)), ValueError, "a, b: expected one shape"),
        (lambda g: correlation_interval(X[:2], X[:2]), ValueError, "a, b: expected one shape with at least three"),
        (lambda g: correlation_interval(X, X, level=95), ValueError, "level: expected a confidence"),
        (lambda g: trend([X], generator=g), ValueError, "values_by_level: expected two levels or more"),
        (lambda g: trend([X[:1], X[:1]], generator=g), ValueError, "values_by_level: expected two levels or more and three values"),
        (lambda g: trend([X, X[:0]], generator=g), ValueError, r"values_by_level\[1\]: expected data"),
        (lambda g: trend([X, X], [1.0], generator=g), ValueError, "values_by_level: expected two levels or more"),
        (lambda g: trend([X, X], [1.0, 1.0], generator=g), ValueError, "levels: expected finite numbers that increase"),
        (lambda g: trend([X, X], [0.0, math.nan], generator=g), ValueError, "levels: expected finite numbers"),
        (lambda g: trend([X, X], generator=g, alternative="up"), ValueError, "alternative: expected"),
        (lambda g: crossed_interval(X), ValueError, r"values: expected \(runs, images"),
        (lambda g: crossed_interval(X[None]), ValueError, "values: expected .* two runs or more"),
        (lambda g: crossed_interval(X.expand(2, 5), lambda x: x.mean() * math.inf), ValueError, "statistic: not finite"),
        (lambda g: crossed_interval(X.expand(2, 5), lambda x: 1 / (x.mean() - 2.5)), ValueError, "statistic: .* without one of the images"),
        (lambda g: crossed_interval(X.expand(2, 5), level=95), ValueError, "level: expected a confidence"),
        (lambda g: permutation_test(X, X[:1], generator=g), ValueError, "a, b: expected at least two values each, got 5 and 1"),
        (lambda g: permutation_test(X, X, generator=g, alternative="more"), ValueError, "alternative: expected"),
        (lambda g: kl_divergence(X, X, X.flip(0)), ValueError, "radii: expected two or more ascending"),
        (lambda g: kl_divergence(X[:1], X[:1], X[:1]), ValueError, "radii: expected two or more"),
        (lambda g: total_variation(X - 1, X, X), ValueError, "p: expected 5 numbers ≥ 0"),
        (lambda g: cosine_distance(X, 0 * X, X), ValueError, "q: expected 5 numbers ≥ 0, not all 0"),
        (lambda g: first_moment(X[:3], X), ValueError, r"p: expected 5 numbers .* got shape \(3,\)"),
        (lambda g: first_moment(X * math.inf, X), ValueError, "p: expected finite numbers"),
    ],
)
def test_bad_input(act, error, message):
    with pytest.raises(error, match=message):
        act(seeded())


@given(st.integers(0, 1000), st.integers(2, 9))
def test_leaving_out_one_gives_students_interval_of_a_mean(seed, n):
    x = normal(n, seed=seed)
    found, expected = jackknife_interval(float(x.mean()), (x.sum() - x) / (n - 1)), mean_interval(x)
    assert (found.low, found.estimate, found.high) == pytest.approx((expected.low, expected.estimate, expected.high), abs=1e-12)


def test_leaving_out_needs_two_values():
    with pytest.raises(ValueError, match="left_out: expected the values of two samples or more, got 1"):
        jackknife_interval(1.0, torch.ones(1))


@pytest.mark.parametrize("n", [2, 3, 12])
def test_students_interval_is_scipys_and_covers_what_it_says(n: int) -> None:
    """Of 2,000 normal samples the share whose interval covers the mean is within four standard errors of the level."""
    generator = torch.Generator().manual_seed(n)
    draws = torch.randn(2000, n, dtype=torch.float64, generator=generator)
    intervals = [mean_interval(row, level=0.9) for row in draws]
    first = draws[0].numpy()
    expected = stats.t.interval(0.9, n - 1, loc=first.mean(), scale=stats.sem(first))
    assert (intervals[0].low, intervals[0].high) == pytest.approx(expected, rel=1e-12)
    covered = sum(found.low <= 0 <= found.high for found in intervals) / 2000
    assert abs(covered - 0.9) < 4 * (0.09 / 2000) ** 0.5
    point = mean_interval(torch.ones(n, dtype=torch.float64))
    assert (point.low, point.high) == (1, 1)


@pytest.mark.usefixtures("unchecked")
def test_students_interval_needs_two_numbers() -> None:
    with pytest.raises(ValueError, match="samples: expected at least two, got 1"):
        mean_interval(torch.ones(1))
    with pytest.raises(ValueError, match="samples: expected finite"):
        mean_interval(torch.tensor([1.0, math.nan]))
