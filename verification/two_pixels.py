r"""Two pixels on a ring: two networks built by hand tell whether they are closer than ξ, and how stable each of their layers is.

An image of l sites is black but for two pixels at distance d; ξ is odd, 3 ≤ ξ ≤ (l + 1)/2, and $\tilde k = (\xi - 1)/2$.

*Outputs.*  With filters [1, 1, 1] in $\tilde k$ layers, bias −1 in the last, ReLU and a sum over sites, $f = 2 \cdot 3^{\tilde k} - 2\xi +
\mathrm{ReLU}(\xi - d)$; with three channels, two of which are shifted apart while the third adds them up, $f = \mathrm{ReLU}(\xi - d)$.

*Stability to moves.*  Each pixel moves by itself.  $D = \langle \|f(\tau x) - f(x)\|^2 \rangle / \langle \|f(x_1) - f(x_2)\|^2 \rangle$ of
each layer is a fraction.  Before the last layer that of the first network is, with $\hat w = 1 + 2 \cos q$ and $c = 1 - \varphi(q)$, φ the
characteristic function of a move,

$$D_k = \frac{\sum_q |\hat w|^{2k} S_y}{2 S_x \sum_{q \ne 0} |\hat w|^{2k}}, \qquad
S_y = 4c - \frac{2c^2}{l-1}, \quad S_x = 2 - \frac2{l-1},$$

to leading order 1/4k where pixels move by −1, 0 or +1, with limit $S_y(2\pi/l)/2S_x$.  The first network is the more stable in every
layer before the output, and both outputs are equally stable.

*Stability to noise.*  G is the same with white noise of power P in the place of moves.  By the moments of rectified Gaussians it has a
closed form in every layer before the bias.  For k layers with constant filters and ReLU it is $\frac{P}{24\pi} \sqrt{8\pi/3} (\sqrt k + b)$
for 1 ≪ k ≪ l², and without ReLU it stays at P/4: growth is due to rectification, and is far from $\sqrt k$ in the few layers of 32 sites.

Source: systems, networks and the definitions of D and G are those of the slides "The role of adaptive pooling" (PCSL 2022), which omit the
constant of the first network and leave D and G to be computed; R = D/G is that of arXiv 2105.02468. The rest: docs/two-pixels.md.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval, Len

from linconv.claims import Check, Figure, Note, Progress, UsageError, agree, at_most, control, main, predicted_failure, rate
from linconv.pooling import Kind, allowed_scales, pooling_solution, two_pixels
from linconv.pooling_noise import constant_filter_noise_stability, rectified_covariance, two_pixel_noise_stability
from linconv.pooling_stability import (
    constant_filter_deformation_stability,
    deformation_stability_limit,
    mean_square_displacement,
    two_pixel_deformation_stability,
)
from verification import _plain_two_pixels as plain
from verification._figure_two_pixels import Table, figure
from verification._two_pixels_plane import plane_checks

FAST = {"xis": (3, 7), "draws": 2000, "long_ring": 256}
KINDS: tuple[Kind, Kind] = ("low-frequency", "high-frequency")
MOVES: tuple[plain.Moves, plain.Moves] = ("stay", "step")
SAMPLED = "sampling error: five standard errors, by the spread of 100 batches"


def claim(
    *,
    xis: Annotated[tuple[Annotated[int, Interval(ge=3, le=31)], ...], Len(1, 15), "scales ξ, odd, at most half the sites"] = (
        3,
        5,
        7,
        9,
        11,
        13,
        15,
    ),
    sites: Annotated[int, Interval(ge=16, le=64), "sites l of the ring"] = 32,
    draws: Annotated[int, Interval(ge=1000, le=10**6), "random pairs behind each simulated stability"] = 10_000,
    long_ring: Annotated[int, Interval(ge=256, le=1024), "sites of the ring on which noise is followed through many layers"] = 1024,
    seed: Annotated[int, Interval(ge=0, le=10**6), "seed of pairs, moves and noise"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    if not set(xis) <= set(allowed_scales(sites)) or len(set(xis)) < len(xis):
        allowed = ", ".join(map(str, allowed_scales(sites)))
        raise UsageError(f"xis: expected different odd numbers from 3 to half the sites, here {allowed}, got {' '.join(map(str, xis))}")
    yield Note(f"every one of the {sites * (sites - 1) // 2} pairs of {sites} sites, ξ = {', '.join(map(str, xis))}", in_scope=True)
    yield from output_checks(xis, sites)
    yield from displacement_checks(sites)
    tables: dict[str, list[Table]] = {}
    for kind in KINDS:
        yield from deformation_checks(kind, xis, sites, draws, np.random.default_rng(seed))
        tables[kind] = []
        yield from noise_checks(kind, xis, sites, draws, np.random.default_rng(seed + 1), tables[kind])
    yield from depth_law_checks(xis, sites)
    yield from comparison(xis, sites, tables)
    yield from growth_checks(sites, long_ring)
    yield Figure("two_pixels", lambda: figure(tables, xis, sites, long_ring))


@cache
def stability(kind: Kind, xi: int, sites: int, moves: plain.Moves) -> tuple[Fraction, ...]:
    """Exact D of every layer of a solution."""
    return two_pixel_deformation_stability(pooling_solution(kind, xi, sites=sites), moves=moves, sites=sites)


def output_checks(xis: tuple[int, ...], sites: int) -> Iterator[Check]:
    """Both networks on every pair, and where the two pixels have met."""
    data = two_pixels((sites,), xi=1.5, gap=0)  # no distance is left out
    x = torch.cat([data.images[:, 0], 2 * torch.eye(sites, dtype=torch.float64)])
    d = torch.cat([data.distances, torch.zeros(sites, dtype=torch.float64)]).long()
    for kind in KINDS:
        found = torch.stack([pooling_solution(kind, xi, sites=sites)(x[:, None])[:, 0] for xi in xis]).long()
        depths = [(xi - 1) // 2 for xi in xis]
        closer = torch.stack([(xi - d).relu() for xi in xis])
        constants = torch.tensor([2 * 3**k - 2 * xi if kind == "low-frequency" else 0 for k, xi in zip(depths, xis, strict=True)])[:, None]
        by_shifts = np.stack([plain.layers(kind, k, x.numpy())[-1][:, 0] for k in depths]).astype(int)
        yield agree(f"{kind}: outputs", found, closer + constants, reason="integers", scope="exact", witness=lambda w=by_shifts: w)  # type: ignore[misc]
        wrong = {"ξ of the other parity": torch.stack([(xi + 1 - d).relu() for xi in xis]) + constants}
        if kind == "low-frequency" and max(xis) > 3:
            wrong["the constant of the slides, none"] = closer
        for name, values in wrong.items():
            yield control(f"{kind}: {name}", agree("", found, values))
        beyond = allowed_scales(sites)[-1] + 2
        wide = pooling_solution(kind, beyond, sites=4 * sites)(data.images)[:, 0].long()
        constant = 2 * 3 ** ((beyond - 1) // 2) - 2 * beyond if kind == "low-frequency" else 0
        name = f"{kind}: beyond half the ring, ξ = {beyond}, fields meet on the other side too"
        yield predicted_failure(name, agree("", wide, (beyond - data.distances.long()).relu() + constant))


def displacement_checks(sites: int) -> Iterator[Check | Note]:
    """⟨‖τx − x‖²⟩ by distance: the 8/3 of the slides holds where the pixels cannot meet."""
    expected = {"stay": (Fraction(16, 9), Fraction(26, 9), Fraction(8, 3)), "step": (Fraction(2), Fraction(9, 2), Fraction(4))}
    for moves in MOVES:
        near, next_, far = expected[moves]
        laws = [near, next_, *[far] * (sites // 2 - 2)]
        found = [mean_square_displacement(moves=moves, sites=sites, distance=d) for d in range(1, sites // 2 + 1)]
        yield agree(f"'{moves}': mean square displacement at each distance", found, laws, reason="fractions", scope="exact")
        yield control(f"'{moves}': collisions ignored", agree("", found, [far] * len(found)))
    mean = mean_square_displacement(sites=sites)
    yield Note(f"over all pairs it is {mean} = {float(mean):.4f}, and not 8/3: noise is matched to this, so that R = 1 at the input")


def deformation_checks(kind: Kind, xis: tuple[int, ...], sites: int, draws: int, rng: np.random.Generator) -> Iterator[Check | Progress]:
    """Exact D against random pairs and moves in NumPy, and that of the output against the distances alone."""
    for moves in MOVES:
        yield Progress(f"{kind}, '{moves}': simulating moves")
        exact = {xi: stability(kind, xi, sites, moves) for xi in xis}
        estimates = {xi: plain.deformation(kind, (xi - 1) // 2, sites, moves, draws, rng) for xi in xis}
        name = f"{kind}, '{moves}': D of every layer"
        yield simulated(name, [float(d) for xi in xis for d in exact[xi]], list(estimates.values()), draws)
        outputs = [plain.output_stability(xi, sites, moves) for xi in xis]
        yield agree(f"{name}, output by distances", [exact[xi][-1] for xi in xis], outputs, reason="fractions", scope="exact")
        if moves == "stay":
            per_site = simulated("", [float(d) / sites for xi in xis for d in exact[xi]], list(estimates.values()), draws)
            yield control(f"{kind}: 1/N in one of the spectra", per_site)
            swapped = simulated("", [float(d) for xi in xis for d in stability(kind, xi, sites, "step")], list(estimates.values()), draws)
            yield control(f"{kind}: the other set of moves", swapped)


def noise_checks(
    kind: Kind, xis: tuple[int, ...], sites: int, draws: int, rng: np.random.Generator, table: list[Table]
) -> Iterator[Check | Progress]:
    """G by rectified Gaussians against noise drawn in NumPy, in the layers that have a closed form; the others are kept for the tables."""
    yield Progress(f"{kind}: simulating noise")
    power = float(mean_square_displacement(sites=sites))
    closed, estimates = [], []
    for xi in xis:
        solution = pooling_solution(kind, xi, sites=sites)
        found, g = plain.noise(kind, (xi - 1) // 2, sites, power, draws, rng), two_pixel_noise_stability(solution, sites=sites)
        table.append(Table([float(d) for d in stability(kind, xi, sites, "stay")], found.means, found.errors))
        closed += [(value, value / sites) for value in g]
        estimates.append(plain.Estimates(found.means[: len(g)], found.errors[: len(g)]))
    yield simulated(f"{kind}: G of every layer before the bias", [value for value, _ in closed], estimates, draws)
    yield control(f"{kind}: noise with 1/N once too often", simulated("", [value for _, value in closed], estimates, draws))


def simulated(name: str, predicted: list[float], estimates: list[plain.Estimates], draws: int) -> Check:
    """Simulated stabilities and predicted ones differ by no more than sampling: at 5 standard errors, one false alarm in 10⁶ numbers."""
    means, errors = (np.concatenate([getattr(part, what) for part in estimates]) for what in ("means", "errors"))
    return at_most(
        f"{name}, |simulated − predicted| in standard errors",
        np.abs(means - predicted) / errors,
        5,
        tolerance=0,
        reason=SAMPLED,
        draws=draws,
    )


def depth_law_checks(xis: tuple[int, ...], sites: int) -> Iterator[Check]:
    """The laws of both networks against enumeration, that of constant filters in frequency space, to leading order and in the limit."""
    depths = list(range((max(xis) - 1) // 2))
    for moves in MOVES:
        law = [constant_filter_deformation_stability(k, moves=moves, sites=sites) for k in depths]
        layers = stability("low-frequency", max(xis), sites, moves)[: len(depths)]
        yield agree(f"'{moves}': depth law and enumeration", law, layers, reason="fractions", scope="exact")
        found = [float(d) for d in layers]
        summed = [plain.depth_law(k, sites, moves) for k in depths]
        yield agree(f"'{moves}': depth law summed over frequencies", found, summed, size=sites)
        yield control(
            f"'{moves}': collisions ignored", agree("", found, [plain.depth_law(k, sites, moves, collisions=False) for k in depths])
        )
        constant = [plain.depth_law(k, sites, moves, constant=True) for k in depths]
        yield control(f"'{moves}': frequency 0 among the signals", agree("", found, constant))
        per_site = [plain.depth_law(k, sites, moves, per_site=True) for k in depths]
        yield control(f"'{moves}': 1/N in one of the spectra", agree("", found, per_site))
        if len(depths) > 1:
            shifts = [plain.shift_law(k, sites, moves) for k in depths[1:]]
            layers = stability("high-frequency", max(xis), sites, moves)[1 : len(depths)]
            yield agree(f"'{moves}': depth law of the high-frequency network", layers, shifts, reason="fractions", scope="exact")
        yield from asymptotics(moves, sites)
        yield from plane_checks(moves, plain.STEPS[moves])


def asymptotics(moves: plain.Moves, sites: int) -> Iterator[Check]:
    many, ring = 40 * sites**2 // 100, 1000
    late, limit = (
        constant_filter_deformation_stability(many, moves=moves, sites=sites),
        deformation_stability_limit(moves=moves, sites=sites),
    )
    q = 2 * math.pi / sites
    # Less than four times the ratio of the next frequency's gain to the lowest one's: S_y grows as q².
    left = 4 * ((1 + 2 * math.cos(2 * q)) / (1 + 2 * math.cos(q))) ** (2 * many)
    name = f"'{moves}': limit of many layers, at {many}"
    yield agree(name, float(late), limit, tolerance=left + 1e-12, reason="what the next frequency still adds, and rounding")
    leading = 3 * float(np.mean(np.square(plain.STEPS[moves]))) / 8
    depths = [8, 16, 32]
    values = [float(constant_filter_deformation_stability(k, moves=moves, sites=ring)) * k / leading for k in depths]
    orders = [math.sqrt(8 * math.pi * k / 3) / ring + 0.5 / k for k in depths]
    reason = f"next orders, √(8πk/3)/l and 1/2k, at k = 8, 16, 32 on {ring} sites"
    yield at_most(f"'{moves}': {leading:g}/k, relative errors", [abs(v - 1) for v in values], orders, tolerance=0, reason=reason)
    wrong = at_most("", [abs(2 * v - 1) for v in values], orders, tolerance=0, reason=reason)
    yield control(f"'{moves}': {leading / 2:g}/k", wrong)
    small = [float(constant_filter_deformation_stability(k, moves=moves, sites=sites)) * k / leading for k in (1, 4, 7)]
    crude = agree("", small, [1.0] * 3, tolerance=0.05, reason="five per cent")
    yield predicted_failure(f"'{moves}': {leading:g}/k is more than 5 % off on {sites} sites, at k = 7", crude)


def comparison(xis: tuple[int, ...], sites: int, tables: dict[str, list[Table]]) -> Iterator[Check | Note]:
    """Which network is the more stable, layer by layer."""
    for moves in MOVES:
        low, high = ([stability(kind, xi, sites, moves) for xi in xis] for kind in KINDS)
        inner = [(a, b) for left, right in zip(low, high, strict=True) for a, b in zip(left[1:-1], right[1:-1], strict=True)]
        ours, theirs = [a for a, _ in inner], [b for _, b in inner]
        name = f"'{moves}': D is smaller in the low-frequency network, every layer before the output"
        yield at_most(name, ours, theirs, reason="fractions", scope="exact")
        if max(xis) > 3:  # with one layer both are one network
            yield control(f"'{moves}': D is smaller in the high-frequency network", at_most("", theirs, ours))
        name = f"'{moves}': D of both outputs"
        yield agree(name, [d[-1] for d in low], [d[-1] for d in high], reason="fractions", scope="exact")
    for i, xi in enumerate(xis):
        for kind in KINDS:
            rows = [f"{what} {' '.join(f'{v:.3g}' for v in getattr(tables[kind][i], what))}" for what in ("D", "G", "R")]
            yield Note(f"ξ = {xi}, {kind}, from the input over {(xi - 1) // 2} layers to the output: {', '.join(rows)}")
    yield Note(
        "the low-frequency network has the smaller R at its output because of G alone: each layer triples the noise that the first one "
        "rectified, while the signal, ReLU(ξ − d), does not grow; to moves both outputs are equally stable"
    )


def growth_checks(sites: int, ring: int) -> Iterator[Check | Note]:
    """G of constant filters: the law on a long ring, and what is left of it on a short one."""
    depths, power = np.arange(8, 65), float(mean_square_displacement(sites=sites))
    rectified, linear = (constant_filter_noise_stability(64, rectified=r, power=power, sites=ring)[7:].numpy() for r in (True, False))
    short = np.sqrt(8 * np.pi * depths / 3) / ring  # the share of frequency 0, which carries noise and no signal
    scale, offset = noise_law(power)
    allowed = float((12 / ring + 1 / (8 * depths)).max())
    why = "12/l for the six sites that are lit, and 1/8k for the shape of the filter"
    laws = {"√k + b": np.sqrt(depths) + offset, "√k": np.sqrt(depths), "k + b": depths + offset}
    right, *wrong = (
        agree(f"G with ReLU over {name}", rectified * (1 - short) / scale / law, np.ones(len(depths)), tolerance=allowed, reason=why)
        for name, law in laws.items()
    )
    yield right
    for check in wrong:
        yield control(check.name, check)
    grown, ends = rectified * (1 - short) / scale - offset, 2 * allowed * (1 + offset / math.sqrt(8)) / math.log(8)
    yield rate("G with ReLU, less b, in k", depths, grown, 0.5, tolerance=ends, reason="the error of the law at k = 8 and 64, over log 8")
    flat = linear * (1 - short) / (power / 4)
    orders = float((3 / ring + short / (2 * depths * (1 - short))).max())
    reason = "3/l, and 1/2k of the share of frequency 0"
    yield agree("G without ReLU over P/4", flat, np.ones(len(depths)), tolerance=orders, reason=reason)
    yield control("G without ReLU: 1/N once too often", agree("", flat / ring, np.ones(len(depths)), tolerance=orders))
    first = np.arange(1, 8)
    for name, r in (("with", True), ("without", False)):
        values = constant_filter_noise_stability(7, rectified=r, sites=sites).numpy()
        fitted = rate("", first, values, 0.5)
        yield predicted_failure(f"√k is not how G {name} ReLU grows in layers 1 to 7 of {sites} sites", fitted)
        span = f"from {values[0]:.3f} to {values[-1]:.3f}"
        yield Note(f"G {name} ReLU in layers 1 to 7 of {sites} sites: {span}, fitted exponent {fitted.reason.split(': ')[-1]} (99.9 %)")


def noise_law(power: float) -> tuple[float, float]:
    """Scale and offset b of G = scale·(√k + b): the mean of rectified noise at empty sites, and the sum of its covariances."""
    zero = np.zeros(())
    lags = ((1, 1.0), (2, 2 / 3), (2, 1 / 3))  # of pre-activations that share three sites, two, one
    covariances = sum(count * float(rectified_covariance(zero, zero, 1.0, 1.0, r)) for count, r in lags)
    return power / (24 * math.pi) * math.sqrt(8 * math.pi / 3), 2 * math.pi * math.sqrt(3 / (8 * math.pi)) * covariances


if __name__ == "__main__":
    main(claim)
