"""The report's page in a real browser, opened from disk."""

import json
import shutil
from pathlib import Path

import pytest

from covid_jax.config import load_config_file, run_name, to_dict
from covid_jax.data.datasets import read_dataset
from covid_jax.data.volume import read_volume, write_volume
from covid_jax.evaluation.folders import evaluate_folders, save_metrics
from covid_jax.reporting.page import write_report
from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>alert(1)</script>"
WITH_WEBGL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WITHOUT_WEBGL = ["--disable-gpu", "--disable-3d-apis"]
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, covid19_raw):
    """A study of two runs whose masks are the real references, moved by a voxel in one."""
    study = tmp_path_factory.mktemp("study")
    cases = {case.name: case for case in read_dataset("covid19", covid19_raw).cases}
    names = ("radiopaedia_29_86491_1", "radiopaedia_40_86625_0")
    for run in ("scratch", "body-msd"):
        config = load_config_file(f"{ROOT}/configs/covid19_reduced.py:{run}")
        folder = study / "runs" / run_name(config)
        for name in names:
            label = read_volume(cases[name].label)
            if run == "scratch":
                label.voxels[:] = label.voxels.take(range(-1, label.voxels.shape[1] - 1), 1)
            write_volume(folder / "predictions" / f"{name}.nii.gz", label)
        references = Path(cases[names[0]].label).parent
        save_metrics(folder / "metrics.json", evaluate_folders(folder / "predictions", references))
        (folder / "config.json").write_text(json.dumps(to_dict(config)))
        line = {"step": 50, "epoch": 0, "loss": 0.5, "seconds": 1.0, "validation_dice": 0.4}
        (folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    config = load_config_file(f"{ROOT}/configs/covid19_reduced.py")
    config.study.note = f"a test {HOSTILE}"
    (study / "study.json").write_text(json.dumps(to_dict(config)))
    (study / "runs" / HOSTILE.replace("/", "")).mkdir()
    return write_report(study)


@pytest.fixture
def browse(page_file):
    """Opens the page; returns it when the viewer has drawn, and the list of what went wrong."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browsers = []

        def browse(width, flags):
            browser = running.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic", *flags]
            )
            browsers.append(browser)
            page = browser.new_page(viewport={"width": width, "height": 800})
            wrong = []
            page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda r: r.url.startswith("http") and wrong.append(r.url))
            page.on("dialog", lambda dialog: wrong.append(dialog.message))
            page.goto(f"file://{page_file}")
            page.wait_for_selector("#viewer[data-drawn]", timeout=60_000)
            return page, wrong

        yield browse
        for browser in browsers:
            browser.close()


def coloured(page):
    """How many pixels of the viewer are green, and how many red."""
    picture = page.locator("#viewer").screenshot()
    counted = page.evaluate(
        """async (bytes) => {
          const bitmap = await createImageBitmap(new Blob([new Uint8Array(bytes)]));
          const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
          const context = canvas.getContext("2d");
          context.drawImage(bitmap, 0, 0);
          const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
          let green = 0, red = 0;
          for (let i = 0; i < data.length; i += 4) {
            green += data[i + 1] > data[i + 2] + 40;
            red += data[i] > data[i + 2] + 40;
          }
          return [green, red];
        }""",
        list(picture),
    )
    return tuple(counted)


@needs_chromium
def test_the_page_opens_from_disk_without_network_or_error(browse):
    page, wrong = browse(1200, WITH_WEBGL)
    assert page.title() == "Transfer of lung lesions to COVID-19 CT, reduced"
    assert page.locator("select#run option").all_inner_texts() == [
        "scratch, fold 0",
        "body, msd, fold 0",
    ]
    assert wrong == []


@needs_chromium
def test_names_stay_text(browse):
    page, wrong = browse(1200, WITH_WEBGL)
    assert HOSTILE in page.locator("p.note").inner_text()
    assert HOSTILE.replace("/", "") in page.locator(".problems").inner_text()
    assert wrong == []


@needs_chromium
@pytest.mark.parametrize("flags", [WITH_WEBGL, WITHOUT_WEBGL], ids=["webgl", "no webgl"])
def test_the_viewer_shows_reference_and_prediction_of_the_chosen_run(browse, flags):
    page, wrong = browse(1200, flags)
    page.select_option("#case", label="radiopaedia_40_86625_0")
    page.select_option("#run", label="body, msd, fold 0")
    page.wait_for_selector("#viewer[data-drawn='body, msd, fold 0']")
    page.wait_for_timeout(1000)
    green, red = coloured(page)
    assert green > 50
    assert red > 50
    page.uncheck("#outline")
    page.wait_for_timeout(1000)
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
    page.wait_for_timeout(1000)
    assert viewer.screenshot() != before


@needs_chromium
def test_tables_are_readable_on_a_phone(browse):
    page, _ = browse(400, WITH_WEBGL)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for cell in page.locator("tbody tr:first-child td:first-child").all():
        assert cell.bounding_box()["height"] < 70  # a name is not broken into letters


def test_a_damaged_mask_is_named_and_the_rest_is_shown(page_file, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(page_file.parent.parent, study)
    mask = study / "runs" / "body-msd-fold0" / "predictions" / "radiopaedia_40_86625_0.nii.gz"
    mask.write_bytes(mask.read_bytes()[:100])
    page = write_report(study).read_text()
    assert "the mask of radiopaedia_40_86625_0 by body-msd-fold0" in page
    assert 'href="../runs/body-msd-fold0/metrics.json"' in page


def test_the_page_leads_from_every_number_to_its_run(page_file):
    page = page_file.read_text()
    assert 'href="../runs/body-msd-fold0/metrics.json"' in page
    assert (page_file.parent / "../runs/body-msd-fold0/metrics.json").is_file()
    assert "not a run" in page  # the folder that is none
