r"""Every convolution of the network, its three passes, each form beside PyTorch's.

    python -m benchmarks.convolution --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --output=DIR [--peer=torch]

Of every shape that the network has (how often stands beside it), the forward pass, the gradient to
the input and the gradient to the kernel, in turns: XLA's own ("lax"), as planar convolutions and
matrix products ("slices"), oneDNN's where it is installed, and PyTorch's. Writes convolution.json,
from which covid_jax/model/conv.py has its choices (fast_form, and the bound under which a gradient
to a kernel is one matrix product), and prints GFLOP/s.
"""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import environment
from benchmarks.arithmetic import Convolution, convolutions
from benchmarks.tables import Line, convolution_table
from benchmarks.timing import in_turns
from covid_jax.config import (
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.errors import UserError, run_command
from covid_jax.model import onednn
from covid_jax.model.conv import Form, convolution

_CONFIG = define_config_flag()
flags.declare_key_flag("config")
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of convolution.json.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns that each has.")
_SECONDS = flags.DEFINE_float("seconds", 0.1, "Length of a turn, of one call at least.")

PASSES = ("forward", "gradient to input", "gradient to kernel")
Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int, int]
"""Size and kernel size and strides (D, H, W), channels, features."""


def shapes(config: Config) -> Counter[Shape]:
    """The shapes of the run's 3D convolutions, with how many there are of each.

    Those that upsample and the heads are matrix products in every form, and left out.
    """
    return Counter(
        _shape(conv)
        for conv in convolutions(config)
        if not conv.transposed and not conv.path.startswith("heads")
    )


def _shape(conv: Convolution) -> Shape:
    channels = sum(count for _, count in conv.inputs)
    return conv.input_size, conv.kernel_size, conv.strides, channels, conv.features


def ours(shape: Shape, batch_size: int, dtype: str, form: Form) -> list[Callable[[], Any]]:
    """The three passes of one shape in one form."""
    size, kernel_size, strides, channels, features = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch_size, *size, channels)), dtype)
    kernel = jnp.asarray(rng.normal(size=(*kernel_size, channels, features)), dtype)
    depth, height, width = strides
    forward = jax.jit(lambda x, kernel: convolution(x, kernel, (depth, height, width), form))
    dy = forward(x, kernel)
    # Each pass alone: XLA drops the forward pass, whose value the gradients do not need.
    to_input = jax.jit(lambda x, kernel, dy: jax.vjp(lambda x: forward(x, kernel), x)[1](dy))
    to_kernel = jax.jit(lambda x, kernel, dy: jax.vjp(lambda k: forward(x, k), kernel)[1](dy))
    return [
        lambda: forward(x, kernel).block_until_ready(),
        lambda: jax.block_until_ready(to_input(x, kernel, dy)),
        lambda: jax.block_until_ready(to_kernel(x, kernel, dy)),
    ]


def theirs(shape: Shape, batch_size: int, dtype: str) -> dict[str, list[Callable[[], Any]]]:
    """The three passes of one shape in PyTorch on the CPU, for both of its layouts."""
    import torch

    size, kernel_size, strides, channels, features = shape
    found: dict[str, list[Callable[[], Any]]] = {}
    for name, layout in {
        "torch": torch.contiguous_format,
        "torch channels-last": torch.channels_last_3d,
    }.items():
        kind = getattr(torch, dtype)
        x = torch.randn(batch_size, channels, *size).to(kind).to(memory_format=layout)
        kernel = torch.randn(features, channels, *kernel_size).to(kind).to(memory_format=layout)
        padding = [(k - 1) // 2 for k in kernel_size]
        dy = torch.nn.functional.conv3d(x, kernel, None, strides, padding)

        backward = functools.partial(
            torch.ops.aten.convolution_backward,
            *(dy, x, kernel, None, strides, padding, [1, 1, 1], False, [0, 0, 0], 1),
        )
        found[name] = [
            functools.partial(torch.nn.functional.conv3d, x, kernel, None, strides, padding),
            functools.partial(backward, [True, False, False]),
            functools.partial(backward, [False, True, False]),
        ]
    return found


def measure(config: Config, shape: Shape, count: int, peer: bool) -> list[Line]:
    """The lines of convolution.json of one shape: one for each form and pass."""
    size, kernel_size, strides, channels, features = shape
    batch_size = config.data.batch_size
    output = [-(-n // s) for n, s in zip(size, strides, strict=True)]
    flops = 2.0 * batch_size * np.prod(output) * np.prod(kernel_size) * channels * features
    runs: dict[str, list[Callable[[], Any]]] = {}
    forms: tuple[Form, ...] = ("lax", "slices", "onednn")
    for form in forms:
        if form != "onednn" or (onednn.available() and config.dtype == "float32"):
            runs[form] = ours(shape, batch_size, config.dtype, form)
    if peer:
        runs |= theirs(shape, batch_size, config.dtype)
    lines = []
    for index, name in enumerate(PASSES):
        # The image needs no gradient.
        if name == "gradient to input" and channels == config.model.in_channels:
            continue
        *_, timings = in_turns(
            [passes[index] for passes in runs.values()], _ROUNDS.value, _SECONDS.value
        )
        lines += [
            {
                "size": size,
                "kernel_size": kernel_size,
                "strides": strides,
                "channels": channels,
                "features": features,
                "count": count,
                "batch_size": batch_size,
                "dtype": config.dtype,
                "pass": name,
                "form": form,
                "seconds": timing.median,
                "gflop_per_second": flops / timing.median / 1e9,
                **timing.described(),
            }
            for form, timing in zip(runs, timings, strict=True)
        ]
    return lines


def main() -> None:
    """Measures what the flags say."""
    if not _OUTPUT.value:
        raise UserError("--output is missing (see --help)")
    config = config_from_flag(_CONFIG)
    path = Path(_OUTPUT.value) / "convolution.json"
    lines: list[Line] = []
    for shape, count in shapes(config).items():
        lines += measure(config, shape, count, _PEER.value == "torch")
        environment.save(path, lines)
    print(convolution_table(lines))
    print(f"{path}")


if __name__ == "__main__":
    run_command(main, __doc__, check_config_arguments)
