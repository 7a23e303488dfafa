"""How a command stops where nobody hears of it."""

import os
import subprocess
import sys


def test_a_stop_is_no_fault_where_stderr_is_gone():
    """As after `2>&1 | tee log` and Ctrl-C, which ends tee too: what is to be saved still is."""
    reads, writes = os.pipe()
    os.close(reads)
    script = "from covid_jax.stopping import tell_stop; tell_stop('saving'); print('saved')"
    ended = subprocess.run(
        [sys.executable, "-c", script], stderr=writes, stdout=subprocess.PIPE, check=False
    )
    os.close(writes)
    assert (ended.returncode, ended.stdout) == (0, b"saved\n")
