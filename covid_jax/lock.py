"""One process at a time in a folder."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from covid_jax.errors import UserError, writing


@contextlib.contextmanager
def only_here(folder: Path, what: str) -> Iterator[int]:
    """Holds `folder` for this process; it is free again when the process ends, however it ends.

    Yields the file descriptor that holds it: a process that inherits it holds the folder as well.

    Raises:
      UserError: another process holds it; `what` says what that process is. Or it cannot be
        written, or its file system keeps no locks, as Lustre may. NFS keeps them among machines.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: {what} is at work here; wait for it, or stop it") from error
        except OSError as error:
            raise UserError(
                f"{folder}: its file system keeps no locks ({error.strerror}), without which two "
                "processes could write here at once; use a folder on another one"
            ) from error
        yield file.fileno()


def is_held(folder: Path) -> bool:
    """Whether a process on this machine holds `folder`, which may be somebody else's to write."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as who else looks
    except BlockingIOError:
        return True
    except OSError:  # nobody ever did, it is not to be read, or its file system keeps no locks
        return False
    return False
