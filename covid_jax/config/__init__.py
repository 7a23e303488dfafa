"""Every setting of a run; what has to hold of them; their reading and writing.

A config file (see configs/) has `get_config(name)` that returns a `Config`. Any field can be
overridden from the command line: `--config.optimizer.learning_rate=0.02`.
"""

from covid_jax.config.command_line import (
    check_config_arguments,
    config_from_flag,
    define_config_flag,
    run_from_flag,
)
from covid_jax.config.files import (
    CONFIGS,
    differences,
    from_dict,
    load_config_file,
    read_config,
    to_dict,
)
from covid_jax.config.rules import (
    check_prediction,
    check_types,
    validate,
)
from covid_jax.config.settings import (
    ANISOTROPY,
    LARGEST,
    LAYOUTS,
    NAME,
    PAPER_DATASETS,
    PAPER_RUNS,
    SOURCES,
    STRATEGY_NAMES,
    Config,
    DataConfig,
    InferenceConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    RawDirs,
    StudyConfig,
    UNetConfig,
    as_tuple,
    layout_of,
    left_to_plan,
    named_run,
    planned_fields,
    run_name,
)

__all__ = [
    "ANISOTROPY",
    "CONFIGS",
    "LARGEST",
    "LAYOUTS",
    "NAME",
    "PAPER_DATASETS",
    "PAPER_RUNS",
    "SOURCES",
    "STRATEGY_NAMES",
    "Config",
    "DataConfig",
    "InferenceConfig",
    "LossConfig",
    "MeshConfig",
    "OptimizerConfig",
    "RawDirs",
    "StudyConfig",
    "UNetConfig",
    "as_tuple",
    "check_config_arguments",
    "check_prediction",
    "check_types",
    "config_from_flag",
    "define_config_flag",
    "differences",
    "from_dict",
    "layout_of",
    "left_to_plan",
    "load_config_file",
    "named_run",
    "planned_fields",
    "read_config",
    "run_from_flag",
    "run_name",
    "to_dict",
    "validate",
]
