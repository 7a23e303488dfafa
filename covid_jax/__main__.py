"""`covid-jax COMMAND --FLAG=VALUE ...`: as `python -m covid_jax.COMMAND` does."""

import ast
import importlib
import sys
from pathlib import Path
from typing import NoReturn

from covid_jax import __version__
from covid_jax.command import as_process

COMMANDS = ("prepare", "train", "predict", "evaluate", "study", "import_nnunet")


def main() -> NoReturn:
    """Runs the command that the first argument names, with the others."""
    name, *_ = [*sys.argv[1:], "--help"]
    if name in ("--help", "-h"):
        lines = [f"  {command:14}{_purpose(command)}" for command in COMMANDS]
        print("covid-jax COMMAND --FLAG=VALUE ..., and of each COMMAND --help\n", *lines, sep="\n")
        sys.exit(0)
    if name == "--version":
        print(f"covid_jax {__version__}")
        sys.exit(0)
    command = name.replace("-", "_")
    if command not in COMMANDS:
        print(f"error: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(1)
    del sys.argv[1]
    as_process(importlib.import_module(f"covid_jax.{command}").main)


def _purpose(command: str) -> str:
    """What a command's docstring begins with; without an import, which takes seconds."""
    text = Path(__file__).with_name(f"{command}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
