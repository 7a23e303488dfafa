"""All that a report is made from: runs, what of them is synthetic, and what is the paper's."""

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from covid_jax.config import Config
from covid_jax.data.raw import published_splits
from covid_jax.errors import UserError, listed
from covid_jax.files import read_json
from covid_jax.reporting.paper import NOTHING, Paper, whole_paper
from covid_jax.reporting.runs import Run, read_runs
from covid_jax.studies.folder import load_study, runs_asked
from covid_jax.training.provenance import load_provenance


@dataclass(frozen=True)
class Evidence:
    """What there is of a study.

    Attributes:
      folder: of the study.
      runs: those that are finished.
      synthetic: the names of its datasets that are synthetic, and of those its networks started
        from.
      paper: what of the paper stands beside it.
      problems: lines on what is missing or damaged; whoever reads on adds to them.
      lacking: a line on the runs that were asked for and are not finished; empty without such.
    """

    folder: Path
    config: Config
    runs: tuple[Run, ...]
    synthetic: frozenset[str]
    paper: Paper
    problems: list[str]
    lacking: str = ""

    @property
    def note(self) -> str:
        """The study's note, and which of its datasets are synthetic, whatever the note says."""
        said = f"SYNTHETIC data: {', '.join(sorted(self.synthetic))}" if self.synthetic else ""
        return " | ".join(filter(None, [self.config.study.note, said]))

    @property
    def title(self) -> str:
        """The study's, or what is trained on."""
        return self.config.study.title or f"Study on {', '.join(self.config.data.datasets)}"


def read_evidence(study: Path) -> Evidence:
    """Reads the folder of a study. Raises a UserError where it is none."""
    config = load_study(study)
    runs, problems = read_runs(study)
    synthetic = synthetic_data(study, problems)
    paper = whole_paper() if of_the_papers_cases(config, runs, synthetic) else NOTHING
    lacking = ""
    with problems_told(problems):
        lacking = lacking_runs(study, runs)
    return Evidence(study, config, tuple(runs), synthetic, paper, problems, lacking)


def lacking_runs(study: Path, runs: Sequence[Run]) -> str:
    """How many of the runs that a study was asked for there are, and which it lacks."""
    asked = runs_asked(study)
    if not (missing := {*asked} - {run.name for run in runs}):
        return ""
    there = len(asked) - len(missing)
    return f"{len(asked)} runs were asked for, {there} are there (not {listed(missing)})"


def of_the_papers_cases(config: Config, runs: Sequence[Run], synthetic: Collection[str]) -> bool:
    """Whether runs were tested on the paper's cases, fold by fold, so that its numbers compare.

    They may be reduced: then they are the same patients, and the study's note has to say it. Cases
    that were made under their names are not.
    """
    folds = published_splits("covid19")
    return (
        config.data.datasets == ("covid19",)
        and "covid19" not in synthetic
        and all(
            run.fold < len(folds) and run.cases.keys() <= set(folds[run.fold].test) for run in runs
        )
    )


def synthetic_data(study: Path, problems: list[str]) -> frozenset[str]:
    """The datasets of a study that are synthetic; records that cannot be read join the problems.

    Both the prepared data and the runs know that, so it is said although one of them is gone.
    """
    synthetic: set[str] = set()
    for path in sorted(study.glob("prepared/*/dataset.json")):
        with problems_told(problems):
            synthetic |= {path.parent.name} if read_json(path).get("synthetic") else set()
    for run in sorted(study.glob("runs/*")):
        with problems_told(problems):
            origin = load_provenance(run)
            while origin:  # of the run, of what it started from, and so on
                synthetic |= set(origin.get("synthetic", ()))
                origin = origin.get("pretrained", {})
    return frozenset(synthetic)


@contextlib.contextmanager
def problems_told(problems: list[str]) -> Iterator[None]:
    """What cannot be read joins the problems."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))
