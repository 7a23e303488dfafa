r"""What does fine-tuning a network that nnU-Net trained give, by strategy, beside scratch?

    python -m benchmarks.fine_tuning --config=configs/nnunet.py --workdir=runs/fine_tuning \
        --config.pretrained=runs/imported --config.data.prepared_dir=prepared \
        --config.data.datasets=mine --output=out

The folder is prepared with --plan_from the imported network, so that scratch has its plan and its
network too. Each strategy is a run of covid_jax.train, WORKDIR/STRATEGY; runs that are done stay.
Writes fine_tuning.json: the DSC of every test case.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.harness import environment
from benchmarks.harness.tables import fine_tuning_table
from covid_jax.command import as_process, require, run_command
from covid_jax.config import check_config_arguments, config_from_flag, define_config_flag, named_run
from covid_jax.device import announce_device
from covid_jax.errors import UserError
from covid_jax.evaluation.folders import load_metrics
from covid_jax.files import read_json
from covid_jax.train import train
from covid_jax.training.parallel import keep_compiled_programs
from covid_jax.training.pretrained import load_config
from covid_jax.training.provenance import seen_before
from covid_jax.training.run import open_data
from covid_jax.transfer.strategies import STRATEGIES

_FLAGS = flags.FlagValues()
define_config_flag(_FLAGS)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the runs.", _FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the results.", _FLAGS)


def work() -> None:
    """Trains, and writes what the flags say."""
    require(_OUTPUT, _WORKDIR)
    config, output, workdir = config_from_flag(_FLAGS), _OUTPUT.value, _WORKDIR.value
    if not config.pretrained:
        raise UserError("--config.pretrained is missing (see --help)")
    announce_device()
    keep_compiled_programs()
    lines = []
    for name, strategy in STRATEGIES.items():
        place = Path(workdir) / name
        if strategy.needs_pretraining:
            train(named_run(config, f"{name}-imported"), place)
        else:
            train(dataclasses.replace(config, pretrained=""), place)
        cases = load_metrics(place / "metrics.json")["cases"]
        of_cases = {name: case["dsc"] for name, case in cases.items()}
        mean = float(np.mean(list(of_cases.values())))
        lines.append({"strategy": name, "dsc": mean, "cases": of_cases})
    network = load_config(Path(workdir) / "scratch")
    _, datasets = open_data(config, Path(workdir))
    environment.save(
        Path(output) / "fine_tuning.json",
        lines,
        pretraining=read_json(Path(config.pretrained) / "dataset.json").get("name", ""),
        test_cases_seen_before=seen_before(config, datasets),
        training_cases=len(datasets[0].split(config.fold).train),
        steps=config.epochs * config.steps_per_epoch,
        features_per_stage=network.model.features_per_stage,
        patch_size=network.data.patch_size,
    )
    print(fine_tuning_table(lines))


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    return run_command(work, _FLAGS, __doc__, arguments, check_config_arguments)


if __name__ == "__main__":
    as_process(main)
