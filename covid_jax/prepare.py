"""Prepares a raw dataset: crop, normalise, resample, as nnU-Net does.

    python -m covid_jax.prepare --dataset=covid19 --raw_dir=COVID-19-CT-Seg --out_dir=prepared

writes prepared/covid19/ and, if it is not there yet, prepared/plan.json from the training cases of
fold 0. Datasets prepared into the same folder share that plan, as pre-training and its transfer
must. Starting again prepares what is missing and what changed in the raw folder since, and removes
what is no longer there. --check_only reads everything, writes nothing, and tells what is there,
what is not taken, what is missing, what would be mended and what would be refused, and with
--out_dir what would become of the cases that are there.

--planner plans a network too, by nnU-Net's rules for a GPU of --gpu_memory_gb: patch, batch and
stages, at the resolution that --configuration names. plan.json has them under nnU-Net's names.
--plan_from=RUN takes the plan of a run or of an imported network instead, so that its network finds
the data as it knows it (channels of other kinds are normalised by the data's own intensities);
--plans=plans.json that of nnU-Net, its configuration named, with its normalisations whatever the
channels are called.

CT is in HU. Scans that cannot be in HU are refused, but for 8-bit grey, which is mapped back;
--intensities tells how their values are read instead: hu (they are), 8bit, offset1024 (HU + 1024),
or as_is. Other channels are normalised as their names in dataset.json say to nnU-Net.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import fill, indent

from absl import flags

from covid_jax.command import as_process, require, run_command
from covid_jax.config import InferenceConfig
from covid_jax.data.check import check
from covid_jax.data.datasets import DATASETS
from covid_jax.data.intensities import INTENSITIES
from covid_jax.data.phantom import LESIONS, write_raw_dataset
from covid_jax.data.plan import Plan, check_plan, load_plan
from covid_jax.data.planner import CONFIGURATIONS, PLANNERS, Planning, topology_of
from covid_jax.data.preparation import prepare_dataset
from covid_jax.device import announce_cpu, cores
from covid_jax.errors import UserError
from covid_jax.nnunet.model_folder import nnunet_plan
from covid_jax.training.pretrained import load_config

_FLAGS = flags.FlagValues()
_DATASET = flags.DEFINE_enum("dataset", None, list(DATASETS), "Layout of the raw data.", _FLAGS)
_RAW_DIR = flags.DEFINE_string("raw_dir", None, "Folder of the raw data.", _FLAGS)
_NAME = flags.DEFINE_string(
    "name",
    "",
    "What the prepared dataset is called, if not as its layout: config.data.datasets.",
    _FLAGS,
)
_SPLITS = flags.DEFINE_string("splits", None, "Folds, as nnU-Net's splits_final.json.", _FLAGS)
_OUT_DIR = flags.DEFINE_string(
    "out_dir", None, "Folder for prepared data and its plan.json.", _FLAGS
)
_PLAN_FOLD = flags.DEFINE_integer(
    "plan_fold", 0, "Fold whose training cases make plan.json.", lower_bound=0, flag_values=_FLAGS
)
_PLANNER = flags.DEFINE_enum(
    "planner", None, list(PLANNERS), "Whose rules plan a network; none is planned without.", _FLAGS
)
_GPU_MEMORY = flags.DEFINE_float(
    "gpu_memory_gb",
    None,
    "Memory of the GPU that --planner plans for; its own is 8, of resenc_l 24, of resenc_xl 40.",
    lower_bound=1,
    upper_bound=1024,
    flag_values=_FLAGS,
)
_CONFIGURATION = flags.DEFINE_string(
    "configuration",
    None,
    f"What --planner plans ({' or '.join(CONFIGURATIONS)}), or which of --plans is taken; "
    "3d_fullres unless told.",
    _FLAGS,
)
_PLAN_FROM = flags.DEFINE_string(
    "plan_from", None, "A run whose plan and network are taken.", _FLAGS
)
_PLANS = flags.DEFINE_string("plans", None, "nnU-Net's plans.json, whose plan is taken.", _FLAGS)
_SYNTHETIC = flags.DEFINE_bool(
    "synthetic", False, "Write synthetic cases in the dataset's layout to --raw_dir first.", _FLAGS
)
_NUM_CASES = flags.DEFINE_integer(
    "num_cases", 10, "Number of synthetic cases.", lower_bound=1, flag_values=_FLAGS
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", len(cores()), "Cases to work on at once.", lower_bound=1, flag_values=_FLAGS
)
_CHECK_ONLY = flags.DEFINE_bool(
    "check_only", False, "Tell what would be done, and do nothing.", _FLAGS
)
_SKIP_BAD = flags.DEFINE_bool(
    "skip_bad", False, "Leave out cases that cannot be read safely, instead of stopping.", _FLAGS
)
_INTENSITIES = flags.DEFINE_enum(
    "intensities",
    "auto",
    INTENSITIES,
    "How the scans' values are read; auto looks at them.",
    _FLAGS,
)
_LESION = flags.DEFINE_enum(
    "lesion",
    "",
    ["", *LESIONS],
    "Lesions of the synthetic cases, if not the dataset's own.",
    _FLAGS,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the synthetic cases.", lower_bound=0, flag_values=_FLAGS
)


def _check_flags() -> None:
    """Raises a UserError for flags that would be passed over."""
    synthetic = _SYNTHETIC.value or _DATASET.value == "phantom"
    given = [f"--{flag.name}" for flag in (_NUM_CASES, _LESION, _SEED) if flag.present]
    if given and not synthetic:
        raise UserError(f"{' and '.join(given)}: of synthetic cases; give --synthetic too")
    if _CHECK_ONLY.value and (_SYNTHETIC.value or given):
        raise UserError("--check_only writes nothing, and so no synthetic cases; leave one out")


def _planning() -> Planning | None:
    """What the flags ask of the planner."""
    ways = [f"--{flag.name}" for flag in (_PLANNER, _PLAN_FROM, _PLANS) if flag.value]
    if len(ways) > 1:
        raise UserError(f"{' and '.join(ways)}: a plan comes from one of them")
    if _CONFIGURATION.value and not (_PLANNER.value or _PLANS.value):
        raise UserError("--configuration tells --planner or --plans what to plan; name one")
    if not _PLANNER.value:
        if _GPU_MEMORY.value is not None:
            raise UserError("--gpu_memory_gb tells --planner what to plan; name one (see --help)")
        return None
    configuration = _CONFIGURATION.value or Planning.configuration
    if configuration not in CONFIGURATIONS:
        raise UserError(
            f"--configuration={configuration}: --planner plans {' or '.join(CONFIGURATIONS)}"
        )
    return Planning(_PLANNER.value, _GPU_MEMORY.value, configuration)


def _given_plan(raw_dir: Path) -> Plan | None:
    """The plan, with its network, that --plan_from or --plans names."""
    if _PLAN_FROM.value:
        run = Path(_PLAN_FROM.value)
        config = load_config(run)
        plan = replace(load_plan(run / "plan.json"), topology=topology_of(config))
        check_plan(plan, run)
        if (axes := config.inference.mirror_axes) != InferenceConfig.mirror_axes:
            told = ",".join(map(str, axes))
            print(
                f"note: {run} was trained mirrored along {told or 'no axis'}, as is what starts "
                f"from it; a run from scratch is by --config.inference.mirror_axes={told or '()'!r}"
                f" --config.inference.mirror={bool(axes)}"
            )
        return plan
    if _PLANS.value:
        path, configuration = Path(_PLANS.value), _CONFIGURATION.value or Planning.configuration
        plan = nnunet_plan(path, raw_dir / "dataset.json", configuration)
        check_plan(plan, path)
        return plan
    return None


def work() -> None:
    """Prepares what the flags say."""
    require(_DATASET, _RAW_DIR, *([] if _CHECK_ONLY.value else [_OUT_DIR]))
    _check_flags()
    planning = _planning()
    splits = Path(_SPLITS.value) if _SPLITS.value else None
    announce_cpu()
    if _CHECK_ONLY.value:
        if planning:
            print(f"--planner={planning.planner} plans from prepared cases, and so nothing here")
        check(
            _DATASET.value,
            Path(_RAW_DIR.value),
            Path(_OUT_DIR.value) if _OUT_DIR.value else None,
            _PLAN_FOLD.value,
            _NUM_PROCESSES.value,
            _SKIP_BAD.value,
            _INTENSITIES.value,
            _NAME.value,
            splits,
            _given_plan(Path(_RAW_DIR.value)),
            as_planned=bool(_PLANS.value),
        )
        return
    raw_dir, out_dir = Path(_RAW_DIR.value), Path(_OUT_DIR.value)
    if _SYNTHETIC.value or _DATASET.value == "phantom":
        write_raw_dataset(_DATASET.value, raw_dir, _NUM_CASES.value, _SEED.value, _LESION.value)
    raw = prepare_dataset(
        _DATASET.value,
        raw_dir,
        out_dir,
        _PLAN_FOLD.value,
        _NUM_PROCESSES.value,
        _SKIP_BAD.value,
        _INTENSITIES.value,
        planning,
        _given_plan(raw_dir),
        _NAME.value,
        splits,
        as_planned=bool(_PLANS.value),
    )
    label = "SYNTHETIC " if raw.synthetic else ""
    print(f"{len(raw.cases)} {label}cases of {raw.name} are prepared in {out_dir / raw.name}")


def main(arguments: Sequence[str]) -> int:
    """This command; returns its exit status."""
    fold = functools.partial(fill, width=96, subsequent_indent="    ", break_on_hyphens=False)
    layouts = [fold(f"{name}: {known.layout}") for name, known in DATASETS.items()]
    told = indent("\n".join(layouts), "  ")
    return run_command(work, _FLAGS, f"{__doc__}\nRaw layouts (--raw_dir):\n{told}\n", arguments)


if __name__ == "__main__":
    as_process(main)
