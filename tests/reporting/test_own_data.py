"""The report of a study on data that is not the paper's: MR of two channels, classes or regions."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from covid_jax.config import Config, StudyConfig, run_name, to_dict
from covid_jax.data.geometry import from_spacing
from covid_jax.data.plan import load_plan
from covid_jax.data.preparation import prepare_dataset
from covid_jax.data.raw import published_splits
from covid_jax.data.store import load_dataset
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.evaluation.folders import evaluate_folders, save_metrics
from covid_jax.evaluation.metrics import PAPER
from covid_jax.files import write_json
from covid_jax.reporting import figures
from covid_jax.reporting.cases import Case, label_space_of, labels_of, value_names
from covid_jax.reporting.evidence import of_the_papers_cases, read_evidence
from covid_jax.reporting.page import terminal_summary, write_report
from covid_jax.reporting.paper import NOTHING
from covid_jax.reporting.runs import Run
from tests.conftest import tiny
from tests.reporting.test_page import (
    WITH_WEBGL,
    WITHOUT_WEBGL,
    browse,
    browser,
    needs_chromium,
    redrawn,
)

__all__ = ["browse", "browser"]  # fixtures

CLASSES = {"background": 0, "oedema": 1, "necrosis": 2, "enhancing": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
KINDS = {  # of run, and by how many voxels its masks are moved
    ("scratch", "none", ""): 3,
    ("continual", "atlas", ""): 2,
    ("body", "atlas", ""): 1,
    ("frozen_encoder", "atlas", ""): 2,
    ("multi_encoder", "atlas", ""): 1,
    ("body", "atlas", "stem"): 1,
    ("body", "atlas", "decoder"): 4,
}
FROZEN = {"stem": ("encoder/stage_0",), "decoder": ("decoder",)}


def write_raw(raw, labels):
    """Six scans of a ball in a head, and two shells in it, in nnU-Net's layout."""
    z, y, x = np.meshgrid(*map(np.arange, (8, 24, 28)), indexing="ij")
    for number in range(6):
        rng = np.random.default_rng(number)
        label = np.zeros(z.shape, np.uint8)
        for value, radius in enumerate((9, 6, 3), start=1):
            label[((z - 4) * 2) ** 2 + (y - 12) ** 2 + (x - 13) ** 2 < radius**2] = value
        for channel in (0, 1):
            voxels = rng.normal(100, 5, z.shape) + (40.0 - 60.0 * channel) * label
            path = raw / "imagesTr" / f"brain_{number}_{channel:04}.nii.gz"
            write_volume(path, from_spacing(voxels.astype(np.float32), (3, 1.5, 1.5)))
        write_volume(
            raw / "labelsTr" / f"brain_{number}.nii.gz", from_spacing(label, (3, 1.5, 1.5))
        )
    description = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": labels,
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    if labels is REGIONS:
        description["regions_class_order"] = [1, 2, 3]
    write_json(raw / "dataset.json", description)


def make_study(folder, labels):
    """A study of seven kinds of run in two folds, whose masks are references that were moved."""
    write_raw(folder / "raw", labels)
    study = folder / "study"
    prepare_dataset("nnunet", folder / "raw", study / "prepared", called="brain")
    plan = load_plan(study / "prepared" / "plan.json")
    data = load_dataset(study / "prepared", "brain", plan.hash)
    space, channels = data.label_space, data.label_space.heads
    base = tiny()
    base = dataclasses.replace(
        base,
        label_space=space,
        model=dataclasses.replace(base.model, in_channels=2, num_classes=channels),
        data=dataclasses.replace(base.data, datasets=("brain",)),
        study=StudyConfig(folds=(0, 1), runs=("scratch",)),
    )
    for (strategy, source, variant), moved in KINDS.items():
        for fold in (0, 1):
            config = dataclasses.replace(
                base,
                strategy=strategy,
                source=source,
                variant=variant,
                fold=fold,
                frozen=FROZEN.get(variant, ()),
            )
            run = study / "runs" / run_name(config)
            for case in data.split(fold).test:
                mask = read_volume(data.reference(case))
                mask = dataclasses.replace(mask, voxels=np.roll(mask.voxels, moved, 2))
                write_volume(run / "predictions" / f"{case}.nii.gz", mask)
            metrics = evaluate_folders(
                run / "predictions", data.references, space.scored, known=(0, *space.values)
            )
            save_metrics(run / "metrics.json", metrics)
            write_json(run / "config.json", to_dict(config))
            line = {"step": 10, "epoch": 0, "loss": 0.5, "seconds": 1.0, "validation_dice": 0.4}
            (run / "log.jsonl").write_text(json.dumps(line) + "\n")
    write_json(study / "study.json", to_dict(base))
    return study


@pytest.fixture(scope="module", params=[CLASSES, REGIONS], ids=["classes", "regions"])
def reported(tmp_path_factory, request):
    """The folder of a study with its report, and the figures of masks in it."""
    folder = make_study(tmp_path_factory.mktemp("own"), request.param)
    drawn, overlays = [], figures.overlays
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            figures, "overlays", lambda *parts: drawn.append(overlays(*parts)) or drawn[-1]
        )
        write_report(folder)
    return folder, drawn


@pytest.fixture
def study(reported):
    return reported[0]


def test_nothing_of_the_paper_appears(study):
    assert read_evidence(study).paper == NOTHING
    page = (study / "report" / "index.html").read_text()
    words = re.sub(r'src="data:[^"]*"', "", page)
    for word in ("paper", "COVID", "Wang", "Table I", "multi_lesion", "missing</span>"):
        assert word not in words, word
    assert "<title>Study on brain</title>" in page
    assert "paper" not in terminal_summary(study)
    for path in (study / "report").glob("table_*"):
        assert "paper" not in path.read_text()


def test_the_viewer_has_every_channel_and_every_class_by_name_and_colour(study):
    page = (study / "report" / "index.html").read_text()
    classes = json.loads(re.search(r"const CLASSES = (.*?); //", page)[1])
    names = list(labels_of(read_evidence(study).runs[0].config.label_space))
    assert [name for name, _ in classes.values()] == names
    assert len({colour for _, colour in classes.values()}) == 3
    script = (study / "report" / "viewer" / "case_0.js").read_text()
    content = json.loads(re.fullmatch(r'showCase\(".*?", (.*)\);\n', script)[1])
    assert list(content["scans"]) == ["T1", "FLAIR"]
    assert len(content["masks"]) == len(KINDS)


@pytest.fixture
def page_file(study):
    return study / "report" / "index.html"


@needs_chromium
@pytest.mark.parametrize("flags", [WITH_WEBGL, WITHOUT_WEBGL], ids=["webgl", "no webgl"])
def test_the_viewer_draws_each_channel_and_the_reference_by_itself(browse, flags):
    page, wrong = browse(400, flags)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.locator("#outline").is_hidden()
    assert len(page.locator("#legend li").all()) == 3
    viewer, seen = page.locator("#viewer"), []
    for what, name in (("channel", "T1"), ("channel", "FLAIR"), ("run", "reference")):
        with redrawn(page):
            page.select_option(f"#{what}", label=name)
        seen.append(viewer.screenshot())
    assert len(set(seen)) == 3
    assert [line for line in wrong if "WebGL" not in line] == []


def test_every_table_has_every_kind_of_run_that_ran(study):
    results = json.loads((study / "report" / "results.json").read_text())
    for number in ("1", "2", "3", "4", "5"):
        rows = results[f"table_{number}"]
        assert {(r["strategy"], r["pretrained"], r["variant"]) for r in rows} == set(KINDS)


def test_regions_are_called_regions(study):
    page = (study / "report" / "index.html").read_text()
    regions = bool(read_evidence(study).runs[0].config.label_space.regions)
    assert ("DSC of each region" in page, "mean over 3 regions" in page) == (regions, regions)
    assert ("DSC of each label" in page, "mean over 3 labels" in page) == (not regions, not regions)
    assert "volume_difference_ml" not in page


def test_every_network_is_drawn(study):
    drawn = (study / "report" / "figure_5.svg").read_text()
    for title in ("scratch", "continual", "body stem", "body decoder", "multi_encoder"):
        assert f"<!-- {title} -->" in drawn


def test_the_figure_of_masks_has_every_strategy_every_channel_and_every_class(reported):
    study, (figure,) = reported
    columns = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert columns[:3] == ["T1", "FLAIR", "reference"]
    assert {column.split(",")[0] for column in columns[3:]} == {kind for kind, *_ in KINDS}
    (legend,) = figure.legends
    names = list(labels_of(read_evidence(study).runs[0].config.label_space))
    assert [text.get_text() for text in legend.get_texts()] == names
    page = (study / "report" / "index.html").read_text()
    assert "One row of each strategy (5 of 7 rows)" in page  # and what is left out is told


def contours(figure, column):
    (axes,) = (axes for axes in figure.axes if axes.get_title() == column)
    return len(axes.collections)


def test_of_regions_that_lie_in_each_other_each_has_its_contour():
    labels = {"whole": (1, 2), "core": (2,)}
    mask = np.zeros((3, 8, 8), np.uint8)
    mask[1, 1:7, 1:7], mask[1, 3:5, 3:5] = 1, 2
    scan, mask = (from_spacing(v, (1, 1, 1)) for v in (np.zeros(mask.shape), mask))
    shown = {"a": figures.Overlay(Case({"T1": scan}, mask), {"scratch": mask})}
    figure = figures.overlays(shown, ["scratch"], labels, "a note")
    assert [contours(figure, column) for column in ("T1", "reference", "scratch")] == [0, 2, 2]
    one = figures.overlays(shown, ["scratch"], {"lesion": (1, 2)}, "a note")
    assert [contours(one, column) for column in ("T1", "scratch")] == [1, 2]
    assert [text.get_text() for text in one.legends[0].get_texts()] == [
        "lesion, prediction",
        "lesion, reference",
    ]


def test_a_value_of_a_mask_is_called_after_the_region_that_writes_it():
    space = dataclasses.replace(
        Config().label_space,
        names=("core", "whole"),
        regions=((2, 3), (1, 2, 3)),
        regions_class_order=(3, 1),
    )
    assert value_names(space) == {1: "whole", 2: "label 2", 3: "core"}
    assert value_names(label_space_of(tiny())) == {1: "lesion"}


CASES = published_splits("covid19")


def scored_on(fold=0, cases=None, datasets=("covid19",)):
    config = Config(fold=fold)
    config.data.datasets = datasets
    scored = dict.fromkeys(PAPER, 0.5)
    names = CASES[min(fold, 4)].test if cases is None else cases
    return [Run("a", config, dict.fromkeys(names, scored), [], 1.0, 0.0)], config


@pytest.mark.parametrize(
    ("runs", "synthetic", "expected"),
    [
        (scored_on(), (), True),
        (scored_on(), ("msd_lung",), True),
        (scored_on(), ("covid19",), False),  # phantoms under the names of the cases
        (scored_on(cases=CASES[0].test[:3]), (), True),
        (scored_on(cases=CASES[0].train), (), False),  # other folds than the paper's
        (scored_on(cases=("mine",)), (), False),
        (scored_on(fold=5), (), False),
        (scored_on(datasets=("brain",)), (), False),
        (scored_on(datasets=("covid19", "brain")), (), False),
    ],
)
def test_a_study_is_of_the_papers_data_by_its_cases_fold_by_fold(runs, synthetic, expected):
    assert of_the_papers_cases(runs[1], runs[0], synthetic) == expected


def test_a_study_of_one_run_is_reported(study, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(study, alone, ignore=lambda _, names: [n for n in names if "atlas" in n])
    shutil.rmtree(alone / "runs" / "scratch-none-fold1")
    page = write_report(alone).read_text()
    assert "scratch alone is there" in page
    assert '<figure class="forest">' not in page
    assert "of each fold" not in page
