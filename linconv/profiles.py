r"""What gradient descent writes into a first layer: the energy profiles that theory predicts.

A linear layer of K filters sees the mean patch $\bar p_n$ of each image, and a head V adds its answers up: outputs $V W \bar p_n$ with W
the K×P filters, loss $\frac1N \sum_n \|y_n - V W \bar p_n\|^2$.  Filters are trained by gradient descent, $W \leftarrow W - 2\eta V^T E$
with $E = VWA - B$, $A = \frac1N \sum \bar p \bar p^T$, $B = \frac1N \sum y \bar p^T$.  The published formula is theorem 4.2 of Chowers and
Weiss, arXiv 2206.02454; the exact laws are derived in docs/energy-profile.md.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from linconv.joint_training import aligned_mode as aligned_mode
from linconv.joint_training import balance_change as balance_change
from linconv.joint_training import joint_step as joint_step
from linconv.joint_training import moments as moments
from linconv.joint_training import reduced_svd
from linconv.joint_training import small_start_limit as small_start_limit
from linconv.patches import PatchSpectrum, energy_profile, mean_patches
from linconv.validation import validate_number, validate_steps, validate_tensor

Form = Literal["published", "exact", "random-labels"]
Real = int | float
EPSILON = torch.finfo(torch.float64).eps


def predicted_profile(
    spectrum: PatchSpectrum | Float[Tensor, " P"],
    *,
    step_size: Real,
    steps: Real | Float[Tensor, ""],
    form: Form = "published",
    images: Float[Tensor, "N C *grid"] | None = None,
    targets: Float[Tensor, "N *M"] | None = None,
    filters: Float[Tensor, "K C *kernel"] | None = None,
    head: Float[Tensor, "M K"] | None = None,
) -> Float[Tensor, " P"]:
    r"""The energies e_i of a first layer after `steps` steps of gradient descent, in the order of the spectrum's components.

    The model is ŷ = Σ_k ⟨w_k, p̄⟩ (one output, all heads one), trained on (1/N) Σ (y − ŷ)².  Any number of steps costs the same,
    `math.inf` included.  Where the spectrum was centred, the model sees patches less its mean.

    * "published": $|1 - (1 - \eta\lambda_i^2)^t| / (\eta^2\lambda_i^2) \cdot \lambda_i$, theorem 4.2 of arXiv 2206.02454 as printed, with
      its constant c̃ = 1 and for filters that start at zero.  It needs the λ_i alone, and refuses data that it would not look at.
    * "exact": the profile of exactly these `images`, `targets` (used as given) and initial `filters`, whatever they are; with a fixed
      `head` `(M, K)` the model has M outputs, ŷ = V W p̄, and `targets` are `(N, M)`.
    * "random-labels": the root of the expected squares for independent labels of mean 0.  Their variance is the mean square of `targets`,
      or 1; the data are `images`, or those of the spectrum; `filters`, by default one that starts at zero, are the initial ones.

    A component whose λ_i (or, in the exact forms, whose part of the mean patches) is zero to rounding keeps the energy it starts with.

    Raises `ValueError` or `TypeError` naming the argument: a step size at which gradient descent, or the published formula, diverges;
    negative or fractional steps; labels of the wrong length; something that the form needs and that is missing, or does not use;
    a step size so small that the published factor 1/η² leaves the range of the dtype.

    >>> lambdas = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    >>> (0.1 * predicted_profile(lambdas, step_size=0.1, steps=1)).round(decimals=12).tolist()      # at first ∝ λ
    [2.0, 1.0, 0.5]
    >>> (0.01 * predicted_profile(lambdas, step_size=0.1, steps=math.inf)).round(decimals=12).tolist()      # in the end whitening, 1/λ
    [0.5, 1.0, 2.0]
    """
    eta, t = validate_number("step_size", step_size, positive=True), validate_steps(steps)
    if head is not None and form != "exact":
        raise ValueError(f"head: expected none for the form {form!r}, which has one output; take form='exact'")
    if form == "published":
        for name, given in (("images", images), ("targets", targets), ("filters", filters)):
            if given is not None:
                raise ValueError(f"{name}: expected none for the form 'published', which sees λ alone; take form='exact', or leave it out")
        lambdas = spectrum.lambdas if isinstance(spectrum, PatchSpectrum) else validate_lambdas(spectrum)
        profile = published(lambdas.to(torch.float64), eta, t).to(lambdas.dtype)
        if not bool(torch.isfinite(profile).all()):
            raise ValueError(f"step_size: the published factor 1/η² leaves the range of {lambdas.dtype} at {eta:.4g}; take a larger one")
        return profile
    if form not in ("exact", "random-labels"):
        raise ValueError(f"form: expected 'published', 'exact' or 'random-labels', got {form!r}")
    if not isinstance(spectrum, PatchSpectrum):
        raise TypeError(f"spectrum: the form {form!r} needs a PatchSpectrum, got {type(spectrum).__name__}; use linconv.patch_spectrum")
    if form == "random-labels":
        return _random_labels(spectrum, eta, t, images, targets, filters).to(spectrum.lambdas.dtype)
    if images is None or targets is None or filters is None:
        raise ValueError("images, targets, filters: the form 'exact' needs all three, got None for at least one; pass them")
    trained = exact_dynamics(spectrum, images, targets, filters, step_size=eta, head=head).at(t)
    return energy_profile(trained, spectrum.components).to(spectrum.lambdas.dtype)


def published(lambdas: Float[Tensor, " P"], step_size: Real, steps: Real | Float[Tensor, "*T 1"]) -> Float[Tensor, "*T P"]:
    """Theorem 4.2 as printed with c̃ = 1, a row for each number of steps; `ValueError` where ηλ² ≥ 2 and the formula diverges."""
    rate = step_size * lambdas * lambdas  # λ² alone may vanish
    require_stable(float(rate.max()), step_size, "the published formula")
    t = torch.as_tensor(steps, dtype=torch.float64, device=rate.device)
    # Neither η² nor a rate below the normal numbers is ever formed: 1 − (1 − x)^t is 1 − exp(−xt) there, and at first xt.
    spent = (t * lambdas) * (step_size * lambdas)
    tiny = torch.where(spent < EPSILON, t * lambdas / step_size, -torch.expm1(-spent) / lambdas / step_size / step_size)
    return torch.where(lambdas > 0, torch.where(rate > 1e-290, learned(rate, steps) / rate * (lambdas / step_size), tiny), 0.0)


def learned(rate: Float[Tensor, "..."], steps: Real | Float[Tensor, "*T 1"]) -> Float[Tensor, "..."]:
    """1 − (1 − x)^t for rates 0 ≤ x < 2 and whole t ≥ 0 up to infinity, without cancellation; a rate of 0 never learns."""
    t = torch.as_tensor(steps, dtype=torch.float64, device=rate.device)
    # 1 − x and x − 1 = 1 − (2 − x) have one logarithm, and 2 − x is exact from x = 1 on.
    exponent = t * torch.log1p(-torch.minimum(rate, 2 - rate))
    sign = torch.where(t.isinf(), 0.0, 1 - 2 * (t % 2))
    grown = torch.where(rate <= 1, -torch.expm1(exponent), 1 - sign * exponent.exp())
    return torch.where((rate == 0) | (t == 0), 0.0, grown)


@dataclass(frozen=True)
class ExactDynamics:
    r"""Gradient descent on the filters under a fixed head, solved: $W_t = W_0 + R\,[(1 - (1 - \rho)^t) \circ G]\,Q^T$.

    `start`: W_0, K×P. `outputs`: R, K×r, orthonormal directions of filter space that the head sees. `inputs`: Q, P×q, those of patch
    space that the data fill. `rates`: ρ_ai = 2η s_a² α_i, r×q, with s the head's singular values and α the eigenvalues of A.
    `gap`: G = RᵀW_∞Q − RᵀW_0Q, r×q. `shape`: (C, *kernel).
    """

    start: Float[Tensor, "K P"]
    outputs: Float[Tensor, "K r"]
    inputs: Float[Tensor, "P q"]
    rates: Float[Tensor, "r q"]
    gap: Float[Tensor, "r q"]
    shape: tuple[int, ...]

    def at(self, steps: Real | Float[Tensor, ""]) -> Float[Tensor, "K C *kernel"]:
        """The filters after `steps` steps, in float64; any number costs the same. Raises for negative or fractional numbers."""
        change = learned(self.rates, validate_steps(steps)) * self.gap
        return (self.start + self.outputs @ change @ self.inputs.T).unflatten(1, self.shape)


def exact_dynamics(
    spectrum: PatchSpectrum,
    images: Float[Tensor, "N C *grid"],
    targets: Float[Tensor, "N *M"],
    filters: Float[Tensor, "K C *kernel"],
    *,
    step_size: Real,
    head: Float[Tensor, "M K"] | None = None,
) -> ExactDynamics:
    r"""Gradient descent on the filters W alone of $\frac1N \sum_n \|y_n - V W \bar p_n\|^2$, V fixed: exact for any data and time.

    `targets` are `(N,)` for the head that sums all filters (the default), else `(N, M)` for the head `(M, K)`.  Patches are cut, and
    centred, as those of the spectrum.  With V = P S Rᵀ and $\bar P = \sqrt N\, U \alpha^{1/2} Q^T$, the mode $z = R_a^T W Q_i$ obeys
    $z \leftarrow z - 2\eta s_a (s_a \alpha_i z - P_a^T B Q_i)$; what neither V nor the data reach stays as it is.  Singular values of
    the data are taken from the mean patches themselves, not from A, so that weak directions keep their digits.

    Raises `ValueError` or `TypeError` naming the argument, for a step size at which gradient descent diverges too.
    """
    eta = validate_number("step_size", step_size, positive=True)
    patches, start = mean_patches(spectrum, images), _filters(spectrum, filters)
    heads = start.new_ones(1, len(start)) if head is None else validate_tensor("head", head, ndim=(2,), shape="(M, K)").to(torch.float64)
    validate_tensor("targets", targets, ndim=(1,) if head is None else (2,), shape="(N,) for the head that sums, (N, M) with a head (M, K)")
    if len(targets) != len(patches):
        raise ValueError(f"targets: expected {len(patches)}, one an image, got {len(targets)}; pass those of these images")
    if heads.shape[1] != len(start) or (head is not None and targets.shape[1] != len(heads)):
        raise ValueError(f"head: expected ({targets[0].numel()}, {len(start)}), outputs by filters, got {tuple(heads.shape)}")
    left, sizes, right = reduced_svd(patches, _rounding(spectrum, images))
    into, gains, outputs = reduced_svd(heads)
    rates = 2 * eta * (gains[:, None] * sizes).square() / len(patches)
    require_stable(float(rates.max()) if rates.numel() else 0.0, eta, "gradient descent")
    reached = into.T @ targets.to(torch.float64).reshape(len(patches), -1).T @ left / (gains[:, None] * sizes)
    return ExactDynamics(start, outputs, right, rates, reached - outputs.T @ start @ right, spectrum.patch_shape)


def _random_labels(
    spectrum: PatchSpectrum, eta: float, t: float, images: Tensor | None, targets: Tensor | None, filters: Tensor | None
) -> Float[Tensor, " P"]:
    r"""The root of $s_i^2 + \langle u_i, (I - 2\eta K A)^t \bar w_0\rangle^2 + \frac{\sigma^2}{N} u_i^T G A G u_i$, s_i conserved."""
    if images is None:
        values, vectors = torch.linalg.eigh(spectrum.precise_covariance)
        # Summed from patches of the size of the largest λ.
        kept = values > EPSILON * max(float(values[-1]), len(values) * float(spectrum.lambdas.max()) ** 2)
        alpha, q, n = values[kept], vectors[:, kept], spectrum.n_images
    else:
        patches = mean_patches(spectrum, images)
        _, sizes, q = reduced_svd(patches, _rounding(spectrum, images))
        alpha, n = sizes.square() / len(patches), len(patches)
    start = q.new_zeros(1, len(q)) if filters is None else _filters(spectrum, filters)
    variance = 1.0
    if targets is not None:
        if validate_tensor("targets", targets, ndim=(1,), shape="(N,), one label an image").shape != (n,):
            raise ValueError(f"targets: expected {n}, one an image, got {len(targets)}; pass those of these images")
        variance = float(targets.to(torch.float64).square().mean())
    rate = 2 * eta * len(start) * alpha
    require_stable(float(rate.max()) if rate.numel() else 0.0, eta, "gradient descent")
    grown, u, mean = learned(rate, t), spectrum.components.to(torch.float64), start.mean(0)
    kept_part = u @ (mean - q @ (grown * (q.T @ mean)))
    expected = (u @ q).square() @ (grown / len(start)).square().div(alpha) * variance / n
    return (((start - mean) @ u.T).square().mean(0) + kept_part.square() + expected).sqrt()


def validate_lambdas(lambdas: object) -> Float[Tensor, " P"]:
    """The tensor of λ_i if it is one, else raise."""
    values = validate_tensor("spectrum", lambdas, ndim=(1,), shape="a PatchSpectrum or its lambdas (P,)")
    if bool((values < 0).any()):
        raise ValueError(f"spectrum: expected λ_i ≥ 0, got {float(values.min())}; they are square roots of variances")
    return values.detach()


def _filters(spectrum: PatchSpectrum, filters: object) -> Float[Tensor, "K P"]:
    """The initial filters in float64, flattened."""
    shape = spectrum.patch_shape
    weight = validate_tensor("filters", filters, ndim=(1 + len(shape),), shape=f"filters (K, {', '.join(map(str, shape))})")
    if weight.shape[1:] != shape:
        raise ValueError(f"filters: expected (K, {', '.join(map(str, shape))}) as the spectrum's patches, got {tuple(weight.shape)}")
    return weight.detach().to(torch.float64).flatten(1)


def _rounding(spectrum: PatchSpectrum, images: Float[Tensor, "N C *grid"]) -> float:
    """The norm of the rounding of mean patches: a few units of the pixels an entry, and those of the mean.

    Where all mean patches are alike but for rounding, as of one image less its own mean, nothing is learned; without this bound an
    infinite time would write the rounding into the filters, blown up by its inverse.
    """
    low, high = images.detach().aminmax()
    entries = 8 * EPSILON * max(abs(float(low)), abs(float(high))) * math.sqrt(len(spectrum.mean))
    centre = EPSILON * float(torch.linalg.vector_norm(spectrum.precise_mean))
    return math.sqrt(len(images)) * (entries + centre)


def require_stable(rate: float, step_size: Real, what: str) -> None:
    """Raise, naming the largest stable step, where the largest rate is 2 or more."""
    if rate >= 2:
        raise ValueError(f"step_size: {what} diverges at {step_size:.4g}; expected less than {2 * step_size / rate:.4g}")
