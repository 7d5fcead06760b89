r"""Relative stability of linear convolutional networks in closed form (statement and proof: docs/linear-relative-stability.md).

An image x with m channels on N sites is deformed to τx, and y = τx − x.  With the unnormalised DFT, $S(q) = \mathbb E\,\hat y_q \hat
y_q^\dagger / N$, and white noise η of the energy of y, a stack of circular convolutions with the blocks $V_q$ has

    R = E‖f(τx) − f(x)‖² / E‖f(x + η) − f(x)‖² = N m Σ_q tr(V_q S(q) V_q†) / (Σ_q ‖V_q‖² Σ_q tr S(q)),

for all images and deformations.  A network with readout needs the whole covariance of y.  Derived here.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from linconv.spectra import CHUNK, validate_images
from linconv.spectrum import FrequencyBlocks
from linconv.validation import validate_tensor

Covariance: TypeAlias = Complex[Tensor, "*grid C C"] | Float[Tensor, "*grid C C"]


def linear_relative_stability(blocks: FrequencyBlocks, covariance: Covariance) -> float:
    r"""R = N m Σ_q tr(V_q S(q) V_q†) / (Σ_q ‖V_q‖² Σ_q tr S(q)) of a stack of circular convolutions.

    `blocks` `(*grid, K, C)` of kind "equivariant" (`conv_blocks`, and products of them); `covariance` S `(*grid, C, C)`, Hermitian, in fft
    order: of data by `spectral_covariance(warped - images)`, of a spectrum by `stationary_fields.difference_covariance`.  Exact for any
    images and any deformation, of one realisation too: only S enters.  The noise is white with E‖η‖² = E‖y‖²; with ‖η‖ = E‖y‖ instead,
    R is larger by the factor E‖y‖² / (E‖y‖)².  No unit of either argument matters.

    Raises `ValueError` for blocks with readout (see `readout_relative_stability`), shapes that do not fit, a covariance that is not
    Hermitian with a diagonal ≥ 0, and a network or covariance of zeros.  Source: derived here.

    >>> from linconv.spectrum import conv_blocks
    >>> images = torch.randn(50, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> y = images.roll(1, 2) - images
    >>> mean, difference = (torch.tensor([[[1.0, s]]], dtype=torch.float64) for s in (1, -1))
    >>> [round(linear_relative_stability(conv_blocks(w, (9,)), spectral_covariance(y)), 1) for w in (mean, difference)]
    [0.5, 1.5]
    """
    values, s = _equivariant("blocks", blocks), _nonzero("covariance", validate_covariance("covariance", covariance, blocks))
    return _energy(values, s) / (_energy(values) * _mean_power(s))


def linear_deformation_stability(blocks: FrequencyBlocks, covariance: Covariance, image_covariance: Covariance) -> float:
    r"""D = E‖f(τx) − f(x)‖² / E‖f(x₁) − f(x₂)‖² = Σ_q tr(V S V†) / (2 Σ_q tr(V S_x V†)) of a stack of circular convolutions.

    `image_covariance` is S_x, that of the images less their mean image: `spectral_covariance(images - images.mean(0))`; x₁ and x₂ are drawn
    independently.  The stability to noise is D over `linear_relative_stability`.  Other arguments and errors as there; `ValueError` too
    where the network does not tell any two images apart.  Source: derived here.

    >>> from linconv.spectrum import conv_blocks
    >>> images = torch.tensor([[[1.0, 2.0, 3.0]], [[3.0, 1.0, 0.0]]], dtype=torch.float64)
    >>> identity = conv_blocks(torch.ones(1, 1, 1, dtype=torch.float64), (3,))
    >>> S, S_x = spectral_covariance(images.roll(1, 2) - images), spectral_covariance(images - images.mean(0))
    >>> round(linear_deformation_stability(identity, S, S_x), 9)           # ((6 + 14) / 2) / ((0 + 0 + 14 + 14) / 4)
    1.428571429
    """
    values = _equivariant("blocks", blocks)
    s, s_x = (
        validate_covariance(name, given, blocks) for name, given in (("covariance", covariance), ("image_covariance", image_covariance))
    )
    unit = _largest(s_x)
    spread = _energy(values, _nonzero("image_covariance", s_x))
    if not spread > torch.finfo(torch.float64).eps * _energy(values) * _mean_power(s_x / unit):
        raise ValueError("image_covariance: expected images that the network tells apart, got none at the frequencies that it passes")
    return _energy(values, s / unit) / (2 * spread)


def relative_stability_bounds(covariance: Covariance) -> tuple[float, float]:
    r"""(low, high): the least and the largest R of any stack of circular convolutions, N m λ / Σ_q tr S(q) with extreme eigenvalues λ.

    A network that passes only the frequencies ±q, and only the channel direction of the eigenvector of S(q), attains them.  Arguments and
    errors as in `linear_relative_stability`.  Source: derived here.

    >>> relative_stability_bounds(torch.tensor([0.0, 3.0, 3.0])[:, None, None])
    (0.0, 1.5)
    """
    s = _nonzero("covariance", validate_covariance("covariance", covariance))
    eigenvalues, mean = torch.linalg.eigvalsh(s), _mean_power(s)
    return max(float(eigenvalues.min()), 0.0) / mean, float(eigenvalues.max()) / mean


def readout_relative_stability(blocks: FrequencyBlocks, covariance: Float[Tensor, "CD CD"]) -> float:
    r"""R = N m tr(β Γ βᵀ) / (‖β‖² tr Γ) of a network with readout, f_k(x) = ⟨β_k, x⟩, with Γ = E y yᵀ of the flattened differences y.

    `blocks` `(*grid, K, C)` of kind "readout" (`frequency_blocks(net)`); `covariance` Γ `(C·D, C·D)` in the order of `y.flatten(1)`.
    Different frequencies meet in a readout.  Where they are uncorrelated, $\mathbb E\,\hat y_u \hat y_v^\dagger = 0$ for u ≠ v (images
    and deformation stationary, or images shifted at random together with their deformation), R is the formula of
    `linear_relative_stability` with these blocks.  Raises as there.  Source: derived here.

    >>> y = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> beta = torch.eye(6, dtype=torch.float64).reshape(6, 2, 3)                                    # all pixels are outputs
    >>> round(readout_relative_stability(FrequencyBlocks.from_predictor(beta), y.T @ y / 50), 12)
    1.0
    """
    if not isinstance(blocks, FrequencyBlocks):
        raise TypeError(f"blocks: expected FrequencyBlocks, got {type(blocks).__name__}; use frequency_blocks(net)")
    if blocks.kind != "readout":
        raise ValueError("blocks: of kind 'equivariant', a map to images; use linear_relative_stability, which needs less")
    beta = blocks.predictor().detach().flatten(1).to(torch.float64)
    validate_tensor("covariance", covariance, ndim=(2,), shape=f"({beta.shape[1]}, {beta.shape[1]})")
    if tuple(covariance.shape) != (beta.shape[1],) * 2:
        expected = (beta.shape[1],) * 2
        raise ValueError(f"covariance: expected {expected}, channels times sites, as the blocks have, got {tuple(covariance.shape)}")
    gamma = _nonzero("covariance", _hermitian("covariance", covariance.detach().to(beta.device, torch.float64)))
    values = _nonzero("blocks", beta)
    return _energy(values, gamma) / (_energy(values) * _mean_power(gamma))


def shuffled_relative_stability(layers: Sequence[FrequencyBlocks], covariance: Covariance) -> float:
    r"""R of a stack of convolutions whose channels are shuffled between the layers: mean numerator over mean denominator.

    Between any two of the `layers` (equivariant, in the order of application) stands a permutation of the channels, the same at all
    frequencies, drawn uniformly and independently.  Numerator Σ_q tr(V_q S(q) V_q†) and denominator Σ_q ‖V_q‖² are averaged over the
    permutations each, by $\mathbb E[\Pi A \Pi^\top] = (a - b) I + b\, 1 1^\top$, a the mean of the diagonal of A and b that of its other
    entries.  This is not the mean of R.  Shuffling destroys what is pooled over channels and keeps what filters do.  Other arguments and
    errors as in `linear_relative_stability`; `ValueError` for layers that do not fit each other.  Source: derived here.

    >>> from linconv.spectrum import conv_blocks
    >>> w = torch.randn(2, 2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> stack, S = [conv_blocks(v, (5,)) for v in w], torch.eye(2, dtype=torch.float64).expand(5, 2, 2)
    >>> round(shuffled_relative_stability(stack, S), 12)
    1.0
    """
    if not isinstance(layers, Sequence) or not layers:
        raise ValueError("layers: expected a sequence of one FrequencyBlocks or more, in the order of application, got none")
    values = [_equivariant("layers", layer) for layer in layers]
    for before, after in pairwise(values):
        if before.shape[:-2] != after.shape[:-2] or before.shape[-2] != after.shape[-1]:
            raise ValueError(f"layers: blocks {tuple(after.shape)} cannot follow blocks {tuple(before.shape)}")
    s = _nonzero("covariance", validate_covariance("covariance", covariance, layers[0]))
    moved, white = (_shuffled_energy(values, start) for start in (s, torch.eye(s.shape[-1], dtype=s.dtype, device=s.device).expand_as(s)))
    if not white > 0:
        raise ValueError("layers: expected a network that is not zero on average over shuffles, got zero; leave that layer out")
    return moved / (white * _mean_power(s))


def spectral_covariance(images: Float[Tensor, "N C *grid"]) -> Complex[Tensor, "*grid C C"]:
    r"""$S(q) = \frac1{ND} \sum_n \hat x_{n,q} \hat x_{n,q}^\dagger$: the covariance of the channels at each frequency, about zero.

    Unnormalised DFT, fft order, D sites: the sum of all traces is the mean energy of an image.  `S(q)[c, d]` belongs to
    $\hat x_c \overline{\hat x_d}$.  Of differences `warped - images` it is what `linear_relative_stability` takes.  Transformed in float64,
    in chunks; the result has the precision of the images.  Raises `ValueError` or `TypeError` for images that are not a finite real tensor
    `(N, C, *grid)`.

    >>> spectral_covariance(torch.tensor([[[1.0, 0.0]]])).flatten().tolist()
    [(0.5+0j), (0.5+0j)]
    """
    validate_images(images)
    dims = tuple(range(2, images.ndim))
    total = torch.zeros((), dtype=torch.complex128, device=images.device)
    for part in images.detach().split(max(1, CHUNK // images[0].numel())):
        hats = torch.fft.fftn(part.to(torch.float64), dim=dims, norm="ortho").movedim((0, 1), (-1, -2))
        total = total + hats @ hats.mH / len(images)
    found = total.to(images.dtype.to_complex())
    if not bool(torch.isfinite(torch.view_as_real(found)).all()):
        raise ValueError(f"images: expected numbers whose squares are finite, got up to {float(images.abs().max()):.1e}; rescale them")
    return found


def validate_covariance(name: str, covariance: object, blocks: FrequencyBlocks | None = None) -> Complex[Tensor, "*grid C C"]:
    """The covariance in complex128 on the device of the blocks, if it is Hermitian with a diagonal ≥ 0 and fits them, else raises."""
    if not isinstance(covariance, Tensor):
        raise TypeError(f"{name}: expected a torch tensor (*grid, C, C), got {type(covariance).__name__}; see spectral_covariance")
    parts = torch.view_as_real(covariance.detach().resolve_conj()) if covariance.is_complex() else covariance
    validate_tensor(name, parts, shape="(*grid, C, C)")
    if covariance.ndim not in (3, 4, 5) or covariance.shape[-1] != covariance.shape[-2]:
        raise ValueError(f"{name}: expected (*grid, C, C) with a grid of 1 to 3 dimensions, got {tuple(covariance.shape)}")
    if blocks is not None and tuple(covariance.shape) != (*blocks.grid, *[blocks.values.shape[-1]] * 2):
        expected = (*blocks.grid, *[blocks.values.shape[-1]] * 2)
        raise ValueError(f"{name}: expected {expected}, grid and input channels of the blocks, got {tuple(covariance.shape)}")
    device = covariance.device if blocks is None else blocks.values.device
    return _hermitian(name, covariance.detach().to(device, torch.complex128))


def _hermitian(name: str, s: Tensor) -> Tensor:
    """The Hermitian part, if what it leaves out and what is negative on the diagonal is dust in single precision, else raises."""
    dust = 1e-4 * _largest(s)
    if float((s - s.mH).abs().max()) > dust:
        raise ValueError(f"{name}: expected Hermitian matrices, got entries that are not conjugate to each other; average x̂ x̂† over images")
    if float(torch.diagonal(s, dim1=-2, dim2=-1).real.min()) < -dust:
        raise ValueError(f"{name}: expected variances ≥ 0 on the diagonal, got a negative one; average x̂ x̂† over images")
    return (s + s.mH) / 2


def _equivariant(name: str, blocks: object) -> Complex[Tensor, "*grid K C"]:
    """Checked blocks of a stack of convolutions in complex128, of largest modulus 1."""
    if not isinstance(blocks, FrequencyBlocks):
        raise TypeError(f"{name}: expected FrequencyBlocks, got {type(blocks).__name__}; use conv_blocks, and @ for several layers")
    if blocks.kind != "equivariant":
        raise ValueError(
            f"{name}: of kind 'readout', where frequencies meet and the covariance at each of them is not enough; "
            "use readout_relative_stability, or the blocks of the convolutions without the readout"
        )
    return _nonzero(name, blocks.values.detach().to(torch.complex128))


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _nonzero(name: str, values: Tensor) -> Tensor:
    """The values over the largest modulus among them: squares and sums of them neither overflow nor vanish."""
    largest = _largest(values)
    if largest == 0:
        raise ValueError(f"{name}: expected numbers that are not all zero, got zeros only, which have no relative stability")
    return values / largest


def _energy(values: Tensor, s: Tensor | None = None) -> float:
    """Σ tr(V S V†), with S = I by default."""
    return float((values.abs().square() if s is None else (values @ s * values.conj()).real).sum())


def _mean_power(s: Tensor) -> float:
    """Σ_q tr S(q) / (N m): the variance of the white noise of this energy."""
    return float(torch.diagonal(s, dim1=-2, dim2=-1).real.mean())


def _shuffled_energy(layers: Sequence[Tensor], start: Complex[Tensor, "*grid C C"]) -> float:
    """Σ_q E tr(V S V†) over shuffles between the layers: covariances are pushed through layer by layer."""
    s = layers[0] @ start @ layers[0].mH
    for layer in layers[1:]:
        s = layer @ _mean_over_shuffles(s) @ layer.mH
    return float(torch.diagonal(s, dim1=-2, dim2=-1).real.sum())


def _mean_over_shuffles(s: Complex[Tensor, "*grid C C"]) -> Complex[Tensor, "*grid C C"]:
    """E[Π S Πᵀ] = (a − b) I + b 11ᵀ; a single channel stays as it is."""
    channels = s.shape[-1]
    if channels == 1:
        return s
    trace = torch.diagonal(s, dim1=-2, dim2=-1).sum(-1)
    a, b = trace / channels, (s.sum((-2, -1)) - trace) / (channels * (channels - 1))
    eye = torch.eye(channels, dtype=s.dtype, device=s.device)
    return (a - b)[..., None, None] * eye + b[..., None, None]
