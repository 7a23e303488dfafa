"""Draws the pictures of these pages that no run is needed for: python docs/draw.py."""

from pathlib import Path

import matplotlib

from covid_jax.config import STRATEGY_NAMES, load_config_file
from covid_jax.reporting.network import draw_networks

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "covid_jax"  # the same file each time
    configs = [load_config_file(f"{ROOT}/configs/paper.py:{name}") for name in STRATEGY_NAMES]
    figure = draw_networks(configs, STRATEGY_NAMES)
    figure.savefig(ROOT / "docs" / "strategies.svg", metadata={"Date": None})
