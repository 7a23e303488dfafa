r"""Does scratch score as PyTorch's nnU-Net does, on the test cases of a fold? Some seeds of each.

    python -m benchmarks.dice_parity --config=configs/covid19_reduced.py:scratch --workdir=DIR \
        --config.data.prepared_dir=runs/reduced/prepared --output=benchmarks/results

Ours is covid_jax.train, run by run. The other is nnU-Net's network, loss and optimiser, on the
patches that ours saw, augmentation included, from first weights of its own; its test cases are
predicted and measured by the same code. Runs that are done stay. Writes dice_parity.json and
dice_parity.png: the Dice of every test case.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.seeds import agreement, agreement_table
from benchmarks.peers import torch_nnunet as peer
from covid_jax.command import as_process, require, run_command
from covid_jax.config import Config, check_config_arguments, config_from_flag, define_config_flag
from covid_jax.data.augment import augment
from covid_jax.data.sampling import Batch, Sampler
from covid_jax.device import announce_device
from covid_jax.evaluation.folders import load_metrics
from covid_jax.evaluation.scoring import score_run
from covid_jax.model.nnunet_weights import to_params
from covid_jax.train import train
from covid_jax.training.completion import fitted
from covid_jax.training.parallel import keep_compiled_programs
from covid_jax.training.run import make_phantom_data, open_data, samplers, title

matplotlib.use("agg")

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", _FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", _FLAGS)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Runs of each.", lower_bound=1, flag_values=_FLAGS)

Scores = dict[str, float]
"""The Dice of every test case."""


def train_ours(config: Config, workdir: Path) -> Scores:
    """A run of covid_jax.train."""
    train(config, workdir)
    return read_scores(workdir)


def train_torch(config: Config, workdir: Path) -> Scores:
    """PyTorch's nnU-Net on the patches of such a run."""
    if not (workdir / "metrics.json").is_file():
        plan, datasets = open_data(config, workdir)
        config = fitted(config, plan, datasets)
        training, _ = samplers(config, datasets)
        net = peer.train(config, config.seed, patches(config, training))
        params = to_params(net.state_dict(), config.model)
        config, platform = environment.here(config)
        score_run(config, plan, datasets[0], params, workdir, platform)
    return read_scores(workdir)


def patches(config: Config, training: Sampler) -> Iterator[Batch]:
    """The batches of all steps as covid_jax.train augments them."""
    changed = jax.jit(functools.partial(augment, patch_size=config.data.patch_size, at_once=False))
    key = jax.random.key(config.seed)
    steps = config.epochs * config.steps_per_epoch
    with tqdm(total=steps, unit="step", mininterval=1, disable=None) as bar:
        for step, batch in enumerate(training.batches(0, steps)):
            if config.data.augment:
                keys = jax.random.split(jax.random.fold_in(key, step), len(batch.image))
                image, label = changed(keys, batch.image, batch.label)
                batch = dataclasses.replace(batch, image=np.asarray(image), label=np.asarray(label))
            yield batch
            bar.update()


def read_scores(workdir: Path) -> Scores:
    """From a run's metrics.json."""
    cases = load_metrics(workdir / "metrics.json")["cases"]
    return {name: case["dsc"] for name, case in cases.items()}


def draw(scores: dict[str, list[Scores]], what: str, path: Path) -> None:
    """The mean of every test case over the seeds, and all seeds about it."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    cases = sorted(next(iter(scores.values()))[0])
    styles = zip(scores.items(), ("#31688e", "#ff5a36"), (-0.12, 0.12), strict=True)
    for (name, runs), colour, shift in styles:
        values = np.array([[run[case] for case in cases] for run in runs])
        places = np.arange(len(cases)) + shift
        label = f"{name}: {values.mean():.3f}, mean of {len(runs)} seeds"
        axes.vlines(places, values.min(0), values.max(0), color=colour, alpha=0.5)
        axes.scatter(places, values.mean(0), color=colour, s=22, label=label)
    axes.set_xticks(range(len(cases)), cases, rotation=60, ha="right", fontsize=7)
    axes.set(ylabel="DSC of the test case", ylim=(0, 1))
    axes.set_title(f"{what}: the same patches for both; lines: all seeds", fontsize=9)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def work() -> None:
    """Trains, compares and writes what the flags say."""
    require(_OUTPUT, _WORKDIR)
    announce_device()
    config, output, workdir = config_from_flag(_FLAGS), Path(_OUTPUT.value), Path(_WORKDIR.value)
    make_phantom_data(config, workdir)
    what = title(config, open_data(config, workdir)[1])
    prepared_dir = config.data.prepared_dir or str(workdir / "data")
    data = dataclasses.replace(config.data, prepared_dir=prepared_dir)
    config = dataclasses.replace(config, data=data)
    keep_compiled_programs()
    trainers = {"covid_jax": train_ours, "PyTorch's nnU-Net": train_torch}
    scores: dict[str, list[Scores]] = {name: [] for name in trainers}
    for seed in range(_SEEDS.value):
        seeded = dataclasses.replace(config, seed=seed)
        for place, (name, trainer) in zip(("jax", "torch"), trainers.items(), strict=True):
            scores[name].append(trainer(seeded, workdir / f"{place}-{seed}"))
    means = {
        name: [float(np.mean(list(run.values()))) for run in runs] for name, runs in scores.items()
    }
    result = {
        **environment.describe(),
        "run": what,
        "steps": config.epochs * config.steps_per_epoch,
        "mean_dsc": means,
        **agreement(means),
        "cases": scores,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "dice_parity.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(scores, what, output / "dice_parity.png")
    print(agreement_table(means))


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
