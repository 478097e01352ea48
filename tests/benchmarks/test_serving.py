"""The command that measures many clients, and peers that answer them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import peer_servers, serving
from benchmarks.loads import Answered, Load, Run
from benchmarks.peer_engines import llama_cpp, openvino_genai
from benchmarks.peers import Peers
from benchmarks.questions import Question
from benchmarks.serving_report import Cell, Way, goals
from benchmarks.workers import Setup
from poss_export.errors import InputError
from poss_export.evaluation.answers import answer
from poss_export.exactness import Beside
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import open_bundle
from poss_export.targets.checkpoint import open_target
from tests.benchmarks.test_peer_engines import CONVERTER, needs
from tests.fixtures.write_gguf import write_gguf

PROMPTS = [[7, 8, 9, 10], [11, 12], [20, 21, 22], [7, 9, 11, 13, 15]]


def asking(bundle: Path, tmp_path: Path, *options: str) -> list[str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"<{i}> <9>"}) for i in range(5, 8)))
    few = ["--requests", "5", "--max-new-tokens", "6", "--threads", "1"]
    return [str(bundle), "--prompts", str(prompts), *few, *options]


def test_rows_of_every_load_and_way(chat_bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    options = ["--clients", "1", "--clients", "3", "--rate", "50", "--repeats", "2", "--json", str(report)]
    result = CliRunner().invoke(serving.main, asking(chat_bundle, tmp_path, *options))
    assert result.exit_code == 0, result.output
    heading, *rows, total = result.stdout.splitlines()
    assert heading.split()[:3] == ["load", "way", "tokens/s"]
    assert [row.split("  ")[0] for row in rows[::2]] == ["1 clients", "3 clients", "50 a second"]
    assert all(row.endswith("10 of 10") for row in rows)
    assert total == "60 equal, 0 near-ties, 0 mismatches"
    kept = json.loads(report.read_text())
    assert kept["goals"] == []
    for load in kept["loads"]:
        assert [way["way"] for way in load["ways"]] == ["in turns, target-only", "in turns, speculative"]
        assert all(0 < way["first_ms"]["p50"] <= way["first_ms"]["p95"] for way in load["ways"])
        assert all(len(way["tokens_per_second_by_repeat"]) == 2 for way in load["ways"])


def test_goals_and_missing_peers_are_told(
    chat_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_servers, "find_spec", lambda _: None)
    options = ["--clients", "4", "--clients", "8", "--slots", "1", "--slots", "2", "--peers"]
    result = CliRunner().invoke(serving.main, asking(chat_bundle, tmp_path, *options))
    assert result.exit_code == 0, result.output
    told = result.stdout.splitlines()
    for name in ("llama-cpp-python fp32", "OpenVINO GenAI fp32"):
        assert f"not measured: {name}: not installed; see benchmarks/README.md" in told
    assert not any("Q8_0" in line for line in told)
    assert [line.partition(": ")[2].rpartition(": ")[0] for line in told[-4:]] == [
        "8 clients, 2 slots, speculative against in turns, target-only",
        "4 clients, 2 slots, speculative against 2 slots, target-only",
        "8 clients, 2 slots, speculative against 2 slots, target-only",
        "a plain step, the graph of one slot against the plain graph",
    ]


def test_a_peer_whose_files_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise InputError("no such target")

    monkeypatch.setattr(peer_servers, "find_spec", lambda _: True)
    found, missing = peer_servers.set_up("8 bits", refuse, lambda model: Setup(model, (), 64, 1))
    assert not found
    assert missing == {"llama-cpp-python Q8_0": "no such target", "OpenVINO GenAI int8": "no such target"}


def cell(clients: int, way: Way, *seconds: float) -> Cell:
    answered = Answered(0, tuple(range(12)), 0.0, ((0.1, 12),))
    return Cell(Load(clients=clients), str(way), [Run(each, [answered], {}) for each in seconds])


def test_goals_are_medians_of_ratios_in_a_repeat() -> None:
    """So that a slow moment hits both."""
    cells = [
        cell(8, Way(1, target_only=True), 4.0, 8.0, 4.0),
        cell(8, Way(4, target_only=False), 1.0, 2.0, 2.0),
        cell(4, Way(4, target_only=False), 1.0),
    ]
    (at_once,) = goals(cells, 4, None)
    assert (at_once.ratio, at_once.wanted, at_once.met) == (4.0, 3.0, True)
    assert [goal.met for goal in goals([], 4, 0.97)] == [False]


def test_answers_that_part_are_judged(chat_bundle: Path) -> None:
    with open_bundle(chat_bundle, threads=1) as bundle:
        question = Question("f", Prompt("1", ("<5>",)), bundle.encode("<5>"))
        plain = answer(bundle, question.ids, 6, target_only=True)
        other = replace(plain, token_ids=(*plain.token_ids[:3], 0, *plain.token_ids[4:]))
        answered = [Answered(0, made.token_ids, 0.0, ((0.1, 1),), made) for made in (plain, other)]
        judge = serving.Judge(bundle, [question], {question.place: plain})
        ((place, found),) = judge.ours(answered, Way(1, target_only=False)).items()
        assert (place, found["position"], found["verdict"]) == ("1, f:1", 3, "mismatch")
        assert judge.theirs(answered) == {"1, f:1": {"position": 3}}
        bundle.manifest = replace(bundle.manifest, beside=Beside(8, 1.0))
        (found,) = judge.ours(answered, Way(8, target_only=False)).values()
        assert found["verdict"] == "not claimed"


class Counting:
    """Answers a token a step to everything that is asked: 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.left: dict[int, list[int]] = {}
        self.most = 0

    def add(self, number: int, ids: list[int], tokens: int) -> None:
        self.left[number] = [*range(1, tokens + 1)]
        self.most = max(self.most, len(self.left))

    def step(self) -> list[peer_servers.Step]:
        made = [(number, [left.pop(0)], not left) for number, left in self.left.items()]
        self.left = {number: left for number, left in self.left.items() if left}
        return made


@pytest.mark.parametrize(("load", "most"), [(Load(clients=3), 3), (Load(clients=9), 7), (Load(rate=1e5), 7)])
def test_requests_come_as_the_load_says(load: Load, most: int) -> None:
    engine = Counting()
    seconds, answered = peer_servers.drive(engine, load, [[5]] * 7, 4, 0)
    assert [one.number for one in answered] == [*range(7)]
    assert all(one.token_ids == (1, 2, 3, 4) for one in answered)
    assert all(len(one.pieces) == 4 and one.asked <= one.pieces[0][0] <= seconds for one in answered)
    assert engine.most <= most
    if load.clients:
        assert engine.most == most
        assert sum(one.asked < answered[0].pieces[-1][0] for one in answered) == most


def test_nothing_is_asked_before_it_arrives() -> None:
    due = Load(rate=40).arrivals(4, 1)
    _, answered = peer_servers.drive(Counting(), Load(rate=40), [[5]] * 4, 2, 1)
    assert all(one.asked >= when for one, when in zip(answered, due, strict=True))


def check(open_server: Callable[[Setup], peer_servers.Answer], alone: Any, model: Path) -> None:
    """Hold a peer that answers many to itself, alone."""
    expected = [alone(ids, 12).token_ids for ids in PROMPTS]
    stop = expected[1][4]
    for stop_ids in ((), (stop,)):
        serve = open_server(Setup(model, stop_ids, 64, 1))
        for load in (Load(clients=3), Load(rate=1000)):
            _, answered = serve(load, PROMPTS, 12, 0)
            assert [list(one.token_ids) for one in answered] == [cut(ids, stop_ids) for ids in expected]


def cut(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [place for place, token in enumerate(ids, start=1) if token in stop_ids]
    return [*ids[: min(ends, default=len(ids))]]


@needs("llama_cpp")
def test_llama_answers_in_turns(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    target = write_gguf(tmp_path / "target.gguf", tiny_folder("llama"), "llama")
    model = Peers(open_target(str(target)), tmp_path).gguf()
    check(
        partial(peer_servers.llama_in_turns, float32_cache=True),
        llama_cpp(Setup(model, (), 64, 1), float32_cache=True),
        model,
    )


@needs("openvino_genai")
@pytest.mark.slow
@pytest.mark.skipif(not CONVERTER.exists(), reason=f"needs {CONVERTER}: benchmarks/README.md")
def test_openvino_batches(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "converter").symlink_to(CONVERTER.absolute())
    model = Peers(open_target(str(tiny_folder("llama"))), tmp_path).openvino()
    check(
        partial(peer_servers.openvino_batches, float32=True),
        openvino_genai(Setup(model, (), 64, 1), float32=True),
        model,
    )
