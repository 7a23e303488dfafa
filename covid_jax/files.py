"""Files that are whole or absent, and JSON."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covid_jax.errors import writing


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` when the block ends well, and is gone otherwise."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` to `path` as JSON; whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What the JSON file at `path` says; nothing where there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else {}
