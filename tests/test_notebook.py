"""The notebook of examples/ runs from its first cell to its last."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_notebook_fine_tunes_a_frozen_encoder_and_shows_what_it_does(tmp_path):
    kept = nbformat.read(ROOT / "examples" / "transfer.ipynb", as_version=4)
    pictures, told = outputs(kept)
    assert (pictures, told.count("bit-identical: True")) == (4, 1)  # as it was committed
    steps = [cell for cell in kept.cells if "= 4, 2, 50" in cell.source]
    assert len(steps) == 1
    few = "= 1, 1, 2\n    config.data.augment = False"
    steps[0].source = steps[0].source.replace("= 4, 2, 50", few)
    run = NotebookClient(kept, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    pictures, told = outputs(run.execute())
    assert (pictures, told.count("bit-identical: True")) == (4, 1)
    assert (tmp_path / "notebook" / "coronacases_006.nii.gz").is_file()


def outputs(notebook):
    """How many pictures the cells have drawn, and all that they have printed."""
    found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = sum("image/png" in output.get("data", {}) for output in found)
    return pictures, "".join(output.get("text", "") for output in found)
