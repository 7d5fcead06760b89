"""Linear convolutional networks in frequency space, and the tools to find out whether a statement about them is true."""

from linconv.network import LinearCNN, NotLinearCNNError, from_torch
from linconv.spectrum import FrequencyBlocks, conv_blocks, conv_singular_values, frequency_blocks

__all__ = [
    "FrequencyBlocks",
    "LinearCNN",
    "NotLinearCNNError",
    "conv_blocks",
    "conv_singular_values",
    "frequency_blocks",
    "from_torch",
]
