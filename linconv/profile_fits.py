r"""How well the published profile fits a measured one, and how well it fits profiles that have nothing to do with it.

The formula has a free time t. A correlation that is the best over t says little by itself: decreasing profiles drawn at random, and
powers of λ, are fitted well too.  Every fit is therefore shown beside the same search on those two families.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from linconv.patches import PatchSpectrum
from linconv.profiles import Real, published, require_stable, validate_lambdas
from linconv.validation import validate_generator, validate_number, validate_size, validate_tensor

TIMES = 400  # on a logarithmic grid: neighbours differ by a few per cent, and profiles by less
EXPONENTS = (-1.0, 2.0)
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ProfileFit:
    """The published formula with its best time, and the same search on null models.

    `steps`: the t of the best correlation, `math.inf` for whitening. `correlation`: Pearson's. `log_rms`: root mean square of
    log(measured/fitted), infinite where a measured energy is 0. `profile`: the fitted energies, scaled (c̃) for the least `log_rms`.
    `null_decreasing`, `null_powers`: best correlations of random decreasing profiles and of powers λ^q, q uniform on [−1, 2].
    `p_decreasing`, `p_powers`: the share of each family that fits at least as well, the measured profile counted in.
    """

    steps: float
    correlation: float
    log_rms: float
    profile: Float[Tensor, " P"]
    null_decreasing: Float[Tensor, " draws"]
    null_powers: Float[Tensor, " draws"]

    @property
    def p_decreasing(self) -> float:
        return self._p_value(self.null_decreasing)

    @property
    def p_powers(self) -> float:
        return self._p_value(self.null_powers)

    @property
    def p_value(self) -> float:
        """The larger of the two: the fit has to beat both families."""
        return max(self.p_decreasing, self.p_powers)

    def _p_value(self, null: Float[Tensor, " draws"]) -> float:
        return (1 + int((null >= self.correlation).sum())) / (1 + len(null))

    @property
    def verdict(self) -> str:
        """What the fit is worth, in one sentence."""
        found = f"correlation {self.correlation:.3f} (log-RMS error {self.log_rms:.2g}) at t = {self.steps:.4g}"
        beaten = f"{self.p_decreasing:.1%} of random decreasing profiles and {self.p_powers:.1%} of power laws fit at least as well"
        worth = "evidence for the formula" if self.p_value < SIGNIFICANT else "no evidence for the formula"
        return f"{found}; {beaten}: {worth}."


def fit_published(
    energies: Float[Tensor, " P"],
    spectrum: PatchSpectrum | Float[Tensor, " P"],
    *,
    step_size: Real,
    generator: torch.Generator,
    draws: int = 1000,
) -> ProfileFit:
    r"""The whole number of steps t ≥ 1 (or ∞) at which the published formula correlates best with measured energies, with its null.

    `energies` are those of `energy_profile`, in the order of the components; `step_size` is η of the formula, so that η·t is what is
    fitted where ηλ² is small.  Components with λ = 0 are left out.  `draws` profiles of each null family are drawn from `generator`
    and fitted in the same way.  Derived here; the formula is theorem 4.2 of arXiv 2206.02454.

    Raises `ValueError` or `TypeError` for fewer than three components, for energies or λ that are all alike, so that a correlation
    means nothing, for negative energies, and for a step size at which the formula diverges, or moves nothing in 1e100 steps.

    >>> lambdas = torch.linspace(3, 0.1, 27, dtype=torch.float64)
    >>> generator = torch.Generator().manual_seed(0)
    >>> fit = fit_published(published(lambdas, 0.1, 30), lambdas, step_size=0.1, generator=generator)
    >>> round(fit.correlation, 3), fit.p_value < 0.05
    (1.0, True)
    >>> fit_published(lambdas**0.3, lambdas, step_size=0.1, generator=generator).verdict[-28:]
    'no evidence for the formula.'
    """
    eta, count, source = (
        validate_number("step_size", step_size, positive=True),
        validate_size("draws", draws),
        validate_generator(generator),
    )
    values, observed, kept = _comparable(energies, spectrum)
    largest = float(values.max())
    require_stable(eta * largest * largest, eta, "the published formula")
    values, eta = values / largest, eta * largest * largest  # the same rates, and up to a factor the same shape
    size = observed.max()  # squares of what is as large as 1 neither overflow nor vanish
    observed = observed / size
    times = _times(eta, values)
    shapes = published(values, eta, times[:, None])
    standard = _standardised(shapes)
    best, index = (standard @ _standardised(observed)).max(0)
    random = torch.rand(count, len(values), dtype=torch.float64, device=source.device, generator=source).cpu()
    low, high = EXPONENTS
    powers = low + (high - low) * torch.rand(count, 1, dtype=torch.float64, device=source.device, generator=source).cpu()
    order = values.argsort(descending=True).argsort()
    decreasing = random.sort(descending=True).values[:, order]
    null = [(_standardised(profiles) @ standard.T).amax(1) for profiles in (decreasing, values**powers)]
    positive = observed > 0
    ratio = (observed[positive] / shapes[index][positive]).log()
    fitted = torch.zeros(len(kept), dtype=torch.float64)
    fitted[kept] = shapes[index] * (ratio.mean() + size.log()).exp()
    error = float((ratio - ratio.mean()).square().mean().sqrt()) if bool(positive.all()) else math.inf
    return ProfileFit(float(times[index]), float(best), error, fitted, *null)


def _comparable(energies: object, spectrum: object) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Bool[Tensor, " P"]]:
    """λ and energies of the components with λ > 0 in float64 on the CPU, and which they are; raises where nothing can be fitted."""
    given = spectrum.lambdas if isinstance(spectrum, PatchSpectrum) else validate_lambdas(spectrum)
    lambdas = given.cpu().to(torch.float64)
    measured = validate_tensor("energies", energies, ndim=(1,), shape="energies (P,)").detach().cpu().to(torch.float64)
    if measured.shape != lambdas.shape:
        raise ValueError(f"energies: expected {len(lambdas)} numbers, one a component, got {len(measured)}; use energy_profile")
    if bool((measured < 0).any()):
        raise ValueError(f"energies: expected numbers ≥ 0, got {float(measured.min()):.3g}; use energy_profile")
    kept = lambdas > 0
    for name, entries in (("energies", measured[kept]), ("spectrum", lambdas[kept])):
        if len(entries) < 3 or float(entries.max() - entries.min()) <= 1e-6 * float(entries.max()):
            raise ValueError(f"{name}: expected three or more components with λ > 0, not all alike, got {len(entries)}; nothing to fit")
    return lambdas[kept], measured[kept], kept


def _times(eta: float, lambdas: Float[Tensor, " P"]) -> Float[Tensor, " T"]:
    """Whole numbers of steps from the first to where every component is learned to rounding, and infinity."""
    slowest = eta * float(lambdas.min()) * float(lambdas.min())
    if slowest < 1e-100:
        raise ValueError(f"step_size: expected η λ² of at least 1e-100 for the least λ > 0, got {slowest:.1e}; change units")
    last = max(40 / slowest, 2.0)
    grid = torch.logspace(0, math.log10(last), TIMES, dtype=torch.float64).round().unique()
    return torch.cat([grid, grid.new_tensor([math.inf])])


def _standardised(profiles: Float[Tensor, "*rows P"]) -> Float[Tensor, "*rows P"]:
    """Mean 0 and norm 1 in each row, so that products are correlations; a constant row correlates with nothing."""
    centred = profiles - profiles.mean(-1, keepdim=True)
    return centred / torch.linalg.vector_norm(centred, dim=-1, keepdim=True).clamp(min=1e-300)
