r"""On the sphere a ReLU network predicts better, and is more stable to rotations, in its lazy than in its feature limit.

$f(x) = \frac1H \sum_h c_h\, \sigma(w_h\cdot x)$ without biases, both layers trained, x uniform on $S^{d-1}$, y = 1.

(a) The lazy limit is kernel regression with $\Theta = |x||z|\,(\sin\theta + 2(\pi-\theta)\cos\theta)/2\pi$; the feature limit is the
interpolant of least total variation $\frac1H \sum_h |c_h||w_h|$. It has at most as many neurons as points, and is certified by a dual
point with $|\sum_i \lambda_i \sigma(w\cdot x_i)| \le 1$ for all neurons. This part is a theorem. (b) Test error and rotation
stability $S = \langle \|f(x) - f(R_\theta x)\|^2\rangle$ of the lazy limit are lower, and its error falls faster with the number P of
points; on Gaussian fields without structure it falls as $P^{-1/(d-1)}$ only. (c) Networks of finite width tend to the lazy limit with
width and scale, and to the feature limit with weight decay, but not by a small start alone. (d) On images the feature regime loses
stability to deformations against the lazy one; whether it predicts worse, as published, is asked.  (b) to (d) are observations, with
intervals over draws that decide.

Source: Petrini, Cagnetta, Vanden-Eijnden and Wyart, arXiv 2206.12314, in kind and not in size; certificates and intervals are this
project's (docs/lazy-feature.md).
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import torch
from annotated_types import Interval as Between
from jaxtyping import Float
from torch import Tensor

from linconv.claims import Check, Figure, Note, Progress, agree, at_most, control, exceeds, main, predicted_failure, rate
from linconv.sphere import arc_cosine_kernel, constant_variation, learning_exponent, min_total_variation, sphere_data, tangent_kernel
from linconv.statistics import Interval, mean_interval
from verification import _lazy_feature_runs as runs
from verification._figure_lazy_feature import figure
from verification._sweeping import classified

KIND = "empirical"
FAST = {"dim": 3, "size": 16, "draws": 3, "side": 6, "samples": 40, "steps": 200}
GAP = 1e-4  # certificates of (a)
CURVE_GAP = 1e-2  # of the variations behind learning curves: less lowers feature errors by less than half, and ratios are decades
WIDTHS, SCALES, DECAY = (64, 256, 1024, 4096, 16384), (4.0, 16.0, 64.0, 256.0), 1e-3
FIELD_DRAWS = 4  # for each other draw: they are cheap, and on a circle the gaps between random points make slopes uncertain
EFFECT = math.log10(1.05)  # of Geary's C: five per cent, what shuffled pixels do not reach by chance
ROUNDING = 1e-9  # of certified minima
BETWEEN_SIZE = 12  # points on S² for networks of finite width
FIELDS: dict[int, tuple[int, ...]] = {
    2: (32, 64, 128, 256),
    3: (64, 128, 256, 512),
    6: (64, 128, 256, 512),
}  # numbers of points by dimension


def claim(
    *,
    dim: Annotated[int, Between(ge=3, le=8), "dimension d of the space of the sphere"] = 5,
    size: Annotated[int, Between(ge=8, le=512), "largest number of training points on the sphere"] = 128,
    draws: Annotated[int, Between(ge=3, le=50), "independent draws of data and networks"] = 4,
    data: Annotated[str, "images: photos, cifar10, fashion-mnist, or a folder with one subfolder of images a class"] = "photos",
    side: Annotated[int, Between(ge=4, le=64), "side of the images"] = 10,
    samples: Annotated[int, Between(ge=20, le=20000), "training images"] = 150,
    steps: Annotated[int, Between(ge=10, le=10**6), "largest number of steps of a training"] = 1500,
    seed: Annotated[int, Between(ge=0, le=10**6), "seed of the first draw"] = 0,
) -> Iterator[Check | Figure | Note | Progress]:
    for split, count in (("train", samples), ("test", 2 * samples)):  # now, and not after minutes
        classified(data, lambda of=split, n=count: runs.pictures(data, of, n, side, torch.Generator().manual_seed(seed)))  # type: ignore[misc]
    yield from theorem_checks(seed)
    sizes = [size // 4, size // 2, size]
    table: list[list[runs.Limits]] = []
    for i in range(draws):
        table.append([])
        for n in sizes:
            yield Progress(f"both limits, d = {dim}, {n} points", (i + 0.3 * len(table[i])) / draws)
            table[i].append(runs.limits(dim, n, seed + i, CURVE_GAP))
    yield Note(f"sphere: d = {dim}, {', '.join(map(str, sizes))} points, {draws} draws, rotations by {runs.ANGLE} rad", in_scope=True)
    yield from sphere_checks(table, sizes, dim)
    fields = {}
    for d in FIELDS:
        yield Progress(f"Gaussian fields, d = {d}")
        fields[d] = torch.stack([runs.curse(d, FIELDS[d], seed + i, 300) for i in range(FIELD_DRAWS * draws)])
    yield from field_checks(fields)
    middle = []
    for i in range(draws):
        yield Progress("networks of finite width", i / draws)
        middle.append(runs.between(3, BETWEEN_SIZE, seed + i, WIDTHS, SCALES, DECAY, 2 * steps))
    yield from width_checks(middle)
    found = []
    for i in range(draws):
        yield Progress(f"networks on {data}", i / draws)
        found.append(runs.image_run(data, side, samples, 200, steps, seed + i))
    yield Note(f"images: {samples} of {data}, {side}×{side}, {draws} draws, width 200", in_scope=True)
    yield from image_checks(found)
    yield Figure("lazy_feature", lambda: figure(table, sizes, fields, FIELDS, middle, WIDTHS, SCALES, found, dim))


# --- (a) -----------------------------------------------------------------------------------------------------------------


def theorem_checks(seed: int) -> Iterator[Check | Progress]:
    """(a) The kernel against quadrature, the feature limit against its certificates."""
    angles = torch.linspace(0, math.pi, 7, dtype=torch.float64)
    x, z = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.stack([angles.cos(), angles.sin()], 1)
    expected = [runs.kernel_by_quadrature(float(angle)) for angle in angles]
    why = "the quadrature asks for 1e-13; angles have rounding of 1e-16"
    yield agree("(a) Θ at seven angles: closed form, quadrature", tangent_kernel(x, z)[0], expected, tolerance=1e-12, reason=why)
    for name, wrong in {
        "the first layer forgotten": arc_cosine_kernel(x, z, 1),
        "the second layer forgotten": x @ z.T * arc_cosine_kernel(x, z, 0),
        "steps for ReLUs": (1 + x @ z.T) * arc_cosine_kernel(x, z, 0),
    }.items():
        yield control(f"(a) Θ: {name}", agree("", wrong[0], expected, tolerance=1e-12))
    for dim, size in ((2, 24), (3, 16)):
        yield Progress(f"certifying the least total variation, d = {dim}")
        generator = torch.Generator().manual_seed(seed)
        points, y = sphere_data(size, dim, generator=generator), torch.ones(size, dtype=torch.float64)
        f = min_total_variation(points, y, generator=generator, tol=GAP)
        least, name = f.lower_bound, f"(a) d = {dim}, {size} points"
        why = "its certified lower bound and the gap asked for"
        yield at_most(f"{name}: total variation", f.total_variation, least * (1 + GAP), reason=why, scope="certified")
        yield agree(f"{name}: the feature limit interpolates", f(points), y, size=size**2, reason="a linear system of P equations")
        yield at_most(f"{name}: neurons, at most as many as points", len(f.weights), size, reason="a vertex of the programme")
        yield at_most(f"{name}: bound, at most the uniform density's", least, constant_variation(dim), reason="it computes f = 1")
        if dim > 2:  # a circle is filled by a few random neurons
            grid = min_total_variation(points, y, generator=generator, max_rounds=1).total_variation
            yield control(f"{name}: fixed random neurons, none exchanged", at_most("", grid, least * (1 + GAP)))
        yield control(f"{name}: half the uniform density", at_most("", least, constant_variation(dim) / 2))
        yield control(f"{name}: a dual point 1 % too long", at_most("", 1.01 * least, f.total_variation))


# --- (b) -----------------------------------------------------------------------------------------------------------------


def sphere_checks(table: list[list[runs.Limits]], sizes: list[int], dim: int) -> Iterator[Check | Note]:
    """(b) Errors and stabilities of the two limits, as ratios over draws, and exponents of learning curves."""

    def column(of: Callable[[runs.Limits], float]) -> Float[Tensor, "draws sizes"]:
        return torch.tensor([[of(entry) for entry in row] for row in table], dtype=torch.float64)

    lazy, feature = column(lambda e: e.lazy_error), column(lambda e: e.feature_error)
    stable, unstable = column(lambda e: e.lazy_stability), column(lambda e: e.feature_stability)
    draws = len(table)
    for j, size in enumerate(sizes):
        yield Note(
            f"{size} points: test error {geometric(lazy[:, j]):.2g} lazy, {geometric(feature[:, j]):.2g} feature; rotation stability "
            f"{geometric(stable[:, j]):.2g} and {geometric(unstable[:, j]):.2g} (geometric means)"
        )
        for name, ratio in {"test error": feature / lazy, "rotation stability": unstable / stable}.items():
            yield exceeds(f"(b) {size} points: log₁₀ of {name}, feature over lazy", decades(ratio[:, j]), 0.0, draws=draws)
    last = table[0][-1].feature
    found = max(entry.feature.gap for row in table for entry in row)
    yield at_most(
        "(b) gap of the feature limits, to the local maxima found", found, CURVE_GAP, tolerance=0.0, reason="asked for", required=False
    )
    yield Note(
        f"the feature limit on {sizes[-1]} points has {len(last.weights)} neurons; its gap is {'proved' if last.proved else 'not proved'}"
    )
    wrong = {
        "coefficients of the kernel at other points": feature / column(lambda e: e.crossed_error),
        "random signs for targets": feature / column(lambda e: e.signs_error),
    }
    for name, ratio in wrong.items():
        yield control(f"(b) {sizes[-1]} points: {name}", exceeds("", decades(ratio[:, -1]), 0.0))
    yield from exponent_checks(lazy, feature, sizes, dim)


def exponent_checks(
    lazy: Float[Tensor, "draws sizes"], feature: Float[Tensor, "draws sizes"], sizes: list[int], dim: int
) -> Iterator[Check | Note]:
    """(b) Learning curves on y = 1: the ratio feature/lazy grows as a power of the number of points."""
    p = torch.tensor(sizes, dtype=torch.float64)
    each = [learning_exponent(p, errors) for errors in (lazy, feature)]
    faster = learning_exponent(p, lazy / feature)
    yield exceeds("(b) exponent of the lazy test error less that of the feature limit", faster, 0.0, draws=len(lazy))
    yield control("(b) exponent: a rise by 5, planted", exceeds("", learning_exponent(p, lazy / feature * p**5), 0.0))
    yield Note(
        f"test error ∝ P^-β: β = {shown(each[0])} lazy, {shown(each[1])} feature; counting of scales gives {2 * dim / (dim - 1):.2f} and "
        f"{(dim + 2) / (dim - 1):.2f} at large P"
    )


def field_checks(fields: dict[int, Float[Tensor, "draws sizes"]]) -> Iterator[Check | Note]:
    """(b) Fields as rough as Θ: the expected error of the best predictor there is, without sampling of fields."""
    exponents = {d: learning_exponent(torch.tensor(FIELDS[d]).double(), errors) for d, errors in fields.items()}
    for d, errors in fields.items():
        yield Note(f"field without structure, d = {d}: β = {shown(exponents[d])}; 1/(d − 1) = {1 / (d - 1):.2f} at large P")
        if d > 3:
            continue
        why = "the limit of large P, at hundreds of points; an error of one dimension makes 1/6 or more"
        points, values = torch.tensor(FIELDS[d]).expand(errors.shape).flatten(), errors.flatten()
        limit, wrong = -1 / (d - 1), -2 * d / (d - 1)
        yield rate(f"(b) field without structure, d = {d}", points, values, limit, tolerance=0.125, reason=why)
        yield control(f"(b) field, d = {d}: exponent of y = 1", rate("", points, values, wrong, tolerance=0.125))
    slower = learning_exponent(torch.tensor(FIELDS[3]).double(), fields[3] / fields[6])
    yield exceeds("(b) curse of dimensionality: exponent at d = 3 less that at d = 6", slower, 0.0, draws=len(fields[3]))


# --- (c) -----------------------------------------------------------------------------------------------------------------


def width_checks(middle: list[runs.Between]) -> Iterator[Check | Note]:
    """(c) Rates of the lazy limit; total variations of trained networks against the certified minimum."""
    draws = len(middle)
    distances, scales = (torch.stack([getattr(run, name) for run in middle]) for name in ("widths", "scales"))
    widths = torch.tensor(WIDTHS).expand(distances.shape).flatten()
    why = "kernels are means over neurons; 1/4 is half way to no fall and to 1/H"
    values = distances.flatten()
    yield rate("(c) own kernel to Θ, with width", widths, values, -0.5, reason=why, draws=draws, tolerance=0.25, confidence=0.95)
    yield control("(c) own kernel to Θ: 1/H²", rate("", widths, values, -2.0, tolerance=0.25, confidence=0.95))
    fall = learning_exponent(torch.tensor(SCALES).double(), scales)
    yield exceeds("(c) trained network to its own kernel: exponent of the fall with scale", fall, 0.0, draws=draws)
    rise = learning_exponent(torch.tensor(SCALES).double(), scales * torch.tensor(SCALES).double() ** 5)
    yield control("(c) exponent: a rise by 5 with scale, planted", exceeds("", rise, 0.0))
    yield Note(f"distance to the lazy limit ∝ scale^-γ at width {runs.WIDTH}: γ = {shown(fall)}; ½ where neurons switch, 1 where none does")
    pairs = {
        "total variation": [(run.total_variation, run.bound) for run in middle],
        "objective with weight decay": [run.decayed for run in middle],
    }
    for name, both in pairs.items():
        observed, bound = ([pair[i] for pair in both] for i in range(2))
        text = f"(c) certified minimum, at most the trained networks' {name}"
        certified = all(run.proved for run in middle)
        reason = "weak duality" if certified else "weak duality, of the largest |g_λ| that the search knows"
        scope: Literal["certified", "sampled"] = "certified" if certified else "sampled"
        yield at_most(text, bound, observed, reason=reason, size=BETWEEN_SIZE, draws=draws, scope=scope)
        yield control(f"{text}: ten times the minimum", at_most("", [10 * value for value in bound], observed))
    above = torch.tensor([run.decayed[0] / run.decayed[1] - 1 for run in middle], dtype=torch.float64)
    yield Note(f"objective with weight decay {DECAY:g}: above the certified minimum by {float(above.max()):.2%} at most")
    excess = torch.tensor([run.excess for run in middle], dtype=torch.float64)
    yield exceeds("(c) a small start alone: total variation above the minimum, relative", mean_interval(excess), 0.0, draws=draws)
    nearer = torch.tensor([run.to_feature[0] / run.to_feature[1] for run in middle], dtype=torch.float64)
    text = "(c) log₁₀ of the distance to the feature limit: without over with weight decay"
    yield exceeds(text, decades(nearer), 0.0, draws=draws, required=False)
    left = torch.tensor([run.excesses for run in middle], dtype=torch.float64).clamp_min(ROUNDING)
    text = "(c) log₁₀ of the total variation above its certified minimum: without over with weight decay"
    yield exceeds(text, decades(left[:, 0] / left[:, 1]), 0.0, draws=draws)
    yield control(f"{text}: the other way round", exceeds("", decades(left[:, 1] / left[:, 0]), 0.0))
    apart = torch.tensor([run.to_lazy[1] / run.to_feature[1] for run in middle], dtype=torch.float64)
    yield exceeds("(c) with weight decay: log₁₀ of the distance to lazy over that to feature", decades(apart), 0.0, draws=draws)


# --- (d) -----------------------------------------------------------------------------------------------------------------


COMPARISONS = {
    "relative stability R: feature over lazy": ("feature R", "lazy R", True),
    "relative stability R: feature over its start": ("feature R", "feature R at the start", True),
    "test error: feature over lazy": ("feature error", "lazy error", False),
}


def image_checks(found: list[dict[str, float]]) -> Iterator[Check | Note]:
    """(d) Ratios over draws of images and networks."""

    def column(key: str) -> Float[Tensor, " draws"]:
        return torch.tensor([run[key] for run in found], dtype=torch.float64)

    def log_ratio(above: str, below: str) -> Interval:
        return decades(column(above) / column(below))

    for name in ("feature", "lazy"):
        parts = [
            f"{what} {float(column(f'{name} {what}').mean()):.2f}"
            for what in ("loss", "R at the start", "R", "error", "accuracy", "roughness after")
        ]
        yield Note(f"{name} networks, means over draws: {', '.join(parts)} (loss: of the first)")
    for name, (above, below, required) in COMPARISONS.items():
        yield exceeds(f"(d) log₁₀ of {name}", log_ratio(above, below), 0.0, draws=len(found), required=required)
    yield from change_checks(column, len(found))
    rougher = exceeds("", log_ratio("feature roughness after", "feature roughness before"), 0.0, draws=len(found))
    yield predicted_failure("(d) weights grow rougher than they start (they start white, and images are smooth)", rougher)
    planted = column("feature R") / (100 * column("lazy R"))
    yield control("(d) stability: a hundredfold R of the lazy networks planted", exceeds("", decades(planted), 0.0))
    yield control("(d) test error: lazy with shuffled labels", exceeds("", log_ratio("feature error", "shuffled error"), 0.0))


def change_checks(column: Callable[[str], Float[Tensor, " draws"]], draws: int) -> Iterator[Check | Note]:
    """Geary's C, and not roughness, which knows the mean of each channel too: shuffled pixels keep it, and both networks differ in it."""
    contrast = {side: column(f"{side} contrast of the change") for side in ("feature", "lazy")}
    text = "(d) log₁₀ of Geary's C of what training adds to first-layer weights: feature over lazy"
    yield exceeds(text, decades(contrast["feature"] / contrast["lazy"]), EFFECT, draws=draws)
    shuffled = column("feature contrast, pixels shuffled") / column("lazy contrast, pixels shuffled")
    yield control(f"{text}: pixels shuffled", exceeds("", decades(shuffled), EFFECT))
    means = ", ".join(f"{side} {float(values.mean()):.3f}" for side, values in contrast.items())
    yield Note(f"Geary's C of the change, 1 where pixels do not know of their neighbours, means over draws: {means}")


# --- Statistics ----------------------------------------------------------------------------------------------------------


def decades(ratios: Float[Tensor, " draws"]) -> Interval:
    """The mean of log₁₀ of ratios, with Student's interval over draws."""
    return mean_interval(ratios.log10())


def geometric(values: Float[Tensor, " draws"]) -> float:
    return float(values.log().mean().exp())


def shown(interval: Interval) -> str:
    return f"{float(interval.estimate):.2f} ({float(interval.low):.2f} to {float(interval.high):.2f})"


if __name__ == "__main__":
    main(claim)
