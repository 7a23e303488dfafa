"""The operations of a training step, counted from the network's own shapes.

XLA counts too (covid_jax.training.cost.step_flops) and leaves out the taps that fall on the
border; here every tap of every convolution counts, as in the tables of most papers. A
multiply-add is two operations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from covid_jax.config import Config
from covid_jax.model.layers import Input
from covid_jax.training.cost import abstract_params
from covid_jax.transfer.freezing import leaves_by_path, mask
from covid_jax.transfer.strategies import layers_of

Triple = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """One convolution of the network for one patch.

    Attributes:
      path: of its parameters, `encoder/stage_0/block_0/conv`.
      inputs: what is concatenated to its input.
      input_size, output_size: (D, H, W).
      kernel_size, strides: (D, H, W).
      features: channels of the output.
      transposed: whether it is the one that upsamples (kernel size = strides).
    """

    path: str
    inputs: tuple[Input, ...]
    input_size: Triple
    output_size: Triple
    kernel_size: Triple
    strides: Triple
    features: int
    transposed: bool = False

    @property
    def channels(self) -> int:
        """Of all inputs."""
        return sum(one.channels for one in self.inputs)

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
    return [
        Convolution(
            layer.path,
            layer.inputs,
            sizes[layer.input_stage],
            sizes[layer.stage],
            layer.kernel_size,
            layer.strides,
            layer.features,
            layer.transposed,
        )
        for layer in layers_of(config)
    ]


def counted_flops(config: Config, patterns: Sequence[str]) -> float:
    """The operations of a training step with `patterns` frozen, of its convolutions alone.

    A convolution costs its forward pass, the gradient to its kernel where that is trained, and
    the gradient to each input above which something is trained.
    """
    params = abstract_params(config)
    held = leaves_by_path(mask(params, patterns))
    trained: dict[str, bool] = {}
    total = 0.0
    for conv in convolutions(config):
        needed = sum(
            one.channels for one in conv.inputs if any(trained[path] for path in one.sources)
        )
        # The norm behind a kernel may be trained where the kernel is frozen.
        block = conv.path.removesuffix("conv")
        trains_kernel = not held[f"{conv.path}/kernel"]
        trained[conv.path] = bool(needed) or not all(
            frozen for path, frozen in held.items() if path.startswith(block)
        )
        total += conv.operations(conv.channels) * (1 + trains_kernel) + conv.operations(needed)
    return config.data.batch_size * total
