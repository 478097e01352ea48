"""`poss-export chat`."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from poss_export.cli.main import main
from poss_export.runtime.bundle import open_bundle
from poss_export.text import user_says
from tests.cli.command import refused

BRIEF = ("--threads", "1", "--max-new-tokens", "3")


def talk(bundle: Path, *lines: str, options: tuple[str, ...] = BRIEF) -> tuple[list[str], str]:
    """Return the answers to lines, and what was logged."""
    result = CliRunner().invoke(main, ["chat", str(bundle), *options], input="\n".join(lines))
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr


def expected(bundle: Path, *messages: Any) -> str:
    with open_bundle(bundle, threads=1) as opened:
        return opened.generate(messages, max_new_tokens=3).text


def answer(text: str) -> Any:
    return {"role": "assistant", "content": text}


def test_what_was_said_is_remembered(chat_bundle: Path) -> None:
    (one, two), log = talk(chat_bundle, "<5> <9>", "", "  <7> ")
    assert one == expected(chat_bundle, user_says("<5> <9>"))
    assert two == expected(chat_bundle, user_says("<5> <9>"), answer(one), user_says("<7>"))
    assert log.count("3 tokens in") == 2
    assert "finish: length" in log


def test_commands(chat_bundle: Path) -> None:
    system: Any = {"role": "system", "content": "<8>"}
    lines = ("<5>", "/reset", "<5>", "/system <8>", "<5>", "/reset", "<5>", "/system", "<5>", "/exit", "<5>")
    found, _ = talk(chat_bundle, *lines)
    plain, behind = expected(chat_bundle, user_says("<5>")), expected(chat_bundle, system, user_says("<5>"))
    assert found == [plain, plain, behind, behind, plain]
    assert talk(chat_bundle, "<5>", options=(*BRIEF, "--system", "<8>"))[0] == [behind]
    found, log = talk(chat_bundle, "/what")
    assert (found, "/what is no command: /reset begins anew" in log) == ([], True)


def test_a_line_that_cannot_be_answered_was_not_said(chat_bundle: Path) -> None:
    found, log = talk(chat_bundle, "<5> " * 60, "<5>")
    assert found == [expected(chat_bundle, user_says("<5>"))]
    assert "the bundle's capacity is 48: shorten the prompt, or build with a larger capacity; /reset" in log


def test_a_target_without_turns(tiny_bundle: Path) -> None:
    message = refused("chat", tiny_bundle)
    assert message.startswith("this target has no chat template, so it knows no turns; ")
    assert message.endswith("(poss-export generate --raw)")


def test_an_interrupt_ends_the_answer_only(chat_bundle: Path) -> None:
    script = """
import sys, time
from poss_export.cli.main import main
from poss_export.runtime.sessions.ort import OrtTargetSession
forward = OrtTargetSession.forward
def slow(*args, **kwargs):
    time.sleep(0.2)
    return forward(*args, **kwargs)
OrtTargetSession.forward = slow
main()
"""
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script, "chat", str(chat_bundle), "--threads", "1"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        deadline = time.monotonic() + 30
        while text not in shown:
            assert time.monotonic() < deadline, shown
            shown += os.read(keyboard, 4096).decode()

    def say(line: str) -> None:
        nonlocal shown
        shown = ""
        os.write(keyboard, line.encode() + b"\n")

    wait_for("> ")
    say("<5> <9>")
    wait_for("\n<")  # the answer has begun
    process.send_signal(signal.SIGINT)
    wait_for("> ")
    assert "finish:" not in shown
    say("<7>")
    process.send_signal(signal.SIGINT)
    wait_for("> ")
    say("/exit")
    assert process.wait(20) == 0
    os.close(keyboard)
