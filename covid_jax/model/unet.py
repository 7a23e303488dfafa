"""nnU-Net's 3D U-Net, and the paper's U-Net with two encoders, in flax.linen.

Parameters live under `encoder`, `decoder` and `heads` (two encoders: `self_encoder` and
`adapted_encoder`), and below that under the stage whose resolution they work at, in the encoder
and the decoder alike: `encoder/stage_2/block_0/conv/kernel`, `decoder/stage_2/up/kernel`,
`heads/stage_0/kernel`. These paths are the vocabulary of freezing and transfer.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.nn.initializers import variance_scaling

from covid_jax.config import UNetConfig
from covid_jax.model import conv
from covid_jax.model.norm import SLOPE, instance_norm_leaky_relu

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

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
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

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        y = Convolution(
            self.features,
            self.kernel_size,
            self.strides,
            self.config.conv_bias,
            self.dtype,
            self.form,
            name="conv",
        )(*inputs)
        return Norm(self.config.norm_epsilon, self.config.negative_slope, name="norm")(y)


class EncoderStage(nn.Module):
    """The blocks of one resolution; the first carries the stride into it."""

    config: UNetConfig
    stage: int
    dtype: jnp.dtype
    form: conv.Form

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, stage = self.config, self.stage
        for block in range(config.n_conv_per_stage[stage]):
            x = Block(
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
        kind = nn.remat(EncoderStage) if self.remat else EncoderStage
        features = []
        for stage in range(len(self.config.features_per_stage)):
            x = kind(self.config, stage, self.dtype, self.form, name=f"stage_{stage}")(x)
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
        deepest_first = -1 - stage  # nnU-Net counts the stages of its decoder from below
        kernel_size = (
            config.kernel_sizes_decoder[deepest_first]
            if config.kernel_sizes_decoder
            else config.kernel_sizes[stage]
        )
        x = below[0] if len(below) == 1 else jnp.concatenate(below, -1)
        up = Upsample(features, config.strides[stage + 1], config.head_bias, self.dtype, name="up")(
            x
        )
        # Where a size is odd, the stride rounded up on the way down (25 -> 13 -> 26): crop.
        depth, height, width = skips[0].shape[1:4]
        inputs: tuple[Array, ...] = (up[:, :depth, :height, :width], *skips)
        for block in range(config.n_conv_per_stage_decoder[deepest_first]):
            inputs = (
                Block(
                    config,
                    features,
                    kernel_size,
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
    """nnU-Net's 3D U-Net (PlainConvUNet of dynamic-network-architectures).

    `apply({"params": params}, x)` maps x (N, D, H, W, C) to a tuple of logits
    (N, D, H, W, classes), float32, full resolution first; one where deep_supervision is off.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    form: conv.Form = "lax"  # of the convolutions: right everywhere, fast on TPU (model/conv.py)
    remat: bool = False  # keep each stage's input alone, and compute it again in the backward pass

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        settings = (self.config, self.dtype, self.form, self.remat)
        features = Encoder(*settings, name="encoder")(x.astype(self.dtype))
        stages = [(stage,) for stage in features]
        decoded = Decoder(*settings, name="decoder")(stages)
        return Heads(self.config, self.dtype, name="heads")(decoded)


class MultiEncoderUNet(nn.Module):
    """The paper's multi-encoder U-Net (section III): two encoders, one decoder.

    At every stage, the bottleneck included, the features of the self encoder and then those of
    the adapted encoder are concatenated. Otherwise as UNet.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    form: conv.Form = "lax"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        settings = (self.config, self.dtype, self.form, self.remat)
        x = x.astype(self.dtype)
        own = Encoder(*settings, name="self_encoder")(x)
        adapted = Encoder(*settings, name="adapted_encoder")(x)
        stages = list(zip(own, adapted, strict=True))
        decoded = Decoder(*settings, name="decoder")(stages)
        return Heads(self.config, self.dtype, name="heads")(decoded)


def _bias(module: Upsample | Head, features: int) -> Array | None:
    if not module.bias:
        return None
    return module.param("bias", nn.initializers.zeros, (features,)).astype(module.dtype)
