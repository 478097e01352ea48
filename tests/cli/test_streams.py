"""Standard output may be full, closed, gone or of few letters, and the command line no text: no traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poss_export.manifest import read_manifest

PROGRAM = "from poss_export.cli.main import main; main()"


def shell(
    command: str, *arguments: str | bytes | Path, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which $0 is Python, $1 our program, and "${@:2}" are its arguments."""
    words = ["bash", "-o", "pipefail", "-c", command, sys.executable, PROGRAM, *arguments]
    return subprocess.run(words, capture_output=True, check=False, env={**os.environ, **environment})


def told(result: subprocess.CompletedProcess[bytes]) -> str:
    """Return the one line on stderr of a command that failed."""
    assert result.returncode not in (0, 120)  # 120: Python could not flush what was left
    (line,) = result.stderr.decode().splitlines()
    return line


RUN = '"$0" -c "$1" "${@:2}"'


@pytest.mark.parametrize("form", [("--json",), ()])
def test_a_full_disk_under_standard_output(form: tuple[str, ...], tiny_bundle: Path) -> None:
    result = shell(f"{RUN} > /dev/full", "inspect", tiny_bundle, *form)
    assert told(result) == "error: cannot write results: No space left on device"


def test_a_closed_standard_output_is_refused_before_the_work(tiny_bundle: Path) -> None:
    result = shell(f"{RUN} >&-", "generate", tiny_bundle, "<5>", "--raw")
    assert told(result).startswith("error: standard output is closed; send results to a file")


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    """Or a library's warnings would be written into it."""
    program = "import os; from poss_export.cli.printing import prepare_streams as p; p(); print(os.dup(1))"
    result = subprocess.run(["bash", "-c", '"$0" -c "$1" <&- 2>&-', sys.executable, program], stdout=-1)
    assert result.stdout == b"3\n"


@pytest.mark.parametrize("form", [("--json",), ()])
def test_a_reader_that_goes_ends_the_command_quietly(form: tuple[str, ...], tiny_bundle: Path) -> None:
    result = shell(f"{RUN} | true", "inspect", tiny_bundle, *form)
    assert (result.returncode, result.stderr) == (1, b"")


def test_letters_that_standard_output_lacks(changed: Callable[..., Path], tiny_bundle: Path) -> None:
    from dataclasses import replace

    folder = changed(target=replace(read_manifest(tiny_bundle).target, name="süß\ud800"))
    for encoding in ("ascii", "utf-8"):
        values = shell(RUN, "inspect", folder, "--json", PYTHONIOENCODING=encoding)
        assert (values.returncode, values.stderr) == (0, b"")
        assert json.loads(values.stdout)["target"]["name"] == "süß\ud800"
        card = shell(RUN, "inspect", folder, PYTHONIOENCODING=encoding)
        assert (card.returncode, card.stderr) == (0, b"")


@pytest.mark.parametrize("place", ["prompt", "folder", "file"])
def test_arguments_that_are_no_text(place: str, tiny_bundle: Path) -> None:
    prompt = ("generate", tiny_bundle, "--raw", "--max-new-tokens", "2")
    words: dict[str, tuple[tuple[str | bytes | Path, ...], str]] = {
        "prompt": ((*prompt, "<5>", b"\xff"), "prompt 2: the prompt holds '\\udcff', half of a character"),
        "folder": (("inspect", b"\xff"), "target '\\udcff' is neither a folder nor a .gguf file"),
        "file": ((*prompt, "--prompts", b"\xff"), "'\\udcff' cannot be read"),
    }
    arguments, message = words[place]
    assert message in told(shell(RUN, *arguments))


def test_prompts_from_a_closed_standard_input(tiny_bundle: Path) -> None:
    result = shell(f"{RUN} <&-", "generate", tiny_bundle, "--raw", "--prompts", "-")
    assert told(result) == "error: standard input is closed; name a file of prompts, or give some to it"
