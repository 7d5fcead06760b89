"""The optimum: brackets that nothing leaves, independent witnesses, stationarity, exact decoupled cases, wrong variants, bad input."""

import importlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linconv.cost import minimal_network, representation_cost
from linconv.images import center, load
from linconv.network import LinearCNN, circular_convolution
from linconv.penalties import Schatten, shrink
from linconv.solvers import Solution, fit, fit_path
from linconv.solvers.decoupled import decoupled, stationary_shifts
from linconv.solvers.portfolio import portfolio
from linconv.solvers.problem import Problem
from linconv.solvers.reduction import certify, least_squares, reduce
from linconv.solvers.ridge import ridge
from linconv.spectrum import FrequencyBlocks
from linconv.training import train
from linconv.witnesses import dense_network, depth_two_programme, one_output_optimum, ridge_optimum, scalar_optimum

# `linconv.solvers.nuclear` is a function of the package that hides the module of the same name.
nuclear_module, solvers_module = (importlib.import_module(name) for name in ("linconv.solvers.nuclear", "linconv.solvers"))

pytestmark = pytest.mark.usefixtures("hasty")
F64 = torch.float64
ROUNDING = 1e-12
GRIDS = [(5,), (4,), (1,), (3, 4), (2, 2), (2, 3, 2)]


# --- Data --------------------------------------------------------------------------------------------------------------


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def whitened(n, channels, grid, seed=0):
    """Images whose second moment is the identity, up to rounding."""
    basis, _ = torch.linalg.qr(normal(n, channels * math.prod(grid), seed=seed))
    return (basis * math.sqrt(n)).reshape(n, channels, *grid)


def coloured(n, channels, grid, seed=0):
    """Whitened images filtered alike in every channel: second moment s_u·I, no cross-frequency terms."""
    kernel = torch.zeros(channels, channels, *grid, dtype=F64)
    kernel[range(channels), range(channels)] = normal(*grid, seed=seed + 100) / 2
    kernel[(range(channels), range(channels), *[0] * len(grid))] += 2
    return circular_convolution(whitened(n, channels, grid, seed), kernel)


def mixed(n, channels, grid, seed=0):
    """Whitened images through a random convolution that mixes channels: S_u = W_u W_u†, no cross-frequency terms."""
    return circular_convolution(whitened(n, channels, grid, seed), normal(channels, channels, *grid, seed=seed + 200))


def natural(n, channels, grid, exponent=1.0, seed=0):
    """Images with a spectrum that falls as |u|^−exponent, as that of photographs does."""
    squares = torch.zeros(grid, dtype=F64)
    for dim, size in enumerate(grid):
        squares = squares + (torch.fft.fftfreq(size, dtype=F64) * size).square().reshape([-1 if d == dim else 1 for d in range(len(grid))])
    spatial = tuple(range(2, 2 + len(grid)))
    spectrum = torch.fft.fftn(normal(n, channels, *grid, seed=seed), dim=spatial) / (1 + squares.sqrt()) ** exponent
    return torch.fft.ifftn(spectrum, dim=spatial).real


def labels(x, outputs, noise=0.3, seed=0):
    """Linear labels with noise."""
    beta = normal(outputs, x[0].numel(), seed=seed + 300) / math.sqrt(x[0].numel())
    return x.flatten(1) @ beta.T + noise * normal(len(x), outputs, seed=seed + 400)


DATA = {
    "gaussian": lambda: normal(20, 2, 3),
    "whitened": lambda: whitened(20, 2, (3, 2)),
    "coloured": lambda: coloured(20, 2, (2, 3)),
    "mixed": lambda: mixed(20, 2, (5,)),
    "natural": lambda: natural(20, 2, (2, 3)),
    "fewer images than numbers": lambda: normal(4, 2, 3),
    "one image": lambda: normal(1, 2, 4),
    "constant images": lambda: normal(6, 2, 1, 1).expand(6, 2, 3, 2).contiguous(),
    "one constant image": lambda: torch.ones(1, 1, 4, dtype=F64),
    "one channel": lambda: natural(20, 1, (3, 3)),
    "one site": lambda: normal(10, 3, 1),
    "one number": lambda: normal(10, 1, 1),
    "two numbers": lambda: normal(10, 1, 2),
    "centred": lambda: (lambda x: x - x.mean(dim=(2,), keepdim=True))(normal(30, 2, 4)),
    "three dimensions": lambda: natural(30, 1, (2, 3, 2)),
}


# --- Independent values ------------------------------------------------------------------------------------------------


def space_objective(weights, x, y, decay):
    """F of a network, from dense matrices of its layers in NumPy."""
    arrays = [w.detach().double().numpy() for w in weights]
    outputs = x.double().flatten(1).numpy() @ dense_network(arrays, tuple(x.shape[2:])).T
    return float(((outputs - y.double().numpy()) ** 2).sum() / (2 * len(x)) + decay * sum((w**2).sum() for w in arrays))


def stationarity(beta, x, y, depth, decay):
    """Distance of the predictor to stationarity relative to the gradient of the data term at 0, in NumPy but for the subdifferential.

    In blocks V_u = conj(β̂_u) the penalty is (λL/D)‖V‖_{S_p}^p, and the gradient of the data term conj(∇̂_u)/D.
    """
    flat, target, n = x.flatten(1).numpy(), y.numpy(), len(x)

    def gradient(at):
        slope = (at.reshape(len(at), -1) @ flat.T - target.T) @ flat / n
        return np.moveaxis(np.conj(np.fft.fftn(slope.reshape(at.shape), axes=range(2, at.ndim))), (0, 1), (-2, -1)) / (decay * depth)

    blocks = FrequencyBlocks.from_predictor(beta).values
    distance = Schatten(2 / depth).stationarity(blocks, torch.from_numpy(gradient(beta.numpy())))
    return float(distance) / np.linalg.norm(gradient(np.zeros_like(beta.numpy())))


def value_of(beta, x, y, depth, decay):
    """F of a predictor: that of its minimal network."""
    return space_objective(minimal_network(beta, depth).weights, x, y, decay)


def assert_bracket(solution, x, y, depth, decay):
    """What holds for every solution of labels that are not 0."""
    assert 0 < solution.lower_bound <= solution.objective * (1 + ROUNDING) < math.inf
    assert solution.predictor.shape == (y.shape[1], *x.shape[1:])
    assert solution.objective == pytest.approx(value_of(solution.predictor, x, y, depth, decay), rel=1e-10)


# --- The bracket -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_bracket_and_objective_on_every_kind_of_data(name, depth):
    x = DATA[name]()
    y = labels(x, 2)
    solution = fit(x, y, depth=depth, weight_decay=0.03)
    assert_bracket(solution, x, y, depth, 0.03)
    if depth <= 2 or solution.method.startswith("decoupled"):
        assert abs(solution.gap) <= (1e-8 if solution.method == "nuclear norm" else 1e-11)
        assert stationarity(solution.predictor, x, y, depth, 0.03) <= (1e-3 if solution.method == "nuclear norm" else 1e-10)
    else:
        assert stationarity(solution.predictor, x, y, depth, 0.03) <= 1e-5
    assert solution.objective <= value_of(torch.zeros_like(solution.predictor), x, y, depth, 0.03) * (1 + ROUNDING)


@settings(max_examples=15)
@given(st.data())
def test_no_predictor_leaves_the_bracket(data):
    grid = data.draw(st.sampled_from(GRIDS))
    depth, seed = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 10**6))
    channels, outputs, n = (data.draw(st.integers(1, top)) for top in (2, 3, 30))
    kind = data.draw(st.sampled_from([normal, natural, whitened, coloured, mixed]))
    if kind is normal:
        x = normal(n, channels, *grid, seed=seed)
    else:
        x = kind(n if kind is natural else channels * math.prod(grid) + n, channels, grid, seed=seed)
    y, decay = labels(x, outputs, seed=seed), 10 ** data.draw(st.floats(-3, 0.5))
    solution = fit(x, y, depth=depth, weight_decay=decay, tol=1e-6)
    assert_bracket(solution, x, y, depth, decay)
    floor = solution.lower_bound * (1 - ROUNDING)
    others = [normal(*solution.predictor.shape, seed=seed + k) * 10**-k for k in range(3)]
    others += [solution.predictor * factor for factor in (0.5, 0.99, 1.01)]
    others += [solution.predictor + 10**-k * others[0] for k in range(1, 5)]
    assert all(value_of(beta, x, y, depth, decay) >= floor for beta in others)
    net = LinearCNN(channels, [data.draw(st.integers(1, 3)) for _ in range(depth - 1)], outputs, grid)
    for weight in net.weights:
        weight.data = normal(*weight.shape, seed=seed) * 0.5
    assert space_objective(net.weights, x, y, decay) >= floor


@pytest.mark.parametrize("name", ["gaussian", "whitened", "coloured", "mixed", "natural"])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_no_training_leaves_the_bracket(name, depth):
    x = DATA[name]()
    y = labels(x, 1 if name == "mixed" else 2)
    solution = fit(x, y, depth=depth, weight_decay=0.02)
    linear = fit(x, y, depth=1, weight_decay=0.02).predictor
    nets = [minimal_network(linear, depth), minimal_network(solution.predictor, depth)]
    nets += [
        LinearCNN(2, (3,) * (depth - 1), y.shape[1], tuple(x.shape[2:]), scale=s, generator=torch.Generator().manual_seed(1))
        for s in (0.5, 1.0)
    ]
    reached = []
    for net in nets:
        train(net, x, y, weight_decay=0.02, steps=8)
        reached.append(space_objective(net.weights, x, y, 0.02))
    assert min(reached) >= solution.lower_bound * (1 - ROUNDING)
    exact = depth == 2 or solution.method.startswith("decoupled")
    # From the solution nothing is gained: what descent leaves is of the size of rounding.
    assert reached[1] >= solution.objective * (1 - (1e-8 if depth == 2 else 1e-11))
    if exact:
        assert min(reached) == pytest.approx(solution.objective, rel=1e-8)


@pytest.mark.parametrize("n", [1, 4, 9])
@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("decay", [0.02])
def test_root_relaxation_on_two_to_four_sites_against_many_starts(n, depth, decay):
    for seed in (n % 2,):
        sites = 2 + (n + depth + seed) % 3
        x = normal(n, 1 + seed, sites, seed=n + seed) + seed
        y = labels(x, 2, seed=depth)
        solution = fit(x, y, depth=depth, weight_decay=decay)
        for start in range(2):
            generator = torch.Generator().manual_seed(start)
            net = LinearCNN(1 + seed, (2,) * (depth - 1), 2, (sites,), scale=0.4 + 0.4 * start, generator=generator)
            train(net, x, y, weight_decay=decay, steps=4)
            assert space_objective(net.weights, x, y, decay) >= solution.lower_bound * (1 - ROUNDING)


# --- Witnesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("decay", [1e-3, 1.0])
def test_ridge_against_augmented_least_squares(name, decay):
    x = DATA[name]()
    y = labels(x, 3)
    beta = fit(x, y, depth=1, weight_decay=decay).predictor.numpy()
    expected = ridge_optimum(x.numpy(), y.numpy(), decay)
    assert np.abs(beta - expected).max() <= 1e-10 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["gaussian", "one image", "constant images", "centred", "one number", "fewer images than numbers"])
@pytest.mark.parametrize("decay", [1e-14, 1e-9, 1e-5])
def test_ridge_with_a_tiny_weight_decay(name, decay):
    """Singular data lose nothing to rounding, and the dual bound stays tight."""
    x = torch.cat([DATA[name]()] * 2)  # no image occurs once: the N×N system is singular
    y = labels(x, 2)
    solution = fit(x, y, depth=1, weight_decay=decay)
    assert_bracket(solution, x, y, 1, decay)
    assert abs(solution.gap) <= 1e-11
    flat, beta = x.flatten(1), solution.predictor.flatten(1)
    gradient = (beta @ flat.T - y.T) @ flat / len(x) + 2 * decay * beta
    assert float(gradient.norm()) <= 1e-12 * float((y.T @ flat / len(x)).norm())


def test_ridge_of_singular_data_when_the_decay_is_lost_to_rounding():
    x = torch.cat([normal(10, 2, 3, 4)] * 2)
    y = labels(x, 2)
    for decay in (1e-18, 1e-30):
        solution = fit(x, y, depth=1, weight_decay=decay)
        expected = np.linalg.lstsq(x.flatten(1).numpy(), y.numpy(), rcond=1e-13)[0].T
        assert np.abs(solution.predictor.flatten(1).numpy() - expected).max() <= 1e-12
        assert 0 < solution.lower_bound <= solution.objective * (1 + ROUNDING)


@settings(max_examples=6)
@given(
    st.integers(0, 10**6),
    st.sampled_from([((2,), 1, 1), ((3,), 2, 1), ((4,), 1, 2), ((2, 2), 1, 2), ((2,), 2, 3), ((3,), 2, 2)]),
    st.integers(1, 12),
    st.floats(-3, 0),
)
def test_depth_two_against_cvxpy(seed, shape, n, exponent):
    grid, channels, outputs = shape
    x = normal(n, channels, *grid, seed=seed)
    y, decay = labels(x, outputs, seed=seed), 10**exponent
    solution = fit(x, y, depth=2, weight_decay=decay, tol=1e-9)
    expected = depth_two_programme(x.numpy(), y.numpy(), decay)
    assert solution.objective == pytest.approx(expected, rel=1e-6)
    assert solution.lower_bound == pytest.approx(expected, rel=1e-6)


def test_depth_two_to_a_small_gap_is_stationary():
    x = natural(60, 2, (3, 4))
    y = labels(x, 3)
    solution = fit(x, y, depth=2, weight_decay=0.05, tol=1e-13)
    assert solution.method == "nuclear norm"
    assert abs(solution.gap) <= 1e-13
    assert stationarity(solution.predictor, x, y, 2, 0.05) <= 1e-6


@pytest.mark.parametrize(("exponent", "decay"), [(1.0, 1e-2), (1.0, 1e-5), (2.0, 1e-3)])
def test_depth_two_reaches_its_gap_on_spectra_of_photographs(exponent, decay):
    x = natural(100, 1, (8, 8), exponent)
    solution = fit(x, labels(x, 3), depth=2, weight_decay=decay)
    assert solution.gap <= 1e-8


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
@pytest.mark.parametrize(("make", "channels", "outputs"), [(whitened, 2, 3), (coloured, 2, 2), (coloured, 1, 3), (mixed, 1, 2)])
def test_decoupled_components_against_a_dense_search(make, channels, outputs, depth):
    x = make(24, channels, (2, 3))
    y, decay = labels(x, outputs), 0.02
    solution = fit(x, y, depth=depth, weight_decay=decay)
    assert solution.method == "decoupled, scalar thresholding"
    mu, p = decay * depth * 6 ** (1 / depth - 1), 2 / depth
    spectra = np.fft.fft2(x.numpy(), norm="ortho")
    total = float(y.square().sum()) / (2 * len(x))
    found = FrequencyBlocks.from_predictor(solution.predictor).singular_values() / math.sqrt(6)
    for u in np.ndindex(2, 3):
        images = spectra[:, :, u[0], u[1]]
        s = float((np.abs(images) ** 2).mean())
        for i, g in enumerate(np.linalg.svd(y.numpy().T @ images.conj() / len(x), compute_uv=False)):
            t, value = scalar_optimum(s, float(g), mu, p, digits=20)
            total += value
            assert float(found[u][i]) == pytest.approx(t, rel=1e-6, abs=1e-12)
    assert solution.objective == pytest.approx(total, rel=1e-11)
    assert solution.lower_bound == pytest.approx(total, rel=1e-11)


@pytest.mark.parametrize("depth", [3, 4])
def test_every_flipped_choice_of_a_component_is_worse(depth):
    x = coloured(24, 2, (5,), seed=3)
    y, decay = labels(x, 2, seed=3), 0.03
    solution = fit(x, y, depth=depth, weight_decay=decay)
    linear = FrequencyBlocks.from_predictor(fit(x, y, depth=1, weight_decay=1e-12).predictor)
    blocks = FrequencyBlocks.from_predictor(solution.predictor).values
    s = torch.fft.fft(x, dim=-1, norm="ortho").abs().square().mean(dim=(0, 1))
    flipped = 0
    for u in range(3):
        left, m, right = torch.linalg.svd(linear.values[u], full_matrices=False)
        for i in range(2):
            kept = torch.linalg.svdvals(blocks[u])
            component = (left[:, i, None] @ right[i, None]) * m[i]
            if float(kept[i]) > 0:
                component = -component / m[i] * kept[i]
            else:  # the large root, where there is one: a local minimum along the component
                values = torch.linspace(0.01, 1, 2000, dtype=F64) * m[i]
                scalar = 0.5 * s[u] * (values - m[i]).square() / 5 + decay * depth / 5 * values ** (2 / depth)
                component = component / m[i] * values[1000:][scalar[1000:].argmin()]
            other = blocks.clone()
            other[u] += component
            other[-u % 5] = other[u].conj()
            assert value_of(FrequencyBlocks(other).predictor(), x, y, depth, decay) > solution.objective * (1 + 1e-6)
            flipped += 1
    assert flipped == 6


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_thresholds_of_a_component(depth):
    """m* decides survival and m_loc whether a nonzero local minimum exists; their ratio has no parameter but the depth."""
    sites, s, decay = 6, 1.7, 0.01
    x = whitened(12, 1, (2, 3)) * math.sqrt(s)
    jump = sites**-0.5 * (depth - 1) / (depth - 2) * (2 * decay * (depth - 2) / s) ** (depth / (2 * (depth - 1)))
    ratio = 0.5 * depth ** (depth / (2 * (depth - 1)))
    assert ratio == pytest.approx({3: 1.14, 4: 1.26, 6: 1.47}[depth], abs=5e-3)

    def problem(m):
        beta = torch.full((1, 1, 2, 3), m / math.sqrt(sites), dtype=F64)  # its block at frequency 0 is m, all others are 0
        return beta, x.flatten(1) @ beta.flatten(1).T

    for factor, survives in ((1 - 1e-9, False), (1 + 1e-9, True)):
        _, y = problem(jump * factor)
        assert bool(fit(x, y, depth=depth, weight_decay=decay).predictor.any()) == survives
    # The least slope of the scalar problem at its inflection: −m + min_t t + (μ/s) p t^{p−1}, zero at m_loc.
    weight, p = decay * depth * sites ** (1 / depth - 1) / s, 2 / depth
    turning = (weight * p * (1 - p)) ** (1 / (2 - p))
    assert turning + weight * p * turning ** (p - 1) == pytest.approx(jump / ratio, rel=1e-12)
    # Between the two a network that starts at the nonzero local minimum stays there, above the optimum, which is 0.
    m = jump * (1 + 1 / ratio) / 2
    t = m
    for _ in range(200):
        t = m - weight * p * t ** (p - 1)
    net = minimal_network(problem(t)[0], depth)
    y = problem(m)[1]
    train(net, x, y, weight_decay=decay, steps=5)
    solution = fit(x, y, depth=depth, weight_decay=decay)
    assert not solution.predictor.any()
    assert space_objective(net.weights, x, y, decay) > solution.objective * (1 + 1e-3)
    assert float(net.weights[0].detach().abs().max()) > 0.1 * t ** (1 / depth)


@pytest.mark.parametrize("depth", [3, 4, 6])
def test_one_output_of_anisotropic_data_against_many_starts(depth):
    n, channels, sites, decay = 20, 2, 5, 0.02
    for seed in range(2):
        x = mixed(n, channels, (sites,), seed=seed)
        y = labels(x, 1, seed=seed)
        solution = fit(x, y, depth=depth, weight_decay=decay)
        assert solution.method == "decoupled, one output"
        assert_bracket(solution, x, y, depth, decay)
        assert abs(solution.gap) <= 1e-11
        assert stationarity(solution.predictor, x, y, depth, decay) <= 1e-9
        total = float(y.square().sum()) / (2 * n)
        spectra = np.fft.fft(x.numpy(), norm="ortho")
        for u in range(sites):
            images = spectra[:, :, u]
            values, vectors = np.linalg.eigh(images.T @ images.conj() / n)
            g = (y.numpy().T @ images.conj() / n @ vectors)[0]
            m = np.abs(g) / values
            total += (
                one_output_optimum(values, m, decay * depth * sites ** (1 / depth - 1), 2 / depth, starts=6) - (values * m**2).sum() / 2
            )
        assert solution.objective == pytest.approx(total, rel=1e-9)


# --- One output: every root --------------------------------------------------------------------------------------------


def scanned_roots(s, power, weight, p):
    """Sign changes of log(ν‖v(ν)‖^{2−p}/weight) on a dense grid of log ν, each refined by bisection."""

    def phi(t):
        return t + (1 - p / 2) * np.log((power / (s + np.exp(t)[..., None]) ** 2).sum(-1)) - math.log(weight)

    t = np.linspace(-60, 60, 100_001)
    values = phi(t)
    roots = []
    for k in np.flatnonzero(values[:-1] * values[1:] <= 0):
        low, high = t[k], t[k + 1]
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if phi(np.array(middle)) * values[k] > 0 else (low, middle)
        roots.append(math.exp(low))
    return roots


@pytest.mark.parametrize(
    ("s", "power", "weight", "p", "count"),
    [
        ([1.0], [4.0], 0.1, 2 / 3, 2),
        ([1.0], [1e-6], 1.0, 2 / 3, 0),
        ([4.73102069e-04, 5.16558313], [3.58677026e-03, 231.033552], 0.23743373831238582, 1 / 3, 4),
        ([1.0, 1.0, 1.0], [1.0, 2.0, 0.0], 0.05, 0.5, 2),
        ([1.0], [0.0], 1.0, 0.5, 0),
    ],
)
def test_stationary_shifts_in_known_cases(s, power, weight, p, count):
    found = sorted(stationary_shifts(torch.tensor(s, dtype=F64), torch.tensor(power, dtype=F64), weight, p))
    assert len(found) == count
    if any(power):
        assert found == pytest.approx(sorted(scanned_roots(np.array(s), np.array(power), weight, p)), rel=1e-9)


def test_stationary_shifts_take_a_double_root():
    """One channel at m = m_loc: the two roots meet, and rounding decides if they are seen as none, one or two."""
    p, s = 0.5, 1.0
    turning = (p * (1 - p)) ** (1 / (2 - p))
    m = turning + p * turning ** (p - 1)
    found = stationary_shifts(torch.tensor([s], dtype=F64), torch.tensor([m**2], dtype=F64), p, p)
    assert all(nu == pytest.approx(p * turning ** (p - 2), rel=1e-5) for nu in found)


@given(st.integers(0, 10**9), st.integers(1, 4), st.sampled_from([2 / 3, 0.5, 1 / 3, 0.1]))
def test_stationary_shifts_find_every_root(seed, channels, p):
    rng = np.random.default_rng(seed)
    s, power = 10 ** rng.uniform(-4, 1, channels), 10 ** rng.uniform(-4, 4, channels)
    weight = 10 ** rng.uniform(-3, 1)
    found = sorted(stationary_shifts(torch.from_numpy(s), torch.from_numpy(power), weight, p))
    expected = sorted(scanned_roots(s, power, weight, p))
    assert len(found) % 2 == 0
    assert all(any(math.isclose(a, b, rel_tol=1e-8) for b in found) for a in expected)


# --- Widths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("width", [1, 2])
def test_narrow_widths_keep_the_largest_components(depth, width):
    x = coloured(30, 3, (2, 3))
    y, decay = labels(x, 3), 0.01
    wide, narrow = (fit(x, y, depth=depth, weight_decay=decay, hidden_channels=w) for w in (3, width))
    assert narrow.method == "decoupled, scalar thresholding"
    assert abs(narrow.gap) <= 1e-11
    all_sigma, sigma = (FrequencyBlocks.from_predictor(s.predictor).singular_values() for s in (wide, narrow))
    all_sigma[..., width:] = 0
    torch.testing.assert_close(sigma, all_sigma)
    assert narrow.objective > wide.objective
    start = FrequencyBlocks.from_predictor(fit(x, y, depth=1, weight_decay=1e-9).predictor)
    left, m, right = torch.linalg.svd(start.values, full_matrices=False)
    cut = FrequencyBlocks((left[..., :width] * m[..., None, :width]) @ right[..., :width, :]).predictor()
    nets = [minimal_network(cut, depth, hidden_channels=width)]
    nets += [LinearCNN(3, (width,) * (depth - 1), 3, (2, 3), generator=torch.Generator().manual_seed(k)) for k in range(1)]
    for net in nets:
        train(net, x, y, weight_decay=decay, steps=15)
        assert space_objective(net.weights, x, y, decay) >= narrow.lower_bound * (1 - ROUNDING)


@pytest.mark.parametrize("depth", [2, 3])
def test_narrow_widths_on_general_data_have_a_valid_bracket(depth):
    x = normal(40, 2, 4)
    y, decay = labels(x, 2), 0.02
    solution = fit(x, y, depth=depth, weight_decay=decay, hidden_channels=1)
    assert solution.method == "portfolio"
    assert_bracket(solution, x, y, depth, decay)
    assert representation_cost(solution.predictor, depth, hidden_channels=1).upper < math.inf
    for seed in range(2):
        net = LinearCNN(2, (1,) * (depth - 1), 2, (4,), generator=torch.Generator().manual_seed(seed))
        train(net, x, y, weight_decay=decay, steps=40)
        assert space_objective(net.weights, x, y, decay) >= solution.lower_bound * (1 - ROUNDING)
    assert fit(x, y, depth=1, weight_decay=decay, hidden_channels=1).method == "ridge"


# --- Laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("make", [coloured, natural])
def test_shifts_mixing_and_depth_leave_the_objective(depth, make):
    x = make(30, 2, (3, 2))
    y = labels(x, 2)
    expected = fit(x, y, depth=depth, weight_decay=0.03, tol=1e-10).objective
    rotation, _ = torch.linalg.qr(normal(2, 2))
    mixed_channels = torch.einsum("ab,nbij->naij", rotation, x)
    for same, target in ((x.roll((1, 1), (2, 3)), y), (mixed_channels, y), (x.flip((2, 3)), y), (x, y @ rotation)):
        found = fit(same, target, depth=depth, weight_decay=0.03, tol=1e-10)
        assert found.objective == pytest.approx(expected, rel=1e-9)


def test_ridge_is_linear_in_the_labels():
    x = natural(12, 2, (3, 2))
    y = labels(x, 2)
    beta = fit(x, y, depth=1, weight_decay=0.1).predictor
    torch.testing.assert_close(fit(x, -7 * y, depth=1, weight_decay=0.1).predictor, -7 * beta, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("make", [coloured, natural])
def test_units_of_images_and_labels_do_not_matter(depth, scale, make):
    """With x → a·x, y → b·y and λ → λ b^{2−p} a^p the objective is b² times what it was."""
    x = make(30, 1, (3, 2))
    y, p = labels(x, 2), 2 / depth
    expected = fit(x, y, depth=depth, weight_decay=0.03)
    for a, b in ((scale, 1.0), (1.0, scale), (scale, scale)):
        found = fit(a * x, b * y, depth=depth, weight_decay=0.03 * b ** (2 - p) * a**p)
        assert found.objective == pytest.approx(b**2 * expected.objective, rel=1e-9)
        assert 0 < found.lower_bound <= found.objective * (1 + ROUNDING)
        assert found.method == expected.method


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", ["gaussian", "whitened"])
def test_extreme_weight_decays(depth, name):
    x = DATA[name]()
    y = labels(x, 2)
    zero = float(y.square().sum()) / (2 * len(x))
    large = fit(x, y, depth=depth, weight_decay=1e6)
    assert large.objective == pytest.approx(zero, rel=1e-3)
    assert large.lower_bound == pytest.approx(zero, rel=1e-3)
    assert depth == 1 or not large.predictor.any()
    tiny = fit(x, y, depth=depth, weight_decay=1e-7)
    assert_bracket(tiny, x, y, depth, 1e-7)
    least = float(np.linalg.lstsq(x.flatten(1).numpy(), y.numpy(), rcond=None)[1].sum()) / (2 * len(x)) if len(x) > x[0].numel() else 0.0
    assert tiny.objective <= least + 1e-5


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_decoupled_bound_has_no_cancellation(depth):
    """As many images as numbers fit exactly: the minimum is of the size of the weight decay, however small that is."""
    x = whitened(12, 2, (2, 3))
    y = labels(x, 2)
    for decay in (1e-6, 1e-12, 1e-18):
        solution = fit(x, y, depth=depth, weight_decay=decay)
        assert abs(solution.gap) <= 1e-11
        assert solution.objective <= 1e3 * decay


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_labels_of_zero(depth):
    x = normal(5, 2, 3)
    solution = fit(x, torch.zeros(5, 2, dtype=F64), depth=depth, weight_decay=0.1)
    assert (solution.objective, solution.lower_bound, solution.gap, solution.method) == (0, 0, 0, "zero")
    assert solution.predictor.shape == (2, 2, 3)
    assert not solution.predictor.any()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_images_of_zero(depth):
    y = normal(4, 2)
    solution = fit(torch.zeros(4, 1, 3, dtype=F64), y, depth=depth, weight_decay=0.1)
    # More images than numbers are reduced to fewer rows, which rounds.
    assert solution.objective == pytest.approx(float(y.square().sum()) / 8, rel=ROUNDING)
    assert solution.lower_bound == pytest.approx(solution.objective, rel=ROUNDING)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("make", [normal, whitened])
def test_labels_orthogonal_to_the_images(depth, make):
    x = normal(20, 2, 3) if make is normal else whitened(20, 2, (3,))
    basis, _ = torch.linalg.qr(x.flatten(1))
    y = normal(20, 2)
    y = y - basis @ (basis.T @ y)
    zero = float(y.square().sum()) / 40
    for decay in (1e-4, 0.1):
        solution = fit(x, y, depth=depth, weight_decay=decay)
        assert solution.objective == pytest.approx(zero, rel=1e-12)
        assert solution.lower_bound == pytest.approx(zero, rel=1e-8)
        assert solution.lower_bound <= solution.objective * (1 + ROUNDING)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("width", [None, 1])
def test_single_precision_data(depth, width):
    x = natural(40, 2, (3, 2)).float()
    y = labels(x.double(), 2).float()
    single = fit(x, y, depth=depth, weight_decay=0.02, hidden_channels=width)
    double = fit(x.double(), y.double(), depth=depth, weight_decay=0.02, hidden_channels=width)
    assert single.predictor.dtype == torch.float32
    assert (single.objective, single.lower_bound, single.method) == (double.objective, double.lower_bound, double.method)
    torch.testing.assert_close(single.predictor, double.predictor.float())
    if width is None or depth == 1:
        assert value_of(single.predictor, x, y, depth, 0.02) == pytest.approx(single.objective, rel=1e-5)


def test_the_default_is_deterministic_and_leaves_global_state_alone():
    x = natural(20, 2, (3, 2))
    y = labels(x, 2)
    before = (torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), np.random.get_state()[1].copy())  # noqa: NPY002 (that it stays is the test)
    images, targets = x.clone(), y.clone()
    for depth in (1, 2, 3):
        first, second = (fit(x, y, depth=depth, weight_decay=0.05) for _ in range(2))
        assert torch.equal(first.predictor, second.predictor)
        assert (first.objective, first.lower_bound) == (second.objective, second.lower_bound)
    after = (torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype(), np.random.get_state()[1])  # noqa: NPY002 (the same)
    assert torch.equal(before[0], after[0])
    assert before[1:3] == after[1:3]
    assert np.array_equal(before[3], after[3])
    assert torch.equal(x, images)
    assert torch.equal(y, targets)


def test_gradients_are_not_tracked():
    x, y = normal(6, 1, 3).requires_grad_(), normal(6, 1).requires_grad_()
    assert not fit(x, y, depth=3, weight_decay=0.1).predictor.requires_grad


def test_data_that_are_nearly_decoupled_pay_in_the_bound():
    x = whitened(40, 2, (3,))
    x = x + 1e-9 * normal(40, 2, 3)
    y = labels(x, 2)
    solution = fit(x, y, depth=3, weight_decay=0.02)
    assert solution.method == "decoupled, scalar thresholding"
    assert 0 < solution.gap <= 1e-7
    net = minimal_network(solution.predictor, 3)
    train(net, x, y, weight_decay=0.02, steps=50)
    assert solution.lower_bound <= space_objective(net.weights, x, y, 0.02) <= solution.objective * (1 + ROUNDING)
    far = x + 1e-3 * normal(40, 2, 3)
    assert fit(far, y, depth=3, weight_decay=0.02).method == "portfolio"


def filtered(x):
    """The images without one pair of frequencies and without their means."""
    spectra = torch.fft.fft2(x)
    spectra[..., 0, 0] = spectra[..., 1, 1] = spectra[..., -1, -1] = 0
    return torch.fft.ifft2(spectra).real.contiguous()


@pytest.mark.parametrize(
    ("make", "outputs", "method", "depth"),
    [
        (coloured, 2, "scalar thresholding", 2),
        (coloured, 2, "scalar thresholding", 6),
        (mixed, 1, "one output", 3),
        (mixed, 1, "one output", 6),
    ],
)
@pytest.mark.parametrize("samples", [24, 40])
def test_frequencies_that_a_filter_has_taken_leave_the_problem(make, outputs, method, depth, samples):
    """Of 24 numbers 18 are left: 24 images leave a residual as well; 40 are reduced first."""
    x = filtered(make(samples, 2, (3, 4)))
    y, decay = labels(x, outputs), 0.02
    solution = fit(x, y, depth=depth, weight_decay=decay)
    assert solution.method == f"decoupled, {method}"
    assert abs(solution.gap) <= 1e-12
    net = minimal_network(solution.predictor, depth)
    train(net, x, y, weight_decay=decay, steps=50)
    assert solution.objective * (1 - ROUNDING) <= space_objective(net.weights, x, y, decay) <= solution.objective * (1 + ROUNDING)
    assert not torch.fft.fft2(solution.predictor)[..., 1, 1].abs().max() > 1e-12


@pytest.mark.parametrize("left", [0.0, 1e-15, 1e-14])
def test_what_rounding_leaves_at_a_filtered_frequency_gains_nothing(left):
    """Blocks large enough to use it cost more than they gain: the bound holds for them too."""
    x = filtered(coloured(24, 2, (3, 4))) + left * normal(24, 2, 1, 1, seed=9)
    problem = Problem(x, labels(x, 2), 3, 0.02)
    found = decoupled(problem)
    for size in 10.0 ** torch.arange(-16, 17, 2):
        beta = found.predictor + size * normal(2, 2, 1, 1, seed=10)
        assert found.lower_bound <= problem.objective(beta)


def test_a_frequency_that_is_faint_or_might_be_used_is_not_taken_for_silent():
    x = filtered(coloured(24, 2, (3, 4)))
    y = labels(x, 2)
    faint = x + 1e-9 * normal(24, 2, 1, 1, seed=9)
    assert decoupled(Problem(faint, y, 3, 0.02)) is None
    # A decay so small that blocks of 1e15 are affordable could fit with what rounding left.
    assert decoupled(Problem(x, y, 6, 1e-9)) is None


def test_a_trace_that_the_reduction_loses_is_no_silence():
    """Constant images but for one last digit: blocks of 5e15 use it, at this decay, and go below what decoupled data would allow."""
    x = torch.full((3, 1, 2), 0.7, dtype=F64)
    x[0, 0, 0] = math.nextafter(0.7, 9)
    y = torch.tensor([[1.0], [0.0], [0.0]], dtype=F64)
    found = fit(x, y, depth=2, weight_decay=5.749746332824149e-18)
    assert found.lower_bound <= 0.0917 < 1 / 9
    for depth in (1, 2, 3):  # without decay the last digit fits y exactly
        assert fit(x, y, depth=depth, weight_decay=0.0).lower_bound < 1e-9


def test_equal_blocks_with_cross_frequency_terms_are_not_decoupled():
    """Every S_u = s·I, and yet E[x̂_u x̂_v†] ≠ 0: only the full second moment tells."""
    x = torch.eye(4, dtype=F64)[:1].reshape(1, 1, 4).repeat(8, 1, 1)
    y = labels(x, 1)
    assert decoupled(Problem(x, y, 3, 0.1)) is None
    signs = torch.tensor([1.0, -1.0], dtype=F64).repeat(4)[:, None, None]
    assert decoupled(Problem(x * signs, y, 3, 0.1)) is None


# --- Wrong variants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [whitened, natural])
def test_without_the_factor_of_the_grid_the_optimum_disagrees_with_training(monkeypatch, make):
    x = make(30, 2, (3, 4))
    y, depth, decay = labels(x, 2), 2, 0.01
    net = minimal_network(fit(x, y, depth=depth, weight_decay=decay).predictor, depth)
    train(net, x, y, weight_decay=decay, steps=50)
    trained = space_objective(net.weights, x, y, decay)
    assert fit(x, y, depth=depth, weight_decay=decay).lower_bound == pytest.approx(trained, rel=1e-8)
    monkeypatch.setattr(Problem, "mu", property(lambda self: self.weight_decay * self.depth))
    assert fit(x, y, depth=depth, weight_decay=decay).lower_bound > 1.1 * trained


@pytest.mark.parametrize("depth", [3, 4])
def test_wrong_pair_weights_are_seen(monkeypatch, depth):
    x = whitened(30, 2, (3, 4))
    y = labels(x, 2)
    right = fit(x, y, depth=depth, weight_decay=0.01)
    net = minimal_network(right.predictor, depth)
    train(net, x, y, weight_decay=0.01, steps=50)
    trained = space_objective(net.weights, x, y, 0.01)
    assert right.lower_bound == pytest.approx(trained, rel=1e-10)
    halves = Problem(x, y, depth, 0.01).weights
    monkeypatch.setattr(Problem, "weights", property(lambda self: torch.ones_like(halves)))
    assert fit(x, y, depth=depth, weight_decay=0.01).gap > 1e-2
    monkeypatch.setattr(Problem, "weights", property(lambda self: 2 * torch.ones_like(halves)))
    assert fit(x, y, depth=depth, weight_decay=0.01).lower_bound > (1 + 1e-3) * trained


def test_a_dual_point_that_is_not_feasible_overstates(monkeypatch):
    x = natural(30, 2, (3, 2))
    y = labels(x, 2)
    problem = Problem(x, y, 2, 0.05)
    mu = torch.full_like(problem.weights, problem.mu)
    minimum = fit(x, y, depth=2, weight_decay=0.05, tol=1e-11).objective
    for residual in (y, y + 0.1 * normal(*y.shape), normal(*y.shape)):  # valid at any residual, the wrong sign included
        assert nuclear_module.dual_bound(problem, residual, mu) <= minimum
    assert nuclear_module.dual_bound(problem, -y, mu) == nuclear_module.dual_bound(problem, 0 * y, mu) == 0
    residual = problem.residual(fit(x, y, depth=2, weight_decay=0.05).predictor)
    assert nuclear_module.dual_bound(problem, residual, 2 * mu) > minimum  # with twice the weight it bounds another problem


def test_shrink_without_the_second_moment_is_not_optimal():
    x = 3 * whitened(24, 1, (5,))
    y = labels(x, 2)
    problem = Problem(x, y, 3, 0.05)
    found = fit(x, y, depth=3, weight_decay=0.05)
    left, m, right = torch.linalg.svd(problem.cross_moment / 9, full_matrices=False)
    wrong = (left * shrink(m, torch.tensor(problem.mu, dtype=F64), problem.p)[:, None, :]) @ right
    assert value_of(problem.predictor(wrong), x, y, 3, 0.05) > found.objective * (1 + 1e-6)


# --- The iteration -----------------------------------------------------------------------------------------------------


def test_metric_majorises_the_second_moment(monkeypatch):
    problem = Problem(natural(40, 2, (3, 2), 2.0), normal(40, 1), 2, 0.1)

    def largest(metric):
        images = problem.x.flatten(1)
        unit = torch.eye(12, dtype=F64).reshape(12, 2, 3, 2)
        scaled = problem.predictor(problem.blocks(unit) / metric.sqrt()[:, None, None]).flatten(1)
        return float(torch.linalg.eigvalsh(scaled @ images.T @ images @ scaled.T / 40)[-1])

    assert 0.9 < largest(nuclear_module.step_metric(problem)) <= 1

    def fails(*args, **options):
        raise nuclear_module.ArpackNoConvergence("no convergence", np.empty(0), np.empty((0, 0)))

    monkeypatch.setattr(nuclear_module, "eigsh", fails)
    assert largest(nuclear_module.step_metric(problem)) <= 1


def test_nuclear_stops_after_its_steps_with_the_true_gap():
    problem = Problem(natural(40, 1, (4, 4), 2.0), normal(40, 2), 2, 1e-4)
    mu = torch.full_like(problem.weights, problem.mu)
    blocks, lower = nuclear_module.solve_nuclear(problem, mu, 1e-12, None, 1)
    assert lower < problem.objective(problem.predictor(blocks)) * (1 - 1e-6)
    better, higher = nuclear_module.solve_nuclear(problem, mu, 1e-9, blocks)
    assert higher > lower
    assert problem.objective(problem.predictor(better)) == pytest.approx(higher, rel=1e-8)


def test_dust_of_rounding_costs_nothing():
    """A component of 1e-17 would add 1e-4 of its weight at depth 8."""
    problem = Problem(normal(20, 2, 3), normal(20, 2), 8, 0.01)
    blocks = torch.zeros_like(problem.cross_moment)
    blocks[:, 0, 0], blocks[:, 1, 1] = 1, 1e-17
    assert problem.penalty(blocks, torch.ones_like(problem.weights)) == 3


# --- Bad input ---------------------------------------------------------------------------------------------------------

GOOD = {"x": torch.ones(3, 1, 4, dtype=F64), "y": torch.ones(3, 2, dtype=F64), "depth": 3, "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("x", [[1.0]], TypeError),
        ("x", torch.ones(3, 4, dtype=F64), ValueError),
        ("x", torch.ones(3, 1, 2, 2, 2, 2, dtype=F64), ValueError),
        ("x", torch.ones(0, 1, 4, dtype=F64), ValueError),
        ("x", torch.ones(3, 1, 4, dtype=torch.int64), TypeError),
        ("x", torch.ones(3, 1, 4, dtype=torch.complex128), TypeError),
        ("x", torch.full((3, 1, 4), math.nan, dtype=F64), ValueError),
        ("y", None, TypeError),
        ("y", torch.ones(3, dtype=F64), ValueError),
        ("y", torch.ones(4, 2, dtype=F64), ValueError),
        ("y", torch.ones(3, 2), TypeError),
        ("y", torch.full((3, 2), math.inf, dtype=F64), ValueError),
        ("depth", 0, ValueError),
        ("depth", -1, ValueError),
        ("depth", 2.0, TypeError),
        ("depth", True, TypeError),
        ("weight_decay", -0.1, ValueError),
        ("weight_decay", math.nan, ValueError),
        ("weight_decay", "0.1", TypeError),
        ("hidden_channels", 0, ValueError),
        ("hidden_channels", 1.5, TypeError),
        ("tol", 0.0, ValueError),
        ("tol", math.inf, ValueError),
        ("tol", None, TypeError),
    ],
)
def test_bad_input_is_named(unchecked, name, value, error):
    with pytest.raises(error, match=f"^{name}: expected .* got "):
        fit(**{**GOOD, name: value})


def test_solution_of_good_input():
    solution = fit(**GOOD)
    assert isinstance(solution, Solution)
    assert Solution(solution.predictor, 2.0, 1.0, "x").gap == 0.5


@pytest.mark.parametrize("grid", [(5,), (6,), (3, 4), (4, 4), (3, 2, 4)])
def test_blocks_made_symmetric_are_those_of_a_real_predictor(grid, generator):
    x = torch.randn(4, 2, *grid, dtype=torch.float64, generator=generator)
    problem = Problem(x, torch.randn(4, 3, dtype=torch.float64, generator=generator), 3, 0.1)
    loose = torch.randn(problem.cross_moment.shape, dtype=torch.complex128, generator=generator)
    tight = problem.symmetric(loose)
    assert torch.allclose(problem.blocks(problem.predictor(tight)), tight, atol=1e-12)
    if len(grid) > 1:
        assert not torch.allclose(problem.blocks(problem.predictor(loose)), loose, atol=1e-3)
    real = problem.blocks(torch.randn(3, 2, *grid, dtype=torch.float64, generator=generator))
    assert torch.allclose(problem.symmetric(real), real, atol=1e-12)


def test_members_reach_the_objective_of_a_real_predictor(generator):
    """A threshold that keeps a component at u and drops it at −u would find an objective that no predictor has."""
    photos = load("photos", grid=(3, 4), samples=100, generator=generator)
    targets = photos.one_hot()
    problem = Problem(center(photos.images), targets - targets.mean(0), 3, 0.00221)
    start = ridge(Problem(problem.x, problem.y, 1, problem.weight_decay)).predictor
    found = portfolio(problem, starts=(start,))
    assert problem.objective(found.predictor) == pytest.approx(min(found.members.values()), rel=1e-12)


@pytest.mark.parametrize("seed", [0, 6, 10])
def test_narrow_networks_on_general_data_have_a_finite_objective(seed):
    """Seeds at which a descent once cut the ranks at u and at −u apart, and no network of that width had its predictor."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20, 2, 3, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(20, 3, dtype=torch.float64, generator=generator)
    found = fit(x, y, depth=3, weight_decay=0.1, hidden_channels=1)
    assert 0 < found.lower_bound <= found.objective < math.inf
    net = minimal_network(found.predictor, 3, hidden_channels=1)
    run = train(net, x, y, weight_decay=0.1, steps=3)
    assert float(run.objectives[0]) == pytest.approx(found.objective, rel=1e-10)


@pytest.mark.parametrize(("name", "x_scale", "y_scale"), [("x", 1e160, 1.0), ("x", 1e-160, 1.0), ("y", 1.0, 1e160), ("y", 1.0, 1e-160)])
def test_data_whose_squares_overflow_or_vanish_are_refused(name, x_scale, y_scale, generator):
    x, y = torch.randn(6, 1, 3, dtype=torch.float64, generator=generator), torch.randn(6, 2, dtype=torch.float64, generator=generator)
    with pytest.raises(ValueError, match=f"^{name}: expected numbers between"):
        fit(x_scale * x, y_scale * y, depth=2, weight_decay=0.1)


# --- Found by review ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_images_reach_the_gap_at_depth_two(n):
    """Where the iteration is a translation its extrapolation was rounding noise, and the answer once 0 with a gap of 99 %."""
    for seed in (1, 4, 12, 19, 31, 33):
        solution = fit(normal(n, 1, 3, 4, seed=seed), normal(n, 1, seed=100 + seed), depth=2, weight_decay=0.01)
        assert abs(solution.gap) <= 1e-8


@pytest.mark.parametrize("loss", ["squared", "cross-entropy", "logistic"])
@pytest.mark.parametrize("depth", [2, 3])
def test_narrow_networks_whose_optimum_is_zero(loss, depth):
    x, y = normal(12, 2, 3, 4), torch.softmax(normal(12, 3), 1)
    for decay in (10.0, 1e4):
        found = fit(x, y, depth=depth, weight_decay=decay, hidden_channels=1, loss=loss)
        assert not found.predictor.any()
        assert abs(found.gap) <= 1e-8


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_least_squares_of_many_images_is_certified_without_decay(depth):
    solution = fit(normal(100, 2, 3), normal(100, 2, seed=1), depth=depth, weight_decay=0.0)
    assert solution.lower_bound > 0
    assert abs(solution.gap) <= 1e-12


def test_small_problems_take_one_thread(monkeypatch):
    seen = []
    monkeypatch.setattr(solvers_module, "_solve", lambda problem, *rest: seen.append(torch.get_num_threads()) or ridge(problem))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(normal(4, 1, 3), normal(4, 1), depth=1, weight_decay=0.1)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"checkpoint": 3, "max_nodes": 1}, TypeError, "checkpoint"),
        ({"checkpoint": "tree.npz"}, ValueError, "checkpoint"),
        ({"checkpoint": "no/such/folder/tree.npz", "max_nodes": 1}, ValueError, "checkpoint"),
        ({"max_nodes": -1}, ValueError, "max_nodes"),
        ({"max_nodes": 1.5}, TypeError, "max_nodes"),
        ({"on_progress": 3}, TypeError, "on_progress"),
        ({"loss": ["squared"]}, ValueError, "loss"),
        ({"weight_decay": 1e-300}, ValueError, "weight_decay"),
        ({"weight_decay": 1e300}, ValueError, "weight_decay"),
    ],
)
def test_bad_options_are_named_before_any_work(unchecked, options, error, name):
    with pytest.raises(error, match=f"^{name}: expected .* got "):
        fit(normal(4, 1, 3), normal(4, 1), **{"depth": 3, "weight_decay": 0.1, **options})


# --- The edges of double precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "decay"), [(3, 1e-190), (6, 1e-50), (50, 1e-12), (300, 0.01), (1000, 1e-6)])
def test_depths_and_decays_at_the_edge_of_double_precision_have_a_bracket(depth, decay):
    x, y = normal(20, 1, 4), normal(20, 1, seed=1)
    least = ((y - x.flatten(1) @ torch.linalg.lstsq(x.flatten(1), y).solution) ** 2).sum() / 40
    solution = fit(x, y, depth=depth, weight_decay=decay)
    assert float(least) * (1 - 1e-12) <= solution.lower_bound <= solution.objective * (1 + 1e-12)
    assert solution.objective <= float(y.square().sum()) / 40 * (1 + 1e-12)


@pytest.mark.usefixtures("unchecked")
def test_a_depth_beyond_double_precision_and_a_lone_decay_are_refused():
    x, y = normal(20, 1, 4), normal(20, 1, seed=1)
    with pytest.raises(ValueError, match="depth: expected at most 1000, got 1001"):
        fit(x, y, depth=1001, weight_decay=0.1)
    with pytest.raises(TypeError, match=r"weight_decays: expected a sequence of numbers, got 0\.1"):
        fit_path(x, y, depth=2, weight_decays=0.1)


# --- Rounding must not prove anything ----------------------------------------------------------------------------------


def test_data_that_interpolate_have_a_bracket():
    """Integer images that outnumber the unknowns, exact targets: the residual of least squares is rounding, of any sign."""
    g = torch.Generator().manual_seed(1)
    x = torch.randint(-3, 4, (300, 2, 4), generator=g).to(F64)
    beta = torch.randint(-3, 4, (2, 2, 4), generator=g).to(F64) * 100
    y = x.flatten(1) @ beta.flatten(1).T
    for decay in (1e-9, 1e-13, 1e-17):
        solution = fit(x, y, depth=2, weight_decay=decay, time_limit=2.0)
        assert 0 <= solution.lower_bound <= solution.objective <= decay * representation_cost(beta, 2).upper * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_certificate_of_a_reduction_holds_where_the_residual_is_rounding(seed):
    x = normal(300, 2, 4, seed=seed)
    beta = normal(2, 2, 4, seed=seed + 10)
    y = x.flatten(1) @ beta.flatten(1).T
    for decay in (1e-6, 1e-10, 1e-14):
        problem = Problem(*reduce(x, y)[:2], 2, decay)
        mu = torch.full_like(problem.weights, problem.mu)
        for predictor in (beta, least_squares(problem), beta * (1 - 1e-12)):
            assert certify(x, y, problem, predictor, mu) <= decay * representation_cost(beta, 2).upper * (1 + 1e-12)


@pytest.mark.parametrize(("depth", "decay", "exact"), [(20, 1e-4, 0.0837), (10, 1e-6, 0.0176), (6, 1e-8, 0.0154), (3, 1e-16, 2.0e-5)])
def test_images_that_differ_in_their_last_digit_prove_nothing(depth, decay, exact):
    """`exact` is F of the interpolating predictor in 60 digits, rounded up: the difference of the images is one digit of one pixel."""
    r = np.random.default_rng(1)
    x = r.standard_normal((2, 1, 2))
    x[1] = x[0]
    x[1, 0, 0] = np.nextafter(x[0, 0, 0], 9)
    solution = fit(torch.from_numpy(x), torch.tensor([[1.0], [0.0]], dtype=F64), depth=depth, weight_decay=decay)
    assert solution.lower_bound <= exact
    assert solution.objective <= 0.25


@pytest.mark.parametrize(("depth", "decay", "scale"), [(2, 3.5e-15, 1.0), (3, 3.5e-11, 1.0), (2, 3.5e-21, 1e-6), (3, 3.5e-15, 1e-6)])
def test_equal_images_with_another_loss_have_a_bracket(depth, decay, scale):
    image = torch.tensor([-0.2276763234557067, 0.5968561605493232, -1.2790231397082756, 0.9666553294725934, -1.1279606882552755], dtype=F64)
    y = torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 1, 0]], dtype=F64)
    solution = fit(scale * image.expand(3, 1, 5), y, depth=depth, weight_decay=decay, loss="logistic", time_limit=2.0)
    mean = y.mean(0)
    entropy = -float((torch.special.xlogy(mean, mean) + torch.special.xlogy(1 - mean, 1 - mean)).sum())
    assert solution.lower_bound <= entropy * (1 + 1e-9) <= solution.objective * (1 + 2e-9)


def test_a_narrow_network_of_depth_two_meets_its_bound():
    x, y = normal(60, 3, 8, 8), normal(60, 4, seed=1)
    solution = fit(x, y, depth=2, weight_decay=1e-3, hidden_channels=2)
    assert 0 < solution.lower_bound <= solution.objective


@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("decay", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_bound_never_exceeds_the_objective(n, decay, seed):
    x, y = normal(n, 2, 5, seed=seed), normal(n, 2, seed=seed + 50)
    for depth in (1, 2):
        solution = fit(x, y, depth=depth, weight_decay=decay)
        assert solution.lower_bound <= solution.objective


@pytest.mark.usefixtures("unchecked")
def test_tensors_without_numbers_are_refused():
    y = normal(4, 1)
    for x, got in ((torch.empty(4, 1, 3, device="meta", dtype=F64), "meta"), (normal(4, 1, 3).to_sparse(), "sparse")):
        with pytest.raises(TypeError, match=f"x: expected a dense tensor with data, got .*{got}"):
            fit(x, y, depth=1, weight_decay=0.1)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "opposite channels", "constant"])
def test_more_images_than_unknowns_leave_no_gap_at_the_smallest_decays(depth, kind):
    """No dual point of the penalty proves anything there; what least squares leave over is a bound at every decay."""
    x, y = normal(40, 2, 3, 3), normal(40, 2, seed=1)
    x = {"plain": x, "opposite channels": torch.cat([x[:, :1], -x[:, :1]], 1), "constant": x[..., :1, :1].expand(40, 2, 3, 3)}[kind]
    design = x.contiguous().flatten(1).numpy()
    least = np.square(design @ np.linalg.lstsq(design, y.numpy(), rcond=1e-10)[0] - y.numpy()).sum() / 80
    for decay in (1e-30, 1e-200) if depth == 1 else (1e-30,):
        found = fit(x.contiguous(), y, depth=depth, weight_decay=decay)
        assert found.gap < 1e-6
        assert found.lower_bound <= least * (1 + 1e-9)


@pytest.mark.parametrize("decay", [1e150, 1e180, 1e200])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_largest_decays_leave_the_zero_predictor(depth, decay):
    x, y = normal(12, 2, 2, 2), normal(12, 2, seed=1)
    found = fit(x, y, depth=depth, weight_decay=decay)
    assert found.objective == pytest.approx(float(y.square().sum()) / 24)
    assert found.gap < 1e-8
