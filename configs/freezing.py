"""An ablation of freezing: how much of a pre-trained network is held, and when it is let go.

    python -m covid_jax.study --config=configs/freezing.py --workdir=runs/freezing

Every run starts from the same pre-training on multi_lesion and is named after what it freezes, for
example body-multi_lesion+stage_0; `--config.study.runs` chooses among them. On the 20 real cases,
reduced, as configs/quickstart.py.
"""

import dataclasses

from covid_jax.config import Config, load_config_file, named_run
from covid_jax.errors import UserError

FROZEN: dict[str, tuple[str, ...]] = {
    "stage_0": ("encoder/stage_0",),
    "stages_0-1": ("encoder/stage_[0-1]",),
    "stages_0-2": ("encoder/stage_[0-2]",),
    "encoder": ("encoder",),
    "all_but_norms": ("encoder", "!encoder/**/norm/*"),
    "decoder": ("decoder",),
}
"""What is frozen from the first step to the last, by the name of the variant."""

SCHEDULES: dict[str, tuple[tuple[int, str], ...]] = {
    "thaw_at_once": ((0, "encoder"), (3, "!encoder")),
    "thaw_from_below": (
        (0, "encoder"),
        (1, "!encoder/stage_0"),
        (2, "!encoder/stage_1"),
        (3, "!encoder/stage_2"),
        (4, "!encoder"),
    ),
    "thaw_from_above": (
        (0, "encoder"),
        (1, "!encoder/stage_3"),
        (2, "!encoder/stage_2"),
        (3, "!encoder/stage_1"),
        (4, "!encoder"),
    ),
}
"""What is frozen at first and let go at an epoch, by the name of the variant."""


def get_config(name: str = "scratch") -> Config:
    """The run called `name`, as for the other configs, with a variant after a plus sign."""
    quickstart = load_config_file("quickstart")
    variants = (f"body-multi_lesion+{variant}" for variant in (*FROZEN, *SCHEDULES))
    config = dataclasses.replace(
        quickstart,
        epochs=6,
        study=dataclasses.replace(
            quickstart.study,
            title="What to freeze, and until when",
            runs=("scratch", "body-multi_lesion", *variants),
            scans=(),
        ),
    )
    run, _, variant = name.partition("+")
    if variant and variant not in FROZEN | SCHEDULES:
        known = ", ".join(FROZEN | SCHEDULES)
        raise UserError(f"config argument {name!r}: no variant {variant!r}; there are {known}")
    return dataclasses.replace(
        named_run(config, run),
        variant=variant,
        frozen=FROZEN.get(variant, ()),
        frozen_schedule=SCHEDULES.get(variant, ()),
    )
