"""A study's folder: study.json, which says what it is a study of, and the runs that have begun."""

from collections.abc import Sequence
from pathlib import Path

from covid_jax.config import Config, differences, read_config, to_dict
from covid_jax.errors import UserError, listed
from covid_jax.files import read_json, write_json
from covid_jax.studies.grid import Step

_MAY_GROW = ("study.folds", "study.runs", "study.seeds", "study.scans", "study.title", "study.note")
_ASKED = Path("configs", "asked.json")
_NETWORK = "pretrained: "
_MAY_CHANGE = (*_MAY_GROW, "study.raw.own: ", _NETWORK, "data.workers", "mesh.")
"""Settings that a study may be continued with although they changed: they change no run.

Or, of datasets and networks that are named, none that was made. Datasets are known by their
digests; of networks check_runs looks whether it is the one that a run began from.
"""


_OF_ITS_PLACE = ("study.", "data.prepared_dir: ")
"""Settings of a run that say where its study lies, and which one it is."""


def load_study(workdir: Path) -> Config:
    """The config of the study in `workdir`; settings that came later have their defaults.

    Raises:
      UserError: the folder is no study, or study.json is damaged or of a newer version.
    """
    path = workdir / "study.json"
    if not path.is_file():
        raise UserError(f"{workdir}: not the folder of a study, it has no study.json")
    return read_config(path)


def claim_study(workdir: Path, config: Config, steps: Sequence[Step] = ()) -> None:
    """Writes study.json, where what is there is no other study (check_study).

    And configs/asked.json, the names of the runs among its steps.
    """
    check_study(workdir, config)
    write_json(workdir / "study.json", to_dict(config))
    runs = [s.name for s in steps if s.training and not s.training.config.pretraining]
    write_json(workdir / _ASKED, {"runs": runs})


def runs_asked(workdir: Path) -> list[str]:
    """The names of the runs that the study was asked for at its last start; none where unknown.

    Raises:
      UserError: configs/asked.json is damaged.
    """
    runs = read_json(workdir / _ASKED).get("runs", [])
    if not (isinstance(runs, list) and all(isinstance(name, str) for name in runs)):
        raise UserError(f"{workdir / _ASKED}: damaged; the next start of the study makes it anew")
    return runs


def check_study(workdir: Path, config: Config) -> None:
    """Checks that a study that is in this folder is of this config.

    Raises:
      UserError: it differs in what its runs depend on, or cannot be read.
    """
    if (workdir / "study.json").is_file():
        theirs = to_dict(load_study(workdir))  # a setting that came later is there
        if changed := differences(to_dict(config), theirs, besides=_MAY_CHANGE):
            raise UserError(
                f"{workdir} holds a study with another config ({'; '.join(changed)}); "
                "use another --workdir, or delete it to start over"
            )


def check_runs(steps: Sequence[Step]) -> None:
    """Checks that the runs that have begun are of the configs that they would have now.

    study.json has the config file's own run alone, and not what it makes of the names of others.

    Raises:
      UserError: one differs, or cannot be read.
    """
    for step in steps:
        training = step.training
        if not (
            training and training.file.is_file() and (training.folder / "config.json").is_file()
        ):
            continue
        theirs = to_dict(read_config(training.file))
        besides: tuple[str, ...] = (*_MAY_CHANGE, *_OF_ITS_PLACE)
        of_study = any(name.startswith("pretraining-") for name in step.needs)  # which may be moved
        if not (of_study or _may_be_one(theirs["pretrained"], training.config.pretrained)):
            besides = tuple(setting for setting in besides if setting != _NETWORK)
        if changed := differences(to_dict(training.config), theirs, besides=besides):
            raise UserError(
                f"{training.folder}: was begun with another config ({'; '.join(changed)}); "
                "change the config file back, or delete the run to make it again"
            )


def _may_be_one(before: str, now: str) -> bool:
    """Whether two folders may be of one network: they are the same, or it is not there any more."""
    return not Path(before).exists() or Path(before).resolve() == Path(now).resolve()


def other_runs(workdir: Path, steps: Sequence[Step]) -> str:
    """A line on runs in the study's folder that are none of its steps; "" without such."""
    known = {step.training.folder.name for step in steps if step.training}
    folders = {path.parent.name for path in (workdir / "runs").glob("*/config.json")}
    if not (others := folders - known):
        return ""
    return (
        f"note: {workdir / 'runs'} has {listed(others)} too, of runs, folds or seeds that are not "
        "asked for now: the report has them; delete a folder to leave it out"
    )
