"""Real scans that the tests read, and one trained run that they share."""

import contextlib
import dataclasses
import fcntl
import importlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from covid_jax.config import Config, load_config_file
from covid_jax.device import cores
from covid_jax.model import onednn

ROOT = Path(__file__).resolve().parent.parent


def installed(module: str, extra: str) -> ModuleType:
    """The module; where it is not installed, the test is skipped, by what would run it."""
    reason = f"no {module.partition('.')[0]}: EXTRAS=dev,{extra} bash launch/test.sh"
    return pytest.importorskip(module, reason=reason)


needs_onednn = pytest.mark.skipif(
    not onednn.available(), reason="no oneDNN for this machine, or no compiler: apt-get install g++"
)
SMALL_NETWORK = (
    "--config.model.features_per_stage=4,8",
    "--config.model.kernel_sizes=((1,3,3),(3,3,3))",
    "--config.model.strides=((1,1,1),(2,2,2))",
    "--config.model.n_conv_per_stage=1,1",
    "--config.model.n_conv_per_stage_decoder=(1,)",
)
"""Arguments for a network of two stages, which compiles in a second."""
LONG = tuple(
    f"tests/{name}"
    for name in [
        "benchmarks/",
        "data/test_augment",
        "data/test_datasets",
        "data/test_dicom",
        "data/test_fuzz",
        "data/test_geometry",
        "data/test_phantom",
        "data/test_preparation",
        "data/test_sampling",
        "data/test_traps",
        "distributed/",
        "evaluation/test_scoring",
        "faults/",
        "inference/test_scan",
        "model/",
        "nnunet/test_model_folder",
        "parity/",
        "reporting/test_damage",
        "reporting/test_own_data",
        "reporting/test_page",
        "reporting/test_statistics",
        "studies/test_own_dataset",
        "studies/test_schedule",
        "training/test_explain",
        "training/test_platform",
        "training/test_step",
        "test_api",
        "test_commands",
        "test_inputs",
        "test_notebook",
        "test_packaging",
        "test_regions",
        "test_security",
        "test_settings",
        "test_study",
        "test_train",
        "test_transfer_from_any",
        "test_version_1",
    ]
)
"""Files of 10 seconds or more, and folders of such; the others are what `-m quick` runs."""
FORMS = ("lax", "packed", "slices", pytest.param("onednn", marks=needs_onednn))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run what is marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    for item in items:
        if not item.nodeid.startswith(LONG):
            item.add_marker("quick")
        if item.get_closest_marker("slow") and not config.option.all:
            item.add_marker(pytest.mark.skip(reason="slow: bash launch/test.sh --all"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For `-m quick` long files are not even imported."""
    if config.option.markexpr != "quick":
        return None
    return collection_path.relative_to(ROOT).as_posix().startswith(LONG) or None


@pytest.fixture(autouse=True)
def untouched_process():
    """No test leaves the process, which it shares with others, on other cores or in another folder.

    On other cores sums are added in another order, and runs differ in the last bit.
    """
    before = cores(), Path.cwd()
    yield
    assert (cores(), Path.cwd()) == before


@pytest.fixture(scope="session")
def lidc_series() -> Path:
    """The DICOM series of LIDC-IDRI-0001: 16 slices of 2.5 mm, in HU."""
    return ROOT / "examples" / "lidc" / "LIDC-IDRI-0001"


@pytest.fixture(scope="session")
def thorax() -> Path:
    """A thorax crop of 1.5 mm whose axes point to L, P, S."""
    return ROOT / "tests" / "files" / "thorax_crop_1p5mm.nii.gz"


@pytest.fixture(scope="session")
def covid19_raw() -> Path:
    """The 20 real COVID-19 cases in their reduced form."""
    return ROOT / "examples" / "covid19"


@pytest.fixture(scope="session")
def command():
    """What `python -m covid_jax.NAME ARGUMENTS`, or benchmarks.NAME, does, in this process.

    From the root; returns what a process of its own would have ended with.
    """

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
        main = importlib.import_module(name if "." in name else f"covid_jax.{name}").main
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(err):
                status = main(arguments)
        said = [text.getvalue() for text in (out, err)]
        return subprocess.CompletedProcess((name, *arguments), status, *said)

    return run


@pytest.fixture(scope="session")
def process():
    """Runs `python -m NAME ARGUMENTS` from the root as a process of its own, and returns it."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", name, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def refuses(command):
    """Runs a command that must end in one line on stderr, with a non-zero exit, and returns it."""

    def run(name: str, *arguments: str) -> str:
        finished = command(name, *arguments)
        assert finished.returncode != 0, finished.stdout
        assert "Traceback" not in finished.stderr
        last = finished.stderr.strip().splitlines()[-1]
        assert last.startswith("error: "), finished.stderr
        return last

    return run


def of_devices(count: int) -> dict[str, str]:
    """The environment of a process that sees so many virtual devices."""
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small file system: sudo bash launch/test.sh, where root may mount one")
    yield folder
    subprocess.run(["umount", folder], check=True)


def tiny(name: str = "scratch", **changes: object) -> Config:
    """configs/tiny.py with some fields changed."""
    config = load_config_file(f"{ROOT}/configs/tiny.py:{name}")
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, command) -> Path:
    """The work directory of configs/tiny.py, trained once through the command, for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each has a folder of its own in the one of all
        folder = folder.parent
    workdir = folder / "tiny" / "run"
    with (folder / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "model").is_dir():
            finished = command("train", f"--config={ROOT}/configs/tiny.py", f"--workdir={workdir}")
            assert finished.returncode == 0, finished.stderr
    return workdir
