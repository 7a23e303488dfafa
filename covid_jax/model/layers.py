"""A network's convolutions as data, in the order of the forward pass.

model/unet.py computes them; what counts, draws or explains a network reads this list. So a network
is told in two places, and tests/model/test_layers.py holds them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from covid_jax.config import UNetConfig

Triple = tuple[int, int, int]

_ONE: Triple = (1, 1, 1)


@dataclass(frozen=True)
class Input:
    """Channels that a convolution meets: a sum of outputs.

    Attributes:
      sources: the convolutions whose outputs are added up to it, by their paths; () is the image.
      channels: of each of them, and so of the sum.
    """

    sources: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Layer:
    """A convolution, with the instance norm behind it.

    Attributes:
      path: of its parameters, `encoder/stage_0/block_0/conv`.
      norm: of its norm's parameters; "" where it has none.
      inputs: what is concatenated to its input.
      kernel_size, strides: (D, H, W).
      features: channels of its output.
      stage: the one whose resolution its output has, 0 for the full one.
      transposed: whether it is the one that upsamples (kernel size = strides).
    """

    path: str
    norm: str
    inputs: tuple[Input, ...]
    kernel_size: Triple
    strides: Triple
    features: int
    stage: int
    transposed: bool = False

    @property
    def top(self) -> str:
        """The subtree of the parameters that it is in: encoder, decoder, heads."""
        return self.path.split("/")[0]

    @property
    def output(self) -> Input:
        """Its output as an input."""
        return Input((self.path,), self.features)

    @property
    def input_stage(self) -> int:
        """The stage whose resolution its input has."""
        if self.transposed:
            return self.stage + 1
        return self.stage - (self.strides != _ONE)

    def holds(self, path: str) -> bool:
        """Whether the parameter at `path` is this convolution's or its norm's."""
        node = path.rpartition("/")[0]
        return node in (self.path, self.norm)


def layers(config: UNetConfig, encoders: Sequence[str] = ("encoder",)) -> list[Layer]:
    """Every convolution of the network with `encoders`, which are concatenated at each stage."""
    found: list[Layer] = []
    stages: list[tuple[Input, ...]] = [()] * len(config.features_per_stage)
    for encoder in encoders:
        listed, outputs = _encoder(config, encoder)
        found += listed
        stages = [(*above, output) for above, output in zip(stages, outputs, strict=True)]
    below, heads = stages[-1], []
    for stage in reversed(range(len(stages) - 1)):
        listed = _decoder_stage(config, stage, below, stages[stage])
        below = (listed[-1].output,)
        found += listed
        path, classes = f"heads/stage_{stage}", config.num_classes
        heads.append(Layer(path, "", below, _ONE, _ONE, classes, stage))
    return found + (heads if config.deep_supervision else heads[-1:])


def _encoder(config: UNetConfig, name: str) -> tuple[list[Layer], list[Input]]:
    """The layers of an encoder, and what each stage gives."""
    found: list[Layer] = []
    outputs = []
    x = Input((), config.in_channels)
    if config.n_blocks_per_stage:
        features = config.features_per_stage[0]
        found.append(_block(f"{name}/stem", (x,), config.kernel_sizes[0], _ONE, features, 0))
        x = found[-1].output
    for stage, blocks in enumerate(config.n_blocks_per_stage or config.n_conv_per_stage):
        features, kernel = config.features_per_stage[stage], config.kernel_sizes[stage]
        for block in range(blocks):
            path = f"{name}/stage_{stage}/block_{block}"
            strides = _ONE if block else config.strides[stage]
            if config.n_blocks_per_stage:
                listed, x = _residual_block(path, x, kernel, strides, features, stage)
            else:
                listed = [_block(path, (x,), kernel, strides, features, stage)]
                x = listed[0].output
            found += listed
        outputs.append(x)
    return found, outputs


def _decoder_stage(
    config: UNetConfig, stage: int, below: tuple[Input, ...], skips: tuple[Input, ...]
) -> list[Layer]:
    features, strides = config.features_per_stage[stage], config.strides[stage + 1]
    name = f"decoder/stage_{stage}"
    found = [Layer(f"{name}/up", "", below, strides, strides, features, stage, transposed=True)]
    inputs = (found[0].output, *skips)
    for block in range(config.n_conv_per_stage_decoder[-1 - stage]):
        kernel = config.decoder_kernel_size(stage)
        found.append(_block(f"{name}/block_{block}", inputs, kernel, _ONE, features, stage))
        inputs = (found[-1].output,)
    return found


def _block(
    path: str,
    inputs: tuple[Input, ...],
    kernel_size: Triple,
    strides: Triple,
    features: int,
    stage: int,
) -> Layer:
    return Layer(f"{path}/conv", f"{path}/norm", inputs, kernel_size, strides, features, stage)


def _residual_block(
    path: str, x: Input, kernel_size: Triple, strides: Triple, features: int, stage: int
) -> tuple[list[Layer], Input]:
    """The layers of a residual block, and the sum that it gives."""
    first = _block(f"{path}/conv1", (x,), kernel_size, strides, features, stage)
    second = _block(f"{path}/conv2", (first.output,), kernel_size, _ONE, features, stage)
    found, skip = [first, second], x
    if x.channels != features:
        # Where the block has a stride, of the pooled input: its own has none.
        found.append(_block(f"{path}/skip", (x,), _ONE, _ONE, features, stage))
        skip = found[-1].output
    return found, Input((second.path, *skip.sources), features)
