"""nnU-Net's 3D U-Nets, and the paper's U-Net with two encoders, in flax.linen.

Parameters live under `encoder`, `decoder` and `heads` (two encoders: `self_encoder` and
`adapted_encoder`), and below that under the stage whose resolution they work at, in the encoder
and the decoder alike: `encoder/stage_2/block_0/conv/kernel`, `decoder/stage_2/up/kernel`,
`heads/stage_0/kernel`. A residual encoder has `encoder/stem/conv/kernel` before its stages, and in
its blocks `conv1`, `conv2` and `skip`: `encoder/stage_2/block_0/conv1/norm/scale`. These paths are
the vocabulary of freezing and transfer; model/layers.py lists them in forward order.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.nn.initializers import variance_scaling

from covid_jax.config import UNetConfig
from covid_jax.model import conv
from covid_jax.model.norm import SLOPE, instance_norm_leaky_relu, leaky_relu

Triple = tuple[int, int, int]

# He normal for a leaky ReLU, over the fan in. nnU-Net: InitWeights_He(1e-2).
_HE_NORMAL = variance_scaling(2 / (1 + SLOPE**2), "fan_in", "normal")
# torch counts the fan in of a transposed convolution over its output features and its kernel.
_HE_NORMAL_TRANSPOSED = variance_scaling(
    2 / (1 + SLOPE**2), "fan_in", "normal", in_axis=-1, out_axis=-2
)


class Convolution(nn.Module):
    """The convolution of a block: of one input, or of several as if concatenated.

    It has nnU-Net's bias as a parameter and does not add it: the instance norm that follows takes
    any constant out again. So its gradient is exactly 0, where PyTorch's is rounding noise.
    """

    features: int
    kernel_size: Triple
    strides: Triple = (1, 1, 1)
    bias: bool = True
    dtype: jnp.dtype = jnp.float32
    form: conv.Form = "lax"

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        channels = sum(x.shape[-1] for x in inputs)
        kernel = self.param("kernel", _HE_NORMAL, (*self.kernel_size, channels, self.features))
        if self.bias:
            self.param("bias", nn.initializers.zeros, (self.features,))
        return conv.convolution(inputs, kernel.astype(self.dtype), self.strides, self.form)


class Upsample(nn.Module):
    """The transposed convolution that undoes a stage's stride."""

    features: int
    strides: Triple
    bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (*self.strides, x.shape[-1], self.features)
        kernel = self.param("kernel", _HE_NORMAL_TRANSPOSED, shape)
        bias = _bias(self, self.features)
        return conv.transposed_convolution(x, kernel.astype(self.dtype), bias)


class Norm(nn.Module):
    """Instance norm (affine) and leaky ReLU."""

    epsilon: float
    slope: float
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.constant(self.initial_scale), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return instance_norm_leaky_relu(x, scale, bias, self.epsilon, self.slope)


class Block(nn.Module):
    """Convolution, instance norm, leaky ReLU. nnU-Net: ConvDropoutNormReLU without dropout."""

    config: UNetConfig
    features: int
    kernel_size: Triple
    strides: Triple
    dtype: jnp.dtype
    form: conv.Form
    linear: bool = False  # without the ReLU
    bias: bool = True  # where the config has biases
    initial_scale: float = 1.0  # of the norm

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        config = self.config
        y = Convolution(
            self.features,
            self.kernel_size,
            self.strides,
            config.conv_bias and self.bias,
            self.dtype,
            self.form,
            name="conv",
        )(*inputs)
        slope = 1.0 if self.linear else config.negative_slope
        return Norm(config.norm_epsilon, slope, self.initial_scale, name="norm")(y)


class ResidualBlock(nn.Module):
    """Two convolutions and their input, added before the last leaky ReLU. nnU-Net: BasicBlockD.

    Where the block has a stride its input is averaged over it, and where features change it goes
    through a convolution of 1 x 1 x 1. At first the block is its input: the last norm's scale is 0
    (init_last_bn_before_add_to_0).
    """

    config: UNetConfig
    features: int
    kernel_size: Triple
    strides: Triple
    dtype: jnp.dtype
    form: conv.Form

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one, how = (1, 1, 1), (self.dtype, self.form)
        size = (self.features, self.kernel_size)
        y = Block(self.config, *size, self.strides, *how, name="conv1")(x)
        y = Block(self.config, *size, one, *how, linear=True, initial_scale=0.0, name="conv2")(y)
        skip = average_pool(x, self.strides)
        if x.shape[-1] != self.features:
            skip = Block(
                self.config, self.features, one, one, *how, linear=True, bias=False, name="skip"
            )(skip)
        return leaky_relu(y + skip, self.config.negative_slope)


def average_pool(x: Array, strides: Triple) -> Array:
    """The means of the blocks of `strides` voxels; at odd borders, of the voxels that are there.

    Args:
      x: (N, D, H, W, C).

    Returns:
      (N, ceil(D / sd), ceil(H / sh), ceil(W / sw), C)
    """
    if strides == (1, 1, 1):
        return x
    sizes = list(zip(x.shape[1:4], strides, strict=True))
    borders = [(0, -size % stride) for size, stride in sizes]
    x = jnp.pad(x, ((0, 0), *borders, (0, 0)))
    # Slices, not a window: XLA for CPU takes ten times as long for a window's gradient.
    places = itertools.product(*map(range, strides))
    slices = [x[:, d :: strides[0], h :: strides[1], w :: strides[2]] for d, h, w in places]
    counts = [np.minimum(stride, size - np.arange(0, size, stride)) for size, stride in sizes]
    voxels = np.einsum("d,h,w->dhw", *counts)[..., None]
    return functools.reduce(jnp.add, slices) / jnp.asarray(voxels, x.dtype)


class EncoderStage(nn.Module):
    """The blocks of one resolution, all plain or all residual; the first has the stride."""

    config: UNetConfig
    stage: int
    dtype: jnp.dtype
    form: conv.Form

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, stage = self.config, self.stage
        kind = ResidualBlock if config.n_blocks_per_stage else Block
        for block in range((config.n_blocks_per_stage or config.n_conv_per_stage)[stage]):
            x = kind(
                config,
                config.features_per_stage[stage],
                config.kernel_sizes[stage],
                config.strides[stage] if block == 0 else (1, 1, 1),
                self.dtype,
                self.form,
                name=f"block_{block}",
            )(x)
        return x


class Encoder(nn.Module):
    """(N, D, H, W, C) -> the features of every stage, full resolution first."""

    config: UNetConfig
    dtype: jnp.dtype
    form: conv.Form
    remat: bool

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        config, how = self.config, (self.dtype, self.form)
        if config.n_blocks_per_stage:
            stem = nn.remat(Block) if self.remat else Block
            size = (config.features_per_stage[0], config.kernel_sizes[0])
            x = stem(config, *size, (1, 1, 1), *how, name="stem")(x)
        kind = nn.remat(EncoderStage) if self.remat else EncoderStage
        features = []
        for stage in range(len(config.features_per_stage)):
            x = kind(config, stage, *how, name=f"stage_{stage}")(x)
            features.append(x)
        return tuple(features)


class DecoderStage(nn.Module):
    """Upsamples to the resolution of `stage` and convolves with the skips (upsampled first)."""

    config: UNetConfig
    stage: int
    dtype: jnp.dtype
    form: conv.Form

    @nn.compact
    def __call__(self, below: Sequence[Array], skips: Sequence[Array]) -> Array:
        config, stage = self.config, self.stage
        features = config.features_per_stage[stage]
        x = below[0] if len(below) == 1 else jnp.concatenate(below, -1)
        up = Upsample(features, config.strides[stage + 1], config.head_bias, self.dtype, name="up")(
            x
        )
        # Where a size is odd, the stride rounded up on the way down (25 -> 13 -> 26): crop.
        depth, height, width = skips[0].shape[1:4]
        inputs: tuple[Array, ...] = (up[:, :depth, :height, :width], *skips)
        # nnU-Net counts the stages of its decoder from below.
        for block in range(config.n_conv_per_stage_decoder[-1 - stage]):
            inputs = (
                Block(
                    config,
                    features,
                    config.decoder_kernel_size(stage),
                    (1, 1, 1),
                    self.dtype,
                    self.form,
                    name=f"block_{block}",
                )(*inputs),
            )
        return inputs[0]


class Decoder(nn.Module):
    """Features of every stage, of one or more encoders -> those of every decoder stage."""

    config: UNetConfig
    dtype: jnp.dtype
    form: conv.Form
    remat: bool

    @nn.compact
    def __call__(self, features: Sequence[Sequence[Array]]) -> tuple[Array, ...]:
        """`features` holds, for each stage, the arrays of the encoders. Full resolution first."""
        kind = nn.remat(DecoderStage) if self.remat else DecoderStage
        below: Sequence[Array] = features[-1]
        outputs = []
        for stage in reversed(range(len(features) - 1)):
            x = kind(self.config, stage, self.dtype, self.form, name=f"stage_{stage}")(
                below, features[stage]
            )
            outputs.append(x)
            below = (x,)
        return tuple(reversed(outputs))


class Heads(nn.Module):
    """A 1 x 1 x 1 convolution to the classes for each decoder stage, as float32 logits."""

    config: UNetConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, features: Sequence[Array]) -> tuple[Array, ...]:
        if not self.config.deep_supervision:
            features = features[:1]
        return tuple(
            Head(self.config.num_classes, self.config.head_bias, self.dtype, name=f"stage_{stage}")(
                x
            )
            for stage, x in enumerate(features)
        )


class Head(nn.Module):
    """Logits of each voxel from its features alone: a matrix product."""

    num_classes: int
    bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", _HE_NORMAL, (1, 1, 1, x.shape[-1], self.num_classes))
        logits = x @ kernel[0, 0, 0].astype(self.dtype)
        bias = _bias(self, self.num_classes)
        if bias is not None:
            logits += bias
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))


class UNet(nn.Module):
    """nnU-Net's 3D U-Net (PlainConvUNet and ResidualEncoderUNet of dynamic-network-architectures).

    `apply({"params": params}, x)` maps x (N, D, H, W, C) to a tuple of logits
    (N, D, H, W, classes), float32, full resolution first; one where deep_supervision is off.
    """

    encoders: ClassVar[tuple[str, ...]] = ("encoder",)
    """Their subtrees, in the order in which the decoder concatenates their features."""

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    form: conv.Form = "lax"  # of the convolutions: right everywhere, fast on TPU (model/conv.py)
    remat: bool = False  # keep each stage's input alone, and compute it again in the backward pass

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        settings = (self.config, self.dtype, self.form, self.remat)
        x = x.astype(self.dtype)
        features = [Encoder(*settings, name=name)(x) for name in self.encoders]
        stages = list(zip(*features, strict=True))
        decoded = Decoder(*settings, name="decoder")(stages)
        return Heads(self.config, self.dtype, name="heads")(decoded)


class MultiEncoderUNet(UNet):
    """The paper's multi-encoder U-Net (section III): two encoders, one decoder.

    At every stage, the bottleneck included, the features of the self encoder and then those of
    the adapted encoder are concatenated. Otherwise as UNet.
    """

    encoders: ClassVar[tuple[str, ...]] = ("self_encoder", "adapted_encoder")


def _bias(module: Upsample | Head, features: int) -> Array | None:
    if not module.bias:
        return None
    return module.param("bias", nn.initializers.zeros, (features,)).astype(module.dtype)
