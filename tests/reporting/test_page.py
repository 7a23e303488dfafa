"""The report's page in a real browser, opened from disk."""

import contextlib
import functools
import html
import io
import json
import re
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from covid_jax.config import load_config_file, run_name, to_dict
from covid_jax.data.datasets import read_dataset
from covid_jax.data.geometry import from_spacing
from covid_jax.data.plan import load_plan
from covid_jax.data.preparation import prepare_dataset
from covid_jax.data.preprocess import read_scan
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.evaluation.folders import evaluate_folders, save_metrics
from covid_jax.files import write_json
from covid_jax.reporting.cases import stored_cases
from covid_jax.reporting.page import terminal_summary, write_report
from covid_jax.studies.folder import load_study
from tests.conftest import ROOT, installed, tiny
from tests.networks import assert_near

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>alert(1)</script>"
WITH_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WITHOUT_WEBGL = ("--disable-gpu", "--disable-3d-apis")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium")


NAMES = ("radiopaedia_29_86491_1", "radiopaedia_40_86625_0")
TRAINING = "coronacases_008"  # by which the plan is made


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, covid19_raw):
    """A study of two runs whose masks are the real references, moved by a voxel in one.

    Its raw data is gone.
    """
    study, raw = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("raw")
    for case in read_dataset("covid19", covid19_raw).cases:
        for path in (*case.images, case.label):
            if case.name in (*NAMES, TRAINING):
                (raw / path.parent.name).mkdir(exist_ok=True)
                (raw / path.parent.name / path.name).symlink_to(path)
    prepare_dataset("covid19", raw, study / "prepared")
    shutil.rmtree(raw)
    references = study / "prepared" / "covid19" / "references"
    for run in ("scratch", "body-msd"):
        config = load_config_file(f"{ROOT}/configs/covid19_reduced.py:{run}")
        config.model = tiny().model  # drawn in less time
        folder = study / "runs" / run_name(config)
        for name in NAMES:
            label = read_volume(references / f"{name}.nii.gz")
            if run == "scratch":
                label.voxels[:] = label.voxels.take(range(-1, label.voxels.shape[1] - 1), 1)
            write_volume(folder / "predictions" / f"{name}.nii.gz", label)
        save_metrics(folder / "metrics.json", evaluate_folders(folder / "predictions", references))
        (folder / "config.json").write_text(json.dumps(to_dict(config)))
        line = {"step": 50, "epoch": 0, "loss": 0.5, "seconds": 1.0, "validation_dice": 0.4}
        (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    config = load_config_file(f"{ROOT}/configs/covid19_reduced.py")
    config.study.note = f"a test {HOSTILE}"
    (study / "study.json").write_text(json.dumps(to_dict(config)))
    asked = [f"{name}-fold{fold}" for fold in range(5) for name in ("scratch-none", "body-msd")]
    write_json(study / "configs" / "asked.json", {"runs": asked})
    (study / "runs" / HOSTILE.replace("/", "")).mkdir()
    return write_report(study)


@pytest.fixture(scope="module")
def browser():
    """Returns the Chromium of these flags, which starts once."""
    playwright = installed("playwright.sync_api", extra="dev")
    with playwright.sync_playwright() as running, contextlib.ExitStack() as started:

        @functools.cache
        def browser(flags):
            return started.enter_context(
                running.chromium.launch(
                    executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic", *flags]
                )
            )

        yield browser


def opened(browser, page_file, width):
    """The page when the viewer has drawn, and the list of what went wrong."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    wrong = []
    page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: r.url.startswith("http") and wrong.append(r.url))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.goto(f"file://{page_file}")
    page.wait_for_selector("#viewer[data-drawn]", timeout=60_000)
    return page, wrong


@pytest.fixture(scope="module")
def untouched(browser, page_file):
    """The page as it opens, and what went wrong, for tests that do nothing to it."""
    return opened(browser(WITH_WEBGL), page_file, 1200)


@pytest.fixture
def browse(browser, page_file):
    """Opens a page for this test alone; returns it, and the list of what went wrong."""
    with contextlib.ExitStack() as pages:

        def browse(width, flags):
            page, wrong = opened(browser(flags), page_file, width)
            pages.enter_context(page)
            return page, wrong

        yield browse


@contextlib.contextmanager
def redrawn(page):
    """Waits until the viewer has drawn what is changed within."""
    page.evaluate("delete document.getElementById('viewer').dataset.drawn")
    yield
    page.wait_for_selector("#viewer[data-drawn]")


def coloured(page):
    """How many pixels of the viewer are green, and how many red."""
    picture = imread(io.BytesIO(page.locator("#viewer").screenshot())) * 255
    red, green, blue = np.moveaxis(picture[..., :3], -1, 0)
    return np.count_nonzero(green > blue + 40), np.count_nonzero(red > blue + 40)


@needs_chromium
def test_the_page_opens_from_disk_without_network_or_error(untouched):
    page, wrong = untouched
    assert page.title() == "Transfer of lung lesions to COVID-19 CT, reduced"
    assert page.locator("select#run option").all_inner_texts() == [
        "scratch, fold 0",
        "body, msd, fold 0",
    ]
    assert wrong == []


@needs_chromium
def test_names_stay_text(untouched):
    page, wrong = untouched
    assert HOSTILE in page.locator("p.note").inner_text()
    assert HOSTILE.replace("/", "") in page.locator(".problems").inner_text()
    assert wrong == []


@needs_chromium
@pytest.mark.parametrize("flags", [WITH_WEBGL, WITHOUT_WEBGL], ids=["webgl", "no webgl"])
def test_the_viewer_shows_reference_and_prediction_of_the_chosen_run(browse, flags):
    page, wrong = browse(1200, flags)
    with redrawn(page):
        page.select_option("#case", label="radiopaedia_40_86625_0")
    with redrawn(page):
        page.select_option("#run", label="body, msd, fold 0")
    assert page.locator("#viewer").get_attribute("data-drawn") == "body, msd, fold 0"
    green, red = coloured(page)
    assert green > 50
    assert red > 50
    with redrawn(page):
        page.uncheck("#outline")
    assert coloured(page)[0] < green / 2
    assert [line for line in wrong if "WebGL" not in line] == []


@needs_chromium
def test_the_viewer_scrolls_through_the_slices(browse):
    page, _ = browse(1200, WITH_WEBGL)
    viewer = page.locator("#viewer")
    viewer.scroll_into_view_if_needed()
    before = viewer.screenshot()
    box = viewer.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 6, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, 300)
    begun = time.monotonic()
    while viewer.screenshot() == before:
        assert time.monotonic() < begun + 10


@needs_chromium
def test_tables_are_readable_on_a_phone(browse):
    page, _ = browse(400, WITH_WEBGL)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for part in page.locator("figure.picture img").all():
        assert bounds(part)["width"] <= 400  # whole, and to be opened in full
    for part in page.locator(".forest li > *:visible").all():
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
    for cell in page.locator("tbody tr:first-child td:first-child").all():
        assert cell.bounding_box()["height"] < 70  # a name is not broken into letters


@needs_chromium
@pytest.mark.parametrize("width", [400, 1200])
def test_the_figure_on_top_has_its_marks_where_its_numbers_are(browse, width):
    page, _ = browse(width, WITHOUT_WEBGL)
    zeros = [box["x"] for box in map(bounds, page.locator(".forest .zero").all())]
    assert max(zeros) - min(zeros) < 0.5  # one line through all rows
    row = page.locator(".forest li:not(.axis)").first
    middle = bounds(row.locator(".track .mark"))
    interval = bounds(row.locator(".interval"))
    assert interval["x"] <= middle["x"] + middle["width"] / 2 <= interval["x"] + interval["width"]
    assert row.locator(".track .hollow").count() == 1  # the paper's, of the paper's cases
    assert bounds(page.locator(".forest"))["y"] < bounds(page.locator("table").first)["y"]
    assert "body from msd" in page.locator(".answer").inner_text()


def bounds(part):
    return part.bounding_box()


@needs_chromium
def test_rows_by_fold_are_folded_away(browse):
    page, _ = browse(1200, WITHOUT_WEBGL)
    assert page.get_by_text("DSC, fold 3").is_hidden()
    page.get_by_text("DSC of each fold").click()
    assert page.get_by_text("DSC, fold 3").is_visible()


@pytest.fixture
def study(page_file, tmp_path):
    """A copy of the study, to be damaged."""
    shutil.copytree(page_file.parent.parent, tmp_path / "study")
    return tmp_path / "study"


def problems_of(study):
    """What the page says is not in it."""
    page = write_report(study).read_text()
    assert 'href="../runs/body-msd-fold0/metrics.json"' in page  # the tables are there all the same
    said = re.search(r'<div class="problems">.*?</div>', page, re.DOTALL)[0]
    return [html.unescape(line) for line in re.findall("<li>(.*?)</li>", said)]


def shown_in(study):
    """The cases that the viewer has."""
    page = (study / "report" / "index.html").read_text()
    return [name for name in NAMES if f">{name}</option>" in page]


def test_a_scan_is_shown_as_it_was_prepared_on_its_own_grid(page_file, covid19_raw):
    study = page_file.parent.parent
    config, problems = load_study(study), []
    read = stored_cases(study, config, NAMES, problems)[NAMES[0]]
    case = read()
    scan, reference = case.scan, case.reference
    assert list(case.channels) == ["CT"]
    (raw,) = (c for c in read_dataset("covid19", covid19_raw).cases if c.name == NAMES[0])
    original, plan = read_scan(raw.images[0]), load_plan(study / "prepared" / "plan.json")
    assert problems == []
    assert scan.voxels.shape == original.voxels.shape == reference.voxels.shape
    assert_near(scan.affine, original.affine, 1e-7)
    clipped = np.clip(original.voxels, plan.normalization[0].lower, plan.normalization[0].upper)
    assert np.abs(scan.voxels - clipped).mean() < 0.1 * plan.normalization[0].std


@pytest.mark.parametrize("way", ["cut", "other grid", "gone"])
def test_a_mask_that_cannot_be_shown_is_named_and_the_rest_is(study, way):
    mask = study / "runs" / "body-msd-fold0" / "predictions" / f"{NAMES[1]}.nii.gz"
    if way == "cut":
        mask.write_bytes(mask.read_bytes()[:100])
    elif way == "gone":
        mask.unlink()
    else:
        write_volume(mask, from_spacing(np.zeros((3, 4, 5), np.uint8), (1, 1, 1)))
    assert any(
        line.startswith(f"the mask of {NAMES[1]} by body-msd") for line in problems_of(study)
    )
    assert shown_in(study) == list(NAMES)


def test_a_prepared_case_that_is_damaged_or_gone_is_named_and_the_rest_is_shown(study):
    image = study / "prepared" / "covid19" / "cases" / NAMES[0] / "image.npy"
    image.write_bytes(image.read_bytes()[:200])
    assert any(f"{NAMES[0]}: missing or damaged case" in line for line in problems_of(study))
    assert shown_in(study) == [NAMES[1]]
    shutil.rmtree(study / "prepared")
    assert any("plan.json: no such file" in line for line in problems_of(study))
    assert shown_in(study) == []


def test_a_target_of_two_datasets_is_reported_with_what_is_there_of_both(study):
    config = load_study(study)
    config.data.datasets = ("covid19", "msd_lung")
    (study / "study.json").write_text(json.dumps(to_dict(config)))
    assert any("msd_lung/dataset.json: no such file" in line for line in problems_of(study))
    assert shown_in(study) == list(NAMES)


def test_a_scan_that_is_gone_or_has_no_mask_yet_is_named(study, tmp_path):
    voxels = np.linspace(-900, 40, 60).reshape(3, 4, 5).astype(np.int16)
    volume = from_spacing(voxels, (1, 1, 1))
    gone, bare, scan = (tmp_path / f"{name}.nii.gz" for name in ("gone", "bare", "scan"))
    write_volume(bare, volume)
    write_volume(scan, volume)
    mask = replace(volume, voxels=(volume.voxels < -500).astype(np.uint8))
    write_volume(study / "scans" / "body-msd-fold0" / "scan.nii.gz", mask)
    config = load_study(study)
    config.study.scans = tuple(map(str, (gone, bare, scan)))
    (study / "study.json").write_text(json.dumps(to_dict(config)))
    problems = problems_of(study)
    assert f"{gone}: no such file or folder" in problems
    assert f"{bare}: no mask of it in STUDY/scans yet" in problems
    assert not any(str(scan) in line for line in problems)
    page = (study / "report" / "index.html").read_text()
    assert "scan.nii.gz: a scan without a reference" in page


def test_synthetic_data_is_named_although_the_prepared_data_is_gone_or_damaged(study):
    before = {"data": {}, "synthetic": ["msd_lung"]}
    origin = {"data": {}, "synthetic": ["phantom"], "pretrained": before}
    write_json(study / "runs" / "body-msd-fold0" / "provenance.json", origin)
    (study / "prepared" / "other").mkdir()
    (study / "prepared" / "other" / "dataset.json").write_text("{")
    assert any("other/dataset.json: damaged" in line for line in problems_of(study))
    assert "SYNTHETIC data: msd_lung, phantom" in (study / "report" / "index.html").read_text()


def test_a_run_of_a_newer_version_is_named(study):
    path = study / "runs" / "scratch-none-fold0" / "config.json"
    write_json(path, json.loads(path.read_text()) | {"teacher": 1})
    line = "runs/scratch-none-fold0/config.json: config has no field teacher; a newer version"
    assert any(one.startswith(line) for one in problems_of(study))


def test_a_study_that_is_half_done_says_so_on_its_page_and_in_the_terminal(page_file):
    assert "10 runs were asked for, 2 are there" in page_file.read_text()
    assert "10 runs were asked for, 2 are there" in terminal_summary(page_file.parent.parent)


def test_the_figure_of_masks_says_of_which_fold_it_is(page_file):
    assert "Test cases of fold 0: best, median and worst by mean DSC" in page_file.read_text()


def test_the_page_leads_from_every_number_to_its_run(page_file):
    page = page_file.read_text()
    assert 'href="../runs/body-msd-fold0/metrics.json"' in page
    assert (page_file.parent / "../runs/body-msd-fold0/metrics.json").is_file()
    assert "not a run" in page  # the folder that is none
