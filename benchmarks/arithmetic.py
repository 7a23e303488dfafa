"""The operations of a training step, counted from the network's own shapes.

XLA counts too (covid_jax.training.cost.step_flops) and leaves out the taps that fall on the
border; here every tap of every convolution counts, as in the tables of most papers. A
multiply-add is two operations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from covid_jax.config import Config
from covid_jax.training.cost import abstract_params
from covid_jax.transfer.freezing import leaves_by_path, mask

Triple = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """One convolution of the network for one patch.

    Attributes:
      path: of its parameters, `encoder/stage_0/block_0/conv`.
      inputs: the convolution each input comes from ("" for the image), with its channels.
      input_size, output_size: (D, H, W).
      kernel_size, strides: (D, H, W).
      features: channels of the output.
      transposed: whether it is the one that upsamples (kernel size = strides).
    """

    path: str
    inputs: tuple[tuple[str, int], ...]
    input_size: Triple
    output_size: Triple
    kernel_size: Triple
    strides: Triple
    features: int
    transposed: bool = False

    @property
    def channels(self) -> int:
        """Of all inputs."""
        return sum(count for _, count in self.inputs)

    def operations(self, channels: int) -> float:
        """Of the convolution of `channels` of its inputs; of either gradient, the same."""
        # Each voxel meets the whole kernel once: on the coarse side where it upsamples.
        voxels = math.prod(self.input_size if self.transposed else self.output_size)
        return 2.0 * voxels * math.prod(self.kernel_size) * channels * self.features


def convolutions(config: Config) -> list[Convolution]:
    """Every convolution of the run's network, in the order of the forward pass."""
    model = config.model
    sizes = [tuple(config.data.patch_size)]
    for strides in model.strides[1:]:
        sizes.append(tuple(-(-n // s) for n, s in zip(sizes[-1], strides, strict=True)))
    found: list[Convolution] = []
    two = config.strategy == "multi_encoder"
    encoders = ("self_encoder", "adapted_encoder") if two else ("encoder",)
    skips: list[tuple[tuple[str, int], ...]] = [()] * len(sizes)
    for encoder in encoders:
        below, size = ("", model.in_channels), sizes[0]
        for stage, features in enumerate(model.features_per_stage):
            for block in range(model.n_conv_per_stage[stage]):
                path = f"{encoder}/stage_{stage}/block_{block}/conv"
                kernel = model.kernel_sizes[stage]
                strides = model.strides[stage] if block == 0 else (1, 1, 1)
                found.append(
                    Convolution(path, (below,), size, sizes[stage], kernel, strides, features)
                )
                below, size = (path, features), sizes[stage]
            skips[stage] += (below,)
    inputs, heads = skips[-1], []
    for stage in reversed(range(len(sizes) - 1)):
        features, strides = model.features_per_stage[stage], model.strides[stage + 1]
        path, from_below = f"decoder/stage_{stage}/up", (sizes[stage + 1], sizes[stage])
        found.append(Convolution(path, inputs, *from_below, strides, strides, features, True))
        inputs = ((path, features), *skips[stage])
        size = sizes[stage]
        kernels = model.kernel_sizes_decoder or tuple(reversed(model.kernel_sizes[:-1]))
        for block in range(model.n_conv_per_stage_decoder[-1 - stage]):
            path = f"decoder/stage_{stage}/block_{block}/conv"
            kernel = kernels[-1 - stage]
            found.append(Convolution(path, inputs, size, size, kernel, (1, 1, 1), features))
            inputs = ((path, features),)
        one = (1, 1, 1)
        classes = model.num_classes
        heads.append(Convolution(f"heads/stage_{stage}", inputs, size, size, one, one, classes))
    return found + (heads if model.deep_supervision else heads[-1:])


def counted_flops(config: Config, patterns: Sequence[str]) -> float:
    """The operations of a training step with `patterns` frozen, of its convolutions alone.

    A convolution costs its forward pass, the gradient to its kernel where that is trained, and
    the gradient to each input above which something is trained.
    """
    params = abstract_params(config)
    held = leaves_by_path(mask(params, patterns))
    trained: dict[str, bool] = {"": False}
    total = 0.0
    for conv in convolutions(config):
        needed = sum(count for path, count in conv.inputs if trained[path])
        # The norm behind a kernel may be trained where the kernel is frozen.
        block = conv.path.removesuffix("conv")
        trains_kernel = not held[f"{conv.path}/kernel"]
        trained[conv.path] = bool(needed) or not all(
            frozen for path, frozen in held.items() if path.startswith(block)
        )
        total += conv.operations(conv.channels) * (1 + trains_kernel) + conv.operations(needed)
    return config.data.batch_size * total
