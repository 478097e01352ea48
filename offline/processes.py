"""Commands of this package as processes that can be ended whole."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

TOGETHER = (sys.executable, "-m", "offline.together")
COMMAND = (sys.executable, "-c", "from poss_export.cli.main import main; main()")


def start(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start a command in a group of its own; what it says goes to the end of `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **variables},
        )


def end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """End a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
