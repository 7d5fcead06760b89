r"""How smooth filters are, and which filters meet: energies on the Laplacian of a kernel's grid, shuffled channels, overlaps.

A layer can become stable to deformations by *filter pooling*, filters that average over neighbouring sites, or by *channel pooling*,
filters of different channels that stand for moved versions of one pattern and are summed by the next layer.  The first shows in the
energies of the filters at small eigenvalues of the Laplacian.  The second lives only in how channels are coupled: permuting the input
channels of every convolution destroys it and leaves each filter as it is.  Both ideas: Petrini, "The role of adaptive pooling" (slides,
2022); arXiv 2105.02468 for the stability that they explain.
"""

import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from linconv.models import FullConvolution
from linconv.network import LinearCNN
from linconv.validation import validate_generator, validate_tensor

# Sums of up to three numbers 4 sin² that are equal differ by a few ε; those that are not, on kernels of any practical size, by far more.
EQUAL = 1e-12
ALIKE = 1e-6  # |cos| within this of 1: one filter up to a factor


def laplacian_energies(weight: Float[Tensor, "C_out C_in *kernel"]) -> tuple[Float[Tensor, " E"], Float[Tensor, " E"]]:
    r"""Eigenvalues of the Laplacian of the kernel's grid, ascending, and the energy of the filters on the eigenspace of each.

    The grid is that of the taps, 1-D to 3-D, with free boundaries: in one dimension with k taps the eigenvalues are
    $4\sin^2(\pi j/2k)$, $j < k$, with the discrete cosines as eigenvectors $\Psi$, and in several they add.  The energy at λ is
    $\sum_{\Psi: \lambda(\Psi) = \lambda} \langle w_{cd}, \Psi\rangle^2$, averaged over the pairs of channels (c, d): summed within an
    eigenvalue, because single eigenvectors of a degenerate one are arbitrary.  One entry for each distinct eigenvalue; the energies add up
    to the mean of $\|w_{cd}\|^2$.  Small λ are smooth filters; 0 is the constant one.

    In the dtype and on the device of `weight`, computed in double precision; gradients flow.  Raises `TypeError` or `ValueError` where
    `weight` is no finite tensor `(C_out, C_in, *kernel)`.  Source: the slides named above, with the degeneracy handled here.

    >>> eigenvalues, energies = laplacian_energies(torch.ones(4, 2, 3, 3, dtype=torch.float64))
    >>> [round(value, 12) for value in eigenvalues.tolist()]
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0]
    >>> [round(energy, 12) for energy in energies.tolist()]
    [9.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    validate_tensor("weight", weight, ndim=(3, 4, 5), shape="filters (C_out, C_in, *kernel) with a kernel of 1 to 3 dimensions")
    coefficients = weight.double()
    sums = torch.zeros(1, dtype=torch.float64)
    for dim, taps in enumerate(weight.shape[2:], start=2):
        eigenvalues, vectors = path_laplacian(taps)
        coefficients = torch.tensordot(coefficients, vectors.to(coefficients.device), dims=([dim], [0])).movedim(-1, dim)
        sums = (sums[:, None] + eigenvalues).flatten()
    ordered, order = sums.sort()
    index = torch.cat([torch.zeros(1, dtype=torch.long), (ordered.diff() > EQUAL).long().cumsum(0)])
    energies = coefficients.square().flatten(2).mean((0, 1))[order.to(weight.device)]
    grouped = energies.new_zeros(int(index[-1]) + 1).index_add(0, index.to(weight.device), energies)
    if not bool(torch.isfinite(grouped.detach().to(weight.dtype)).all()):
        raise ValueError(f"weight: expected numbers whose squares are finite, got up to {float(weight.detach().abs().max()):.1e}; rescale")
    first = torch.cat([torch.ones(1, dtype=torch.bool), index.diff() > 0])
    return ordered[first].to(weight), grouped.to(weight.dtype)


def path_laplacian(taps: int) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
    """Eigenvalues, ascending, and orthonormal eigenvectors (columns) of the Laplacian of a path of k sites with free ends."""
    order, sites = torch.arange(taps, dtype=torch.float64), torch.arange(taps, dtype=torch.float64)
    eigenvalues = 4 * torch.sin(math.pi * order / (2 * taps)).square()
    vectors = torch.cos(math.pi * (sites[:, None] + 0.5) * order / taps) * math.sqrt(2 / taps)
    vectors[:, 0] = 1 / math.sqrt(taps)
    return eigenvalues, vectors


class Connections(NamedTuple):
    """The weight of one convolution: groups are blocks of dimension 0, and in each the input channels are along `dim` (0 or 1)."""

    weight: nn.Parameter
    groups: int
    dim: int


def convolutions(model: nn.Module) -> Iterator[Connections]:
    """The convolutions of a module, each weight once: torch's, transposed and grouped too, and those of `FullConvolution`, `LinearCNN`.

    The readout of a `LinearCNN` sees all sites with a weight of their own and is no convolution.  Raises `ValueError` for a weight that is
    computed from others (a parametrisation, weight normalisation) or that has no size yet.
    """
    seen = set()
    for name, layer in model.named_modules():
        found: list[Connections] = []
        if isinstance(layer, nn.modules.conv._ConvNd):
            if not isinstance(layer.weight, nn.Parameter):
                raise ValueError(
                    f"model: the weight of {name or 'the module'} is computed from other parameters; make it one, as "
                    "torch.nn.utils.parametrize.remove_parametrizations does"
                )
            if isinstance(layer.weight, nn.parameter.UninitializedParameter):
                raise ValueError(f"model: {name or 'the module'} has no weight yet; run the model once on images")
            found = [Connections(layer.weight, layer.groups, 0 if layer.transposed else 1)]
        elif isinstance(layer, FullConvolution):
            found = [Connections(layer.weight, 1, 1)]
        elif isinstance(layer, LinearCNN):
            found = [Connections(weight, 1, 1) for weight in layer.weights[:-1]]
        for entry in found:
            if id(entry.weight) not in seen:
                seen.add(id(entry.weight))
                yield entry


def shuffle_channels(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A deep copy of `model` in which the input channels of every convolution are permuted, at random and once for all outputs.

    Output channel c of a layer then meets, through the filter that was meant for channel d, the activation of channel π(d).  Every filter
    is kept as it is, and so are biases, normalisation layers and linear readouts: what filters do by themselves survives, what they do
    together does not.  `model` is left untouched.

    All permutations are uniform and independent, the identity among them: of C channels one time in C!.  The first convolution is one
    of them, so colours are permuted too, and images with one channel are not changed.  In a grouped convolution channels are permuted
    within each group, with a permutation of its own, since an output sees no others; a depthwise one stays as it is.  A weight
    that is used at several places is permuted once.

    Raises `ValueError` for a module without convolutions, or with a weight that is computed from others; `TypeError` for what is no module.
    Source: the slides named above; groups and shared weights are decided here.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv1d(1, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 3)).double()
    >>> shuffled = shuffle_channels(net, torch.Generator().manual_seed(0))
    >>> torch.equal(shuffled[2].weight, net[2].weight)
    False
    >>> torch.allclose(shuffled[2].weight.sum(1), net[2].weight.sum(1))
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch module, got {type(model).__name__}")
    validate_generator(generator)
    if next(convolutions(model), None) is None:
        raise ValueError("model: expected a module with convolutions, got one without; there are no channels to permute")
    shuffled = copy.deepcopy(model)
    with torch.no_grad():
        for weight, groups, dim in convolutions(shuffled):
            blocks = [_permuted(block, dim, generator) for block in weight.chunk(groups)]
            weight.copy_(torch.cat(blocks))
    return shuffled


def _permuted(block: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(block.shape[dim], generator=generator, device=generator.device)
    return block.index_select(dim, order.to(block.device))


def filter_overlap(weight: Float[Tensor, "C_out C_in *kernel"], templates: Float[Tensor, "T *kernel"]) -> Float[Tensor, ""]:
    r"""How much of the energy of filters lies along the nearest of some template filters, from 0 to 1.

    $\sum_{cd} \max_t \langle w_{cd}, t/\|t\|\rangle^2 / \sum_{cd} \|w_{cd}\|^2$: 1 if and only if every filter is a multiple of a template,
    at least the largest share that one template has.  The sign of a filter does not count, as in the energies on the Laplacian.  What
    random filters reach depends on the templates; compare with the untrained ones.

    Raises `ValueError` for filters that are all zero, a template that is zero, or kernels of different sizes.  Derived here.

    >>> taps = torch.eye(3, dtype=torch.float64)
    >>> box = torch.ones(1, 1, 3, dtype=torch.float64)
    >>> round(float(filter_overlap(box, taps)), 12), round(float(filter_overlap(box, box[0])), 12)
    (0.333333333333, 1.0)
    """
    validate_tensor("weight", weight, ndim=(3, 4, 5), shape="filters (C_out, C_in, *kernel)")
    validate_tensor("templates", templates, ndim=(weight.ndim - 1,), shape="filters (T, *kernel)")
    if templates.shape[1:] != weight.shape[2:]:
        raise ValueError(f"templates: expected kernels of {tuple(weight.shape[2:])} taps as weight has, got {tuple(templates.shape[1:])}")
    filters, units = weight.double().flatten(2).flatten(0, 1), templates.to(weight.device).double().flatten(1)
    sizes = units.abs().amax(1, keepdim=True)
    if not bool((sizes > 0).all()):
        raise ValueError("templates: expected filters that are not zero; leave out those that are")
    largest = filters.abs().max()
    if not bool(largest > 0):
        raise ValueError("weight: expected filters that are not all zero; nothing overlaps with nothing")
    units = units / sizes
    units = units / units.norm(dim=1, keepdim=True)
    filters = filters / largest
    return ((filters @ units.T).square().amax(1).sum() / filters.square().sum()).to(weight.dtype)


def distinct_filters(model: nn.Module) -> Float[Tensor, "T *kernel"]:
    """The filters of a module's convolutions that are not zero, each once up to a factor, with norm 1: templates for `filter_overlap`.

    Two filters are one where the modulus of their cosine is 1 up to 10⁻⁶.  Raises `ValueError` where kernels differ in size, or where there
    is no filter.

    >>> net = torch.nn.Conv1d(2, 1, 3, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]]]))
    >>> distinct_filters(net).shape
    torch.Size([1, 3])
    """
    weights = [entry.weight.detach() for entry in convolutions(model)]
    kernels = {tuple(weight.shape[2:]) for weight in weights}
    if len(kernels) != 1:
        raise ValueError(f"model: expected convolutions with kernels of one size, got {sorted(kernels) or 'none'}")
    found: list[Tensor] = []
    for candidate in torch.cat([weight.flatten(0, 1) for weight in weights]):
        if bool(candidate.any()):
            unit = candidate / candidate.abs().max()
            unit = unit / unit.norm()
            if all(abs(float((unit * other).sum())) < 1 - ALIKE for other in found):
                found.append(unit)
    if not found:
        raise ValueError("model: expected filters that are not all zero")
    return torch.stack(found)
