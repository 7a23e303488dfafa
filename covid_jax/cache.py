"""Where what can be made again is kept between starts: compiled programs, compiled C++."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder `name` of this user's cache of covid_jax; XDG_CACHE_HOME moves it."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "covid_jax" / name
