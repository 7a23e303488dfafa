"""The one error type for a user's mistake, and the edge where it is printed."""

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging


class UserError(Exception):
    """A mistake in the input, told in one line that names the file or field and the mend."""


@contextlib.contextmanager
def full_disk_is_a_user_error(target: str | Path) -> Iterator[None]:
    """Turns "no space left" while writing `target` into one line."""
    try:
        yield
    except OSError as error:
        # numpy reports a short write, which a full disk causes, without a number.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, None):
            raise
        raise UserError(
            f"{target}: the disk is full; free some space and start the same command again"
        ) from error


def run_command(
    main: Callable[[], None],
    usage: str | None,
    check_arguments: Callable[[list[str]], None] | None = None,
) -> None:
    """Runs `main` under absl with `usage` as its --help text; a UserError becomes one line, exit 1.

    `check_arguments` sees sys.argv before absl does, for mistakes that absl ends in a traceback.
    """

    def edge(arguments: list[str]) -> None:
        if len(arguments) > 1:
            _fail(
                f"unknown argument {arguments[1]!r}: every setting is a --flag=value (see --help)"
            )
        try:
            main()
        except UserError as error:
            _fail(str(error))

    logging.set_verbosity(logging.WARNING)  # orbax tells every step of a save
    if usage:
        sys.modules["__main__"].__doc__ = usage
    if check_arguments:
        try:
            check_arguments(sys.argv[1:])
        except UserError as error:
            _fail(str(error))
    app.run(edge, flags_parser=_parse_flags)


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
