"""Where training may end on decoupled data: every component of a block at 0 or on the nonzero branch of its own equation."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

import linconv as lc
from linconv.claims import Check, agree, inconclusive
from linconv.witnesses import largest_root, least_squares_components
from verification._networks import CONVERGED_GRADIENT, Run
from verification._setting import Setting

TOLERANCE_REASON = "an error of 1e-6 in the predictor is 1e-12 in the objective, where rounding stops the optimiser"


def penalty_weight(setting: Setting) -> float:
    """μ = λ L D^{−(L−1)/L}, the weight of the Schatten penalty on orthonormal blocks."""
    return setting.weight_decay * setting.depth * setting.sites ** (1 / setting.depth - 1)


def branches(setting: Setting, m: Float[np.ndarray, "D r"], s: Float[np.ndarray, " D"]) -> tuple[np.ndarray, np.ndarray]:
    """The nonzero branch of each component (0 where it has none), and what it adds to the objective there."""
    mu, p = penalty_weight(setting), 2 / setting.depth
    t = np.array([[largest_root(component, mu / power, p) for component in row] for row, power in zip(m, s, strict=True)])
    return t, s[:, None] * (t**2 / 2 - m * t) + mu * np.where(t > 0, t, 0.0) ** p


def smallest_margin(setting: Setting) -> float:
    """How much, at least, the objective changes where one component of the optimum changes branch: 0 if the optimum is not unique."""
    _, m, _, s = least_squares_components(setting.x.numpy(), setting.y.numpy())
    t, gain = branches(setting, m, s)
    return float(np.abs(gain[t > 0]).min(initial=np.inf))


def branch_checks(setting: Setting, found: Run) -> Iterator[Check]:
    """(c) The trained predictor is the one that its active components predict, singular vectors included, and so is F."""
    trajectory = found.trajectory
    if trajectory.stop_reason == "diverged" or trajectory.gradient_norm > CONVERGED_GRADIENT:
        why = f"{trajectory.stop_reason} at relative gradient {trajectory.gradient_norm:.1e}, above {CONVERGED_GRADIENT}: not converged"
        yield inconclusive(f"(c) {found.name}: on a branch", why)
        return
    u, m, vh, s = least_squares_components(setting.x.numpy(), setting.y.numpy())
    branch, gains = branches(setting, m, s)
    outputs, channels = setting.y.shape[1], setting.x.shape[1]
    blocks = lc.frequency_blocks(found.net).values.detach().reshape(-1, outputs, channels).numpy() / np.sqrt(setting.sites)
    active = (np.einsum("fki,fkc,fic->fi", u.conj(), blocks, vh.conj()).real > branch / 2) & (branch > 0)
    t = np.where(active, branch, 0.0)
    predicted = (u * t[:, None, :]) @ vh
    objective = float(setting.y.square().sum()) / (2 * len(setting.y)) + gains[active].sum()
    label = f"(c) {found.name}, {int(active.sum())} of {active.size} components active"
    yield agree(f"{label}: blocks", blocks, predicted, tolerance=1e-5, reason=TOLERANCE_REASON, scale=float(m.max()))
    yield agree(f"{label}: objective", found.objective, objective, tolerance=1e-9, reason="the optimiser reaches 1e-12 of the objective")
