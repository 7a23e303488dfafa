"""The committed report of the reduced study, and what docs/study.md reads in it."""

import json
import re

from tests.conftest import ROOT

REPORT = ROOT / "docs" / "reduced_study" / "report"


def test_every_number_of_the_page_leads_to_a_run_that_is_here():
    page = (REPORT / "index.html").read_text()
    links = {link for link in re.findall(r'href="([^"#]+)"', page) if ":" not in link}
    assert len([link for link in links if link.endswith("metrics.json")]) == 70
    assert [link for link in links if not (REPORT / link).exists()] == []


def test_its_reading_has_its_numbers():
    results = json.loads((REPORT / "results.json").read_text())
    reading = (ROOT / "docs" / "study.md").read_text()
    rows = results["table_1"]
    means = {(row["strategy"], row["pretrained"]): row["dsc_avg_mean"] for row in rows}
    found = {}
    for each in results["against_scratch"]:
        difference = f"{each['difference']:+.3f} ({each['low']:+.3f} to {each['high']:+.3f})"
        found.setdefault((each["strategy"], each["source"]), {})[each["metric"]] = difference
    assert len(found) == 13
    assert f"| scratch | {means['scratch', 'none']:.3f} |" in reading
    for (strategy, source), of_metric in found.items():
        mean = f"{means[strategy, source]:.3f}"
        line = re.escape(f"| {strategy}, {source} | {mean} | {of_metric['dsc']} | ")
        assert re.search(line + r"[\d.]+ \| " + re.escape(of_metric["nsd"]), reading)
