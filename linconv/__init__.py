"""Linear convolutional networks in frequency space, and the tools to find out whether a statement about them is true.

Conventions: images are `(N, C, *grid)`; hidden weights `(C_out, C_in, *kernel)` are true circular convolutions, tap m
shifting by +m; the readout is `(K, C, *grid)`.  The DFT is unnormalised on weights, so that a network with readout is
f(x) = (1/D) Σ_u V_u x̂_u with `frequency_blocks(net).values[u]` = V_u.  Objectives are
(1/2N) Σ_n ‖f(x_n) − y_n‖² + weight_decay · Σ_l ‖w^l‖².  float64 unless another real dtype is given; randomness only from
a `torch.Generator`.  See docs/conventions.md.
"""

from linconv.claims import Verdict, check, falsify
from linconv.cost import Cost, minimal_network, representation_cost
from linconv.deformation import sample_displacements, temperature_range, typical_displacement, warp
from linconv.enclosures import SingularValueBounds
from linconv.filter_energies import laplacian_energies, shuffle_channels
from linconv.linear_stability import linear_relative_stability
from linconv.network import LinearCNN
from linconv.patches import PatchSpectrum, energy_profile, patch_spectrum
from linconv.penalties import Schatten
from linconv.pooling import TwoPixels, pooling_solution, two_pixels
from linconv.pooling_stability import two_pixel_deformation_stability
from linconv.profiles import predicted_profile
from linconv.sensitivity import frequency_sensitivity
from linconv.solvers import Solution, fit, fit_path
from linconv.spectra import power_spectrum, radial_average
from linconv.spectrum import FrequencyBlocks, conv_blocks, conv_singular_values, frequency_blocks
from linconv.stability import RelativeStability, relative_stability
from linconv.sweeps import sweep
from linconv.torch_import import NotLinearCNNError, from_torch
from linconv.training import Trajectory, train

__all__ = [
    "Cost",
    "FrequencyBlocks",
    "LinearCNN",
    "NotLinearCNNError",
    "PatchSpectrum",
    "RelativeStability",
    "Schatten",
    "SingularValueBounds",
    "Solution",
    "Trajectory",
    "TwoPixels",
    "Verdict",
    "check",
    "conv_blocks",
    "conv_singular_values",
    "energy_profile",
    "falsify",
    "fit",
    "fit_path",
    "frequency_blocks",
    "frequency_sensitivity",
    "from_torch",
    "laplacian_energies",
    "linear_relative_stability",
    "minimal_network",
    "patch_spectrum",
    "pooling_solution",
    "power_spectrum",
    "predicted_profile",
    "radial_average",
    "relative_stability",
    "representation_cost",
    "sample_displacements",
    "shuffle_channels",
    "sweep",
    "temperature_range",
    "train",
    "two_pixel_deformation_stability",
    "two_pixels",
    "typical_displacement",
    "warp",
]
