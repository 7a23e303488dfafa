"""Does ours learn as PyTorch's nnU-Net does? The same patches, three initialisations of each.

    python -m benchmarks.learning_parity --output=benchmarks/results

Both train on the same prepared phantoms with the same stream of patches, without augmentation;
each draws its own initial weights. Writes learning_parity.json and learning_parity.png: Dice over
the same validation patches after every epoch.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from absl import flags
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.seeds import Curve, agreement, agreement_table, draw_curves
from benchmarks.peers import torch_nnunet as peer
from covid_jax.command import as_process, require, run_command
from covid_jax.config import Config, DataConfig, OptimizerConfig, UNetConfig
from covid_jax.data.sampling import Batch, Sampler
from covid_jax.device import announce_device
from covid_jax.training.parallel import make_mesh
from covid_jax.training.program import make_program
from covid_jax.training.run import make_phantom_data, open_data, samplers
from covid_jax.training.state import initial_state, learning_rate, new_params
from covid_jax.training.step import mean_dice, pseudo_dice

matplotlib.use("agg")

_FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", _FLAGS)
_DATA = flags.DEFINE_string(
    "data", "runs/learning_parity", "Folder for the synthetic cases.", _FLAGS
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 15, "Epochs of each run.", lower_bound=1, flag_values=_FLAGS
)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each.", lower_bound=1, flag_values=_FLAGS)

CONFIG = Config(
    steps_per_epoch=40,
    validation_steps=8,
    model=UNetConfig(
        features_per_stage=(8, 16, 32),
        kernel_sizes=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        n_conv_per_stage=(2, 2, 2),
        n_conv_per_stage_decoder=(2, 2),
    ),
    optimizer=OptimizerConfig(learning_rate=0.05, momentum=0.9),
    data=DataConfig(datasets=("phantom",), patch_size=(16, 48, 48), foreground_fraction=0.5),
)

Train = Callable[[Config, int, Sampler, Sampler], Curve]


def train_ours(config: Config, seed: int, training: Sampler, validation: Sampler) -> Curve:
    """The validation Dice after every epoch."""
    config, platform = environment.here(config)
    mesh = make_mesh(config.mesh, config.data.batch_size, config.data.patch_size[0])
    program = make_program(config, mesh, platform)
    params = new_params(program.network, seed, (1, *config.data.patch_size, 1))
    state = initial_state(params, program.transform)
    nothing = jax.tree.map(lambda _: None, params)
    curve = []
    batches = training.batches(0, config.epochs * config.steps_per_epoch)
    for epoch in range(config.epochs):
        rate = jnp.float32(learning_rate(config, epoch))
        for batch in itertools.islice(batches, config.steps_per_epoch):
            state, _ = program.train_step(state, nothing, vars(batch), rate, jax.random.key(0))
        found = [
            program.eval_step(state.trainable, nothing, vars(validation.batch(step)))
            for step in range(config.validation_steps)
        ]
        curve.append(mean_dice(pseudo_dice(jax.device_get(found))))
    return curve


def train_torch(config: Config, seed: int, training: Sampler, validation: Sampler) -> Curve:
    """The same of PlainConvUNet with nnU-Net's loss and optimiser."""
    curve: Curve = []

    def validate(net: torch.nn.Module) -> None:
        with torch.no_grad():
            found = [_overlap(net, validation.batch(s)) for s in range(config.validation_steps)]
        curve.append(mean_dice(pseudo_dice(found)))

    steps = config.epochs * config.steps_per_epoch
    peer.train(config, seed, training.batches(0, steps), validate)
    return curve


def _overlap(net: torch.nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    predicted = net(peer.channels_first(batch.image))[0].argmax(1).numpy() == 1
    true = batch.label == 1
    return {
        "overlap": np.array([2 * (predicted & true).sum()]),
        "volume": np.array([predicted.sum() + true.sum()]),
    }


def draw(curves: dict[str, list[Curve]], path: Path) -> None:
    """The mean curve of each, over the band of its seeds."""
    figure, axes = plt.subplots(figsize=(6, 3.8))
    draw_curves(axes, curves)
    axes.set(xlabel="epoch", ylabel="Dice over validation patches", ylim=(0, 1))
    axes.set_title("SYNTHETIC phantoms, the same patches for both; band: all seeds", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def work() -> None:
    """Trains, compares and writes what the flags say."""
    require(_OUTPUT)
    announce_device()
    output, data = Path(_OUTPUT.value), Path(_DATA.value)
    plain = dataclasses.replace(CONFIG.data, augment=False)
    config = dataclasses.replace(CONFIG, epochs=_EPOCHS.value, data=plain)
    make_phantom_data(config, data)
    _, datasets = open_data(config, data)
    training, validation = samplers(config, datasets)
    trainers: dict[str, Train] = {"covid_jax": train_ours, "PyTorch's nnU-Net": train_torch}
    curves: dict[str, list[Curve]] = {name: [] for name in trainers}
    for seed in tqdm(range(_SEEDS.value), "seeds", disable=None):
        for name, train in trainers.items():
            curves[name].append(train(config, seed, training, validation))
    final = {name: [curve[-1] for curve in runs] for name, runs in curves.items()}
    result = {
        **environment.describe(),
        "data": "SYNTHETIC phantoms",
        "curves": curves,
        "final_dice": final,
        **agreement(final),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "learning_parity.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(curves, output / "learning_parity.png")
    print(agreement_table(final))


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments)


if __name__ == "__main__":
    as_process(main)
