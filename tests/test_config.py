"""Settings: named runs, validation, and the way to disk and back."""

import dataclasses
import operator
import re
import shutil

import jax
import pytest
from absl import flags

from covid_jax.command import run_command
from covid_jax.config import (
    CONFIGS,
    Config,
    DataConfig,
    InferenceConfig,
    OptimizerConfig,
    StudyConfig,
    UNetConfig,
    check_config_arguments,
    config_from_flag,
    define_config_flag,
    differences,
    from_dict,
    left_to_plan,
    load_config_file,
    named_run,
    run_from_flag,
    run_name,
    to_dict,
    validate,
)
from covid_jax.errors import UserError
from covid_jax.files import write_json
from covid_jax.training.cost import abstract_params
from covid_jax.transfer.strategies import frozen_masks
from tests.conftest import ROOT, tiny


def test_a_config_survives_the_way_to_json_and_back():
    config = named_run(Config(seed=3), "body-msd")
    assert from_dict(to_dict(config)) == config


def test_a_named_run_sets_strategy_and_source():
    config = named_run(Config(), "frozen_encoder-nsclc")
    assert (config.strategy, config.source) == ("frozen_encoder", "nsclc")


def test_a_strategy_without_source_starts_from_multi_lesion():
    assert named_run(Config(), "continual").source == "multi_lesion"


def test_pretraining_trains_on_the_datasets_of_its_source():
    config = named_run(Config(), "pretraining-multi_lesion")
    assert config.pretraining
    assert config.data.datasets == ("msd_lung", "structseg_gtv", "nsclc_effusion")


def test_a_source_of_ones_own_is_a_dataset_or_what_was_imported():
    assert named_run(Config(), "pretraining-zap").data.datasets == ("zap",)
    config = named_run(Config(), "frozen_encoder-Task-001.x")
    assert config.source == "Task-001.x"
    validate(config)
    with pytest.raises(UserError, match=r"config\.source='\.\./x': must be a name"):
        validate(named_run(Config(), "body-../x"))


def test_a_runs_own_config_is_a_config(tmp_path):
    config = named_run(Config(seed=3), "body-msd")
    write_json(tmp_path / "config.json", to_dict(config))
    assert load_config_file(str(tmp_path / "config.json")) == config


def test_what_is_left_to_the_plan_is_not_looked_at_before_it_is_known():
    config = load_config_file(f"{ROOT}/configs/nnunet.py:body-mine")
    validate(config)
    assert {"model.strides", "data.patch_size", "data.batch_size"} <= {*left_to_plan(config)}
    assert left_to_plan(Config()) == ()
    with pytest.raises(UserError, match=r"config\.epochs"):
        validate(dataclasses.replace(config, epochs=0))


@pytest.mark.parametrize("name", ["zap", "zap-msd", "pretraining-none"])
def test_an_unknown_run_name_is_refused(name):
    with pytest.raises(UserError, match=name):
        named_run(Config(), name)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (Config(epochs=0), "config.epochs"),
        (Config(seed=-1), "config.seed"),
        (Config(strategy="zap"), "config.strategy"),
        (Config(dtype="float16"), "config.dtype"),
        (Config(variant="a/b"), "config.variant"),
        (Config(epochs="ten"), "config.epochs"),
        (Config(data=DataConfig(batch_size=-1)), "config.data.batch_size"),
        (Config(data=DataConfig(datasets=("a", "a"))), "config.data.datasets"),
        (Config(data=DataConfig(patch_size=(0, 64, 64))), "config.data.patch_size"),
        (Config(data=DataConfig(patch_size=(64, 64))), "config.data.patch_size"),
        (Config(model=UNetConfig(strides=((1, 1, 1),))), "config.model.strides"),
        (Config(model=UNetConfig(kernel_sizes=((2, 3, 3),) * 6)), "config.model.kernel_sizes"),
        (Config(model=UNetConfig(kernel_sizes=((-1, 3, 3),) * 6)), "config.model.kernel_sizes"),
        (Config(model=UNetConfig(strides=((1, 1, 1),) + ((0, 2, 2),) * 5)), "config.model.strides"),
        (Config(model=UNetConfig(strides=((1, 2, 2),) * 6)), "config.model.strides"),
        (Config(model=UNetConfig(in_channels=0)), "config.model.in_channels"),
        (Config(model=UNetConfig(num_classes=1)), "config.model.num_classes"),
        (Config(model=UNetConfig(num_classes=255)), "config.model.num_classes"),
        (Config(model=UNetConfig(n_blocks_per_stage=(1,) * 6)), "config.model.n_conv_per_stage"),
        (Config(model=UNetConfig(n_conv_per_stage=(1,))), "config.model.n_conv_per_stage"),
        (
            Config(model=UNetConfig(n_conv_per_stage=(), n_blocks_per_stage=(1, 1))),
            "config.model.n_blocks_per_stage",
        ),
        (
            Config(model=UNetConfig(n_conv_per_stage=(), n_blocks_per_stage=(1, 2, 0, 1, 1, 1))),
            "config.model.n_blocks_per_stage",
        ),
        (Config(model=UNetConfig(features_per_stage=(8,))), "config.model.features_per_stage"),
        (Config(optimizer=OptimizerConfig(momentum=1.0)), "config.optimizer.momentum"),
        (Config(optimizer=OptimizerConfig(poly_power=-1.0)), "config.optimizer.poly_power"),
        (Config(model=UNetConfig(norm_epsilon=0.0)), "config.model.norm_epsilon"),
        (Config(model=UNetConfig(negative_slope=-0.1)), "config.model.negative_slope"),
        (Config(inference=InferenceConfig(mirror_axes=(0, 3))), "config.inference.mirror_axes"),
        (Config(inference=InferenceConfig(mirror_axes=(1, 1))), "config.inference.mirror_axes"),
        (Config(inference=InferenceConfig(mirror=True, mirror_axes=())), "inference.mirror=True"),
        (Config(inference=InferenceConfig(sums="half")), "config.inference.sums"),
    ],
)
def test_a_value_that_cannot_work_is_named(config, field):
    with pytest.raises(UserError, match=field):
        validate(config)


def test_differences_name_every_leaf_that_changed():
    ours = to_dict(Config(seed=1, data=DataConfig(batch_size=4)))
    assert differences(ours, to_dict(Config())) == ["data.batch_size: 4, was 2", "seed: 1, was 0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.zap=1"], "no field 'zap'"),
        (["--config.data.zap=1"], "config.data has no field 'zap'"),
        (["--config.seed.zap=1"], "config.seed has no field 'zap'"),
    ],
)
def test_an_override_of_no_field_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        check_config_arguments([f"--config={ROOT}/configs/tiny.py", *arguments])


def test_a_config_file_that_is_not_there_is_one_line():
    for name in ("nowhere.py", "nowhere", "nowhere:body"):
        with pytest.raises(UserError, match=rf"{name}: no such file; by name there are .* tiny$"):
            check_config_arguments([f"--config={name}"])


def test_a_colon_may_be_part_of_a_files_name(tmp_path):
    folder = tmp_path / "2024-05-01T12:30"
    folder.mkdir()
    shutil.copy(ROOT / "configs" / "tiny.py", folder / "mine.py")
    write_json(folder / "run.json", to_dict(tiny()))
    assert load_config_file(f"{folder}/mine.py") == tiny()
    assert load_config_file(f"{folder}/mine.py:body-msd") == tiny("body-msd")
    assert load_config_file(f"{folder}/run.json").strategy == "scratch"


AT_LINE_4 = "def get_config(name='scratch'):\n    config = Config()\n    {}\n    return config\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            AT_LINE_4.format("config.epoch = 2"),
            "line 4: Config has no field 'epoch'; it has seed, ",
        ),
        (
            AT_LINE_4.format("config.study.raw.x = 2"),
            "line 4: RawDirs has no field 'x'; it has cov",
        ),
        (AT_LINE_4.format("config.study.x += 2"), "line 4: AttributeError: 'StudyConfig' object "),
        (AT_LINE_4.format("StudyConfig(foldz=())"), r"line 4: TypeError: .*argument 'foldz'"),
        (AT_LINE_4.format("replace(config, foldz=3)"), "line 4: TypeError: .*'foldz'"),
        (AT_LINE_4.format("config.study = ("), r"line 4: is no Python \('\(' was never closed\)"),
        (AT_LINE_4.format("open('nowhere')"), "line 4: FileNotFoundError: "),
        ("import no_such_module", "line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("\0", "is no Python"),
        ("get_config = None", r"mine\.py: has no get_config\(name\)"),
        ("def get_config(name=''): pass", r"mine\.py: get_config\(''\) returns a NoneType, and no"),
        (
            "def get_config(name): ...",
            r"line 2: get_config\(\): missing a required arg.*'name'; it",
        ),
    ],
)
def test_a_fault_of_a_config_file_is_one_line_that_names_its_place(tmp_path, content, message):
    file = tmp_path / "mine.py"
    imports = "from dataclasses import replace; from covid_jax.config import Config, StudyConfig\n"
    file.write_text(imports + content)
    with pytest.raises(UserError, match=message) as told:
        load_config_file(str(file))
    assert str(told.value).startswith(str(file))
    assert "\n" not in str(told.value)


def test_a_get_config_that_takes_no_name_is_one_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from covid_jax.config import Config\ndef get_config(): return Config()\n")
    assert load_config_file(str(file)) == Config()
    line = r"mine\.py, line 2: get_config\('body-msd'\): too many positional arguments; it is get_c"
    with pytest.raises(UserError, match=line):
        load_config_file(f"{file}:body-msd")


def test_a_fault_of_a_config_that_another_loads_is_told_of_its_own_place(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\nx.foo\n")
    load = f"from covid_jax.config import load_config_file\nload_config_file('{tmp_path}/other.py')"
    (tmp_path / "mine.py").write_text(load)
    with pytest.raises(UserError, match=r"^\S*other\.py, line 2: AttributeError: 'int' object"):
        load_config_file(f"{tmp_path}/mine.py")


def test_a_fault_of_the_program_that_a_config_file_meets_is_no_mistake_in_the_file(
    tmp_path, monkeypatch
):
    """It keeps its traceback."""
    monkeypatch.setattr("covid_jax.config.settings.SOURCES", None)
    file = tmp_path / "mine.py"
    file.write_text(
        "from covid_jax.config import Config, named_run\n"
        "def get_config(name=''): return named_run(Config(), 'pretraining-msd')\n"
    )
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'get'"):
        load_config_file(str(file))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("study.runs", "scratch", r"study\.runs='scratch': must be .*, such as \('scratch',\)$"),
        ("study.folds", 0, r"study\.folds=0: must be tuple\[int, \.\.\.\], such as \(0,\)$"),
        (
            "study.seeds",
            [0, 1],
            r"study\.seeds=\[0, 1\]: must be tuple\[int, \.\.\.\], such as \(0, 1\)$",
        ),
        (
            "study.raw.own",
            ("a", "x"),
            r"own=\('a', 'x'\): must be .*, such as \(\('a', 'x'\),\)$",
        ),
        ("data.datasets", "mine", r"data\.datasets='mine': must be .*, such as \('mine',\)$"),
        ("model", DataConfig(), r"config\.model=DataConfig\(.*\): must be UNetConfig"),
        ("study", None, "config.study=None: must be StudyConfig"),
    ],
)
def test_a_value_of_another_kind_is_named_and_one_without_its_comma_mended(
    tmp_path, command, place, value, message
):
    file = tmp_path / "mine.py"
    file.write_text(
        "from covid_jax.config import Config, DataConfig\ndef get_config(name='scratch'):\n"
        f"    config = Config()\n    config.{place} = {value!r}\n    return config\n"
    )
    finished = command("study", f"--config={file}", f"--workdir={tmp_path}/study", "--list")
    assert finished.returncode == 1
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("error: config.")
    assert re.search(message, last)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_every_config_that_comes_along_is_valid(file):
    config = load_config_file(str(file))
    validate(config)
    assert dataclasses.is_dataclass(config)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_a_copy_of_a_config_in_another_folder_is_the_same_config(file, tmp_path):
    copy = shutil.copy(file, tmp_path / "mine.py")
    assert load_config_file(str(copy)) == load_config_file(file.stem)
    assert load_config_file(f"{copy}:body") == load_config_file(f"{file.stem}:body")


def test_the_config_that_the_readme_shows_is_one(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (shown,) = (block for block in blocks if "def get_config" in block)
    assert len(shown.split("\n\n\n")[1].splitlines()) < 10
    (tmp_path / "mine.py").write_text(shown)
    config = load_config_file(f"{tmp_path / 'mine.py'}:body-msd")
    validate(config)
    assert (config.strategy, config.epochs, config.data.batch_size) == ("body", 100, 4)


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("data.datasets=a,b", "data.datasets", ("a", "b")),
        ("data.datasets=('a','b')", "data.datasets", ("a", "b")),
        ("frozen=encoder/stage_0,heads", "frozen", ("encoder/stage_0", "heads")),
        ("study.runs=scratch,body", "study.runs", ("scratch", "body")),
        ("study.scans=a.nii,b.nii", "study.scans", ("a.nii", "b.nii")),
        ("study.folds=0,1", "study.folds", (0, 1)),
    ],
)
def test_a_flag_of_several_values_is_split_at_its_commas(flag, field, value):
    own = flags.FlagValues()
    define_config_flag(own)
    seen = []

    def work():
        seen.append(operator.attrgetter(field)(config_from_flag(own)))
        seen.append(operator.attrgetter(field)(run_from_flag(own, "body")))

    assert run_command(work, own, "", ["--config=tiny", f"--config.{flag}"]) == 0
    assert seen == [value, value]


@pytest.mark.parametrize("flag", ["data.datasets=1", "frozen=(1,'a')", "study.scans=1.5"])
def test_a_name_that_is_a_number_is_one_line(flag, refuses):
    line = refuses("train", "--config=tiny", f"--config.{flag}", "--explain")
    assert line.startswith(f"error: config.{flag.partition('=')[0]}=(1")
    assert "must be tuple[str, ...]" in line


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda f: f.stem)
def test_every_run_of_a_study_is_a_config_of_its_own(file):
    runs = load_config_file(str(file)).study.runs
    configs = [load_config_file(f"{file}:{name}") for name in runs]
    for config in configs:
        validate(config)
    assert len({run_name(config) for config in configs}) == len(runs)


def test_what_the_ablation_freezes_is_there_to_be_frozen():
    for name in load_config_file(f"{ROOT}/configs/freezing.py").study.runs:
        config = load_config_file(f"{ROOT}/configs/freezing.py:{name}")
        masks = frozen_masks(config, abstract_params(config))  # refuses patterns of no parameter
        held = {epoch: sum(jax.tree.leaves(mask)) for epoch, mask in masks.items()}
        assert (held[0] > 0) == bool(config.variant)
        if config.frozen_schedule:
            assert list(held.values()) == sorted(held.values(), reverse=True)
            assert held[max(held)] == 0


@pytest.mark.parametrize("field", ["seed", "study.seeds"])
def test_seeds_that_would_draw_the_same_are_refused(field):
    config = Config(seed=2**32)
    if field != "seed":
        config = Config(study=StudyConfig(seeds=(1, 2**32 + 1)))
    with pytest.raises(UserError, match=rf"config\.{field}=.*: a seed is below 2\*\*32"):
        validate(config)


def test_a_config_that_is_given_twice_is_refused():
    file = f"--config={ROOT}/configs/tiny.py"
    with pytest.raises(UserError, match="--config is given twice"):
        check_config_arguments([file, "--config.epochs=3", file])
    check_config_arguments([file, "--config.frozen=encoder", "--config.frozen=!encoder/stage_0"])
