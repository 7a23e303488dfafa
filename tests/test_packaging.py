"""What is installed from a wheel: the package, its configs, and the command covid-jax."""

import os
import subprocess
import sys
import zipfile

import pytest

from covid_jax import __version__
from covid_jax.__main__ import COMMANDS
from tests.conftest import ROOT, SMALL_NETWORK


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def covid_jax(wheel, tmp_path_factory):
    """Runs the installed command from a folder of its own."""
    site, folder = wheel.parent / "site", tmp_path_factory.mktemp("elsewhere")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", site, wheel], check=True)

    def run(*arguments):
        return subprocess.run(
            [site / "bin" / "covid-jax", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_wheel_holds_the_package_and_the_configs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "covid_jax",
        f"covid_jax-{__version__}.dist-info",
    }
    configs = {f"covid_jax/{path.relative_to(ROOT)}" for path in (ROOT / "configs").glob("*.py")}
    files = {path for path in (ROOT / "covid_jax").rglob("*") if "__pycache__" not in path.parts}
    package = {str(path.relative_to(ROOT)) for path in files if path.is_file()}
    assert {name for name in names if name.startswith("covid_jax/")} == configs | package


def test_an_installed_command_trains_from_any_folder_by_the_name_of_a_config(covid_jax):
    finished = covid_jax("train", "--config=tiny", "--workdir=run", "--config.epochs=1",
        "--config.steps_per_epoch=1", "--config.test=False", "--config.data.augment=False",
        *SMALL_NETWORK)  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "SYNTHETIC phantom" in finished.stdout


def test_the_command_tells_its_commands_and_refuses_others(covid_jax):
    told = covid_jax().stdout
    assert [line.split()[0] for line in told.splitlines()[2:]] == [*COMMANDS]
    assert covid_jax("--version").stdout == f"covid_jax {__version__}\n"
    assert covid_jax("import-nnunet", "--help").stdout.startswith("Brings a network")
    refused = covid_jax("trian")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"error: no command 'trian'; there are {', '.join(COMMANDS)}\n"
