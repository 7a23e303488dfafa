r"""Every convolution of the network, its three passes, each form beside PyTorch's.

    python -m benchmarks.convolution --config=configs/paper.py --config.data.patch_size=16,64,96 \
        --output=DIR [--peer=torch]

Of every shape that the network has (how often stands beside it), the forward pass, the gradient to
the input and the gradient to the kernel, in turns: XLA's own ("lax"); on a CPU planar convolutions
and matrix products ("slices") and oneDNN's where it is installed, elsewhere neighbours along W as
channels ("packed"); and PyTorch's. Writes convolution.json and prints GFLOP/s: where the choices of
training/platform.py (the form) and model/conv.py (the neighbours, the bound under which a gradient
to a kernel is one matrix product) come from.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.arithmetic import Convolution, convolutions
from benchmarks.harness.tables import Line, convolution_table
from benchmarks.harness.timing import in_turns
from covid_jax.command import as_process, require, run_command
from covid_jax.config import (
    Config,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
)
from covid_jax.device import announce_device
from covid_jax.model import onednn
from covid_jax.model.conv import Form, convolution
from covid_jax.model.layers import Input
from covid_jax.training.platform import Platform

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_PEER = flags.DEFINE_enum("peer", None, ["torch"], "What to time beside ours.", _FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of convolution.json.", _FLAGS)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Turns that each has.", lower_bound=1, flag_values=_FLAGS
)
_SECONDS = flags.DEFINE_float(
    "seconds", 0.1, "Length of a turn, of one call at least.", lower_bound=0, flag_values=_FLAGS
)

FORMS: dict[str, tuple[Form, ...]] = {
    "cpu": ("lax", "slices", "onednn"),
    "others": ("lax", "packed"),
}
PASSES = ("forward", "gradient to input", "gradient to kernel")


def distinct(config: Config) -> Counter[Convolution]:
    """The run's 3D convolutions without their places, with how many there are of each.

    Those that upsample and the heads are matrix products in every form, and left out.
    """
    return Counter(
        dataclasses.replace(conv, path="", inputs=(Input((), conv.channels),))
        for conv in convolutions(config)
        if not conv.transposed and not conv.path.startswith("heads")
    )


def ours(conv: Convolution, batch_size: int, dtype: str, form: Form) -> list[Callable[[], Any]]:
    """The three passes of one convolution in one form."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch_size, *conv.input_size, conv.channels)), dtype)
    shape = (*conv.kernel_size, conv.channels, conv.features)
    kernel = jnp.asarray(rng.normal(size=shape), dtype)
    depth, height, width = conv.strides
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


def theirs(conv: Convolution, batch_size: int, dtype: str) -> dict[str, list[Callable[[], Any]]]:
    """The three passes of one convolution in PyTorch on the CPU, for both of its layouts."""
    import torch

    strides = conv.strides
    padding = [(k - 1) // 2 for k in conv.kernel_size]
    image = torch.randn(batch_size, conv.channels, *conv.input_size, dtype=getattr(torch, dtype))
    weight = torch.randn(conv.features, conv.channels, *conv.kernel_size, dtype=image.dtype)
    found: dict[str, list[Callable[[], Any]]] = {}
    for name, layout in {
        "torch": torch.contiguous_format,
        "torch channels-last": torch.channels_last_3d,
    }.items():
        x, kernel = image.to(memory_format=layout), weight.to(memory_format=layout)
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


def measure(
    config: Config, platform: Platform, conv: Convolution, count: int, peer: bool
) -> list[Line]:
    """The lines of convolution.json of one convolution: one for each form and pass."""
    batch_size = config.data.batch_size
    flops = batch_size * conv.operations(conv.channels)
    runs: dict[str, list[Callable[[], Any]]] = {}
    for form in FORMS["cpu" if platform.name == "cpu" else "others"]:
        if form != "onednn" or (onednn.available() and config.dtype == "float32"):
            runs[form] = ours(conv, batch_size, config.dtype, form)
    if peer:
        runs |= theirs(conv, batch_size, config.dtype)
    lines = []
    for index, name in enumerate(PASSES):
        # The image needs no gradient.
        if name == "gradient to input" and conv.channels == config.model.in_channels:
            continue
        *_, timings = in_turns(
            [passes[index] for passes in runs.values()],
            _ROUNDS.value,
            _SECONDS.value,
            platform.name,
        )
        lines += [
            {
                "size": conv.input_size,
                "kernel_size": conv.kernel_size,
                "strides": conv.strides,
                "channels": conv.channels,
                "features": conv.features,
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


def work() -> None:
    """Measures what the flags say."""
    require(_OUTPUT)
    announce_device()
    config, platform = environment.here(environment.of_plan(config_from_flag(_FLAGS)))
    path = Path(_OUTPUT.value) / "convolution.json"
    lines: list[Line] = []
    for conv, count in distinct(config).items():
        lines += measure(config, platform, conv, count, _PEER.value == "torch")
        environment.save(path, lines)
    print(convolution_table(lines))
    print(f"{path}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
