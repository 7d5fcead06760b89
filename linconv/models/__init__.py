"""The nonlinear convolutional networks of the papers, at full width and narrow: ConvActually, Myrtle, VGG, ResNet.

Every function returns an `ImageNetwork`, `classifier(features(x))`, from images `(N, C, *grid)` to outputs `(N, K)`.  Weights and biases
are drawn from the generator by torch's default scheme for these layers (`kaiming_uniform_` with a = √5), uniform on ±1/√fan_in, in the
order of the layers; batch norm starts as the identity.  torch's global random state is neither read nor changed, in training either.
docs/models.md has the table of layers, numbers of parameters, sources, and what differs from the published networks.
"""

from linconv.models.conv_actually import conv_actually
from linconv.models.layers import FullConvolution, ImageNetwork
from linconv.models.myrtle import myrtle
from linconv.models.resnet import resnet
from linconv.models.vgg import vgg

__all__ = ["FullConvolution", "ImageNetwork", "conv_actually", "myrtle", "resnet", "vgg"]
