"""What all commands have in common: messages for errors, and what a deployment lacks."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from poss_export.cli.main import Commands
from poss_export.errors import InputError
from tests.cli.command import refused, run


@pytest.mark.parametrize("command", ["generate", "verify"])
def test_spoilt_bundles_are_refused(command: str, copy: Path, tmp_path: Path) -> None:
    rest = ("<5>", "--raw") if command == "generate" else ()
    assert "no bundle folder at" in refused(command, tmp_path / "none", *rest)
    assert "has no manifest.json" in refused(command, tmp_path, *rest)
    whole = (copy / "target.onnx.data").read_bytes()
    (copy / "target.onnx.data").write_bytes(whole[:-1])
    assert "bytes, the manifest says" in refused(command, copy, *rest)
    (copy / "target.onnx.data").write_bytes(whole)
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"capacity": 48', '"capacity": 64'))
    assert "was changed after the build: its hash does not match" in refused(command, copy, *rest)


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", "smollm2-135m", "-o", "bundle"),
        ("train", "smollm2-135m", "--preset", "eagle", "-o", "drafter"),
        ("inspect", "smollm2-135m"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_deployment_says_which_extra_is_missing(arguments: tuple[str, ...], tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from poss_export.cli.main import main; main()"
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == (
        "error: this command needs torch, which is not installed: pip install 'poss-export[export]'\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "options", "printed"),
    [
        (("generate", "b", "hello"), ("raw",), "error: do it otherwise (--raw)"),
        (("generate", "b", "hello"), ("capacity",), "error: do it otherwise (poss-export build --capacity)"),
        (("inspect", "b"), ("layers", "draft_layers"), "error: do it otherwise (poss-export build "
         "--layer-precision, poss-export build --draft-layer-precision)"),
        (("inspect", "b"), ("nothing",), "error: do it otherwise"),
        (("inspect", "b"), (), "error: do it otherwise"),
    ],
)  # fmt: skip
def test_errors_are_printed_with_the_flags_of_their_remedy(
    command: tuple[str, ...], options: tuple[str, ...], printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise InputError("do it otherwise", options=options)

    monkeypatch.setattr("poss_export.runtime.bundle.open_bundle", fail)
    monkeypatch.setattr("poss_export.bundling.facts.facts_of", fail)
    result = run(*command)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"{printed}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_process_let_it_clear_up(number: signal.Signals) -> None:
    cleared = []

    @click.group(cls=Commands)
    def group() -> None: ...

    @group.command()
    def work() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            cleared.append(number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        group.main(["work"])
    assert (ended.value.code, cleared, signal.getsignal(number)) == (128 + number, [number], before)
