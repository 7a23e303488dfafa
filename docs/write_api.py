"""Writes api.md, of what can be imported from covid_jax itself: python docs/write_api.py."""

import ast
import inspect
import textwrap
from pathlib import Path

import covid_jax

PAGE = Path(__file__).with_name("api.md")
BEGINNING = """# In a notebook

What this page names is imported from `covid_jax` itself, but for `train`, which is there the module
of the command, and in it the function. The examples are one after another those
of one notebook, in the root of the project; a test runs them. A longer one, with pictures:
[transfer.ipynb](../examples/transfer.ipynb). `python docs/write_api.py` makes this page of the
docstrings.
"""
EXAMPLES = {
    "Scans and masks": """
import jax

import covid_jax

cases, name = "examples/covid19/COVID-19-CT-Seg_20cases", "coronacases_006.nii.gz"
scan = covid_jax.read_scan(f"{cases}/{name}")  # in HU; also a folder of DICOM, NRRD, MHA
reference = covid_jax.read_volume(f"examples/covid19/Infection_Mask/{name}")
assert scan.voxels.shape == reference.voxels.shape == (35, 73, 99)
""",
    "Configs and training": """
config = covid_jax.load_config_file("tiny")  # or "mine.py:body-msd"
config.epochs, config.steps_per_epoch, config.test = 1, 5, False

from covid_jax.train import train

train(config, "trained")  # epochs, checkpoints, log; on synthetic cases that it makes

run = covid_jax.set_up(config, "trained")  # or step by step, without the files
state, frozen = run.begin(None)
for patches in run.batches(0, 5):
    batch, key = run.put(patches), jax.random.key(config.seed)
    state, metrics = run.program.train_step(state, frozen, batch, jax.numpy.float32(0.01), key)
print(metrics["loss"])
""",
    "Networks and freezing": """
network = covid_jax.UNet(config.model)
image = jax.numpy.zeros((1, 8, 24, 24, 1))  # (N, D, H, W, C)
params = covid_jax.load_params("trained")  # or network.init(jax.random.key(0), image)["params"]
logits, *deeper = jax.jit(network.apply)({"params": params}, image)
assert logits.shape == (1, 8, 24, 24, 2)

frozen = covid_jax.mask(params, ["encoder", "!encoder/stage_2"])
trainable, held = covid_jax.split(params, frozen)
assert jax.tree.structure(covid_jax.join(trainable, held)) == jax.tree.structure(params)
""",
    "Prediction": """
runs = covid_jax.open_ensemble(["trained"])  # several are averaged
mask = covid_jax.segment(runs, scan)  # on the scan's own grid
covid_jax.write_volume("mask.nii.gz", mask)
assert (covid_jax.read_volume("mask.nii.gz").voxels == mask.voxels).all()
""",
    "Scores": """
scores = covid_jax.segmentation_metrics(
    mask.voxels > 0, reference.voxels > 0, scan.spacing_mm, tolerance_mm=3
)
print(f"DSC {scores['dsc']:.2f}, NSD {scores['nsd']:.2f}")
""",
}
"""Of each chapter."""
CHAPTERS = {
    "Scans and masks": ("read_scan", "read_volume", "write_volume", "Volume", "UserError"),
    "Configs and training": ("load_config_file", "named_run", "Config", "UNetConfig", "set_up"),
    "Networks and freezing": ("UNet", "MultiEncoderUNet", "mask", "split", "join"),
    "Prediction": ("open_ensemble", "segment", "predict_volume", "load_params"),
    "Scores": ("segmentation_metrics",),
}


def page() -> str:
    """The whole page."""
    return "\n".join([BEGINNING, *(_chapter(name) for name in CHAPTERS)])


def _chapter(name: str) -> str:
    entries = "\n".join(_entry(entry) for entry in CHAPTERS[name])
    return f"## {name}\n```python\n{EXAMPLES[name].strip()}\n```\n\n{entries}"


def _entry(name: str) -> str:
    """A name with its signature and docstring; of settings their fields."""
    it = getattr(covid_jax, name)
    module = inspect.getmodule(it)
    assert module is not None
    text = textwrap.dedent(inspect.getsource(it))
    if name not in ("Config", "UNetConfig"):
        source = ast.parse(text).body[0]
        doc = textwrap.indent(inspect.getdoc(it) or "", "    ", lambda line: bool(line.strip()))
        called = ""
        if isinstance(source, ast.FunctionDef):
            returns = f" -> {ast.unparse(source.returns)}" if source.returns else ""
            called = f"({ast.unparse(source.args)}){returns}"
        text = f"{name}{called}\n\n{doc}\n"
    return f"### {name}\n```python\n{text}```\n`{module.__name__}`\n"


if __name__ == "__main__":
    PAGE.write_text(page())
