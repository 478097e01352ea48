import json
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from poss_export.errors import InputError
from poss_export.runtime.generation import Stream
from poss_export.runtime.sampling import Sampling
from poss_export.text import Text

PROMPT, ANSWER = "?!", "Say stop, or run: €5"  # no pair of bytes occurs twice

Ask = Callable[..., Stream]


@pytest.fixture
def ask(fake_target: Any, fake_drafter: Any, byte_text: Text) -> Ask:
    """Return a maker of streams from a target that says `ANSWER`, and a drafter right at depth 1 only."""
    ids = [*byte_text.encode(PROMPT + ANSWER), *byte_text.config.stop_ids]
    vocab = byte_text.tokenizer.get_vocab_size()
    after = zip(pairwise(ids), ids[2:], strict=False)
    table = defaultdict(lambda: np.zeros(vocab), {pair: np.eye(vocab)[x] for pair, x in after})
    assert len(table) == len(ids) - 2

    def stream(drafts: bool = True, capacity: int = 99, **request: Any) -> Stream:
        target = fake_target(table, capacity)

        def grow() -> tuple[list[int], list[int]]:
            right = ids[target.length() + 1 :][:1] or [7]
            return [*right, 7, 7], [0, 1, 0]

        drafter = fake_drafter(grow, capacity) if drafts else None
        return Stream(target, drafter, byte_text, PROMPT, byte_text.encode(PROMPT), **request)

    return stream


def test_figures_of_an_answer(ask: Ask, byte_text: Text) -> None:
    result = ask().run()
    tokens = len(byte_text.encode(ANSWER)) + 1
    assert result.text == ANSWER
    assert result.token_ids == (*byte_text.encode(ANSWER), *byte_text.config.stop_ids)
    assert (result.tokens, result.finish_reason) == (tokens, "stop")
    assert result.rounds == (tokens - 1) / 2 == sum(result.accepted_by_depth)
    assert result.tau == 2.0
    assert result.accepted_by_depth == (result.rounds,)
    assert 0 < result.prefill_seconds < result.seconds
    assert result.tokens_per_second == tokens / result.seconds


def test_target_only_takes_a_round_for_every_token(ask: Ask) -> None:
    plain, drafted = ask(drafts=False).run(), ask().run()
    assert plain.token_ids == drafted.token_ids
    assert plain.rounds == plain.tokens - 1
    assert (plain.tau, plain.accepted_by_depth, plain.draft_seconds) == (1.0, (), 0.0)


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize(
    ("request_", "text", "reason"),
    [
        ({}, ANSWER, "stop"),
        ({"max_new_tokens": 1}, "S", "length"),
        ({"max_new_tokens": 6}, "Say st", "length"),
        ({"stop": ["stop"]}, "Say ", "stop_string"),
        ({"stop": "or"}, "Say stop, ", "stop_string"),
        ({"stop": ["€6"]}, ANSWER, "stop"),
        ({"capacity": 8}, "Say sto", "capacity"),
        ({"max_new_tokens": 20}, ANSWER[:-2] + "\N{REPLACEMENT CHARACTER}", "length"),
    ],
)
def test_stream_is_the_answer_in_pieces(
    ask: Ask, drafts: bool, request_: dict[str, Any], text: str, reason: str
) -> None:
    stream = ask(drafts, **request_)
    pieces = list(stream)
    assert "".join(pieces) == text
    assert "" not in pieces
    result = ask(drafts, **request_).run()
    assert (result.text, result.finish_reason) == (text, reason)
    assert (stream.result.token_ids, stream.result.text) == (result.token_ids, text)


def test_a_stream_goes_on_where_its_reader_left_it(ask: Ask) -> None:
    stream = ask(sampling=Sampling(1e-3, seed=0))
    assert next(iter(stream)) + "".join(stream) == ANSWER
    assert stream.run() is stream.run() is stream.result
    assert stream.result.token_ids == ask().run().token_ids
    assert list(stream) == []


def test_tau_counts_what_was_emitted(ask: Ask) -> None:
    result = ask(max_new_tokens=4).run()  # S, ay, and the next round is cut
    assert (result.rounds, result.accepted_by_depth, result.tau) == (2, (2,), 1.5)


def test_one_token_needs_no_round(ask: Ask) -> None:
    result = ask(max_new_tokens=1).run()
    assert (result.rounds, result.tau, result.accepted_by_depth) == (0, 0.0, ())


def test_a_slow_reader_is_not_our_time(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    stream = ask()
    for _ in stream:
        now += 100.0
    assert stream.result.seconds == 0.0


def test_sessions_are_emptied_for_each_stream(ask: Ask, byte_text: Text) -> None:
    stream = ask(max_new_tokens=4)
    first = stream.run()
    same_sessions = (stream._target, stream._drafter, byte_text, PROMPT, byte_text.encode(PROMPT))
    assert Stream(*same_sessions, max_new_tokens=4).run().token_ids == first.token_ids


def test_json_object(ask: Ask) -> None:
    values = json.loads(json.dumps(ask(sampling=Sampling(1e-3, seed=0)).run().to_dict()))
    wanted = (
        "prompt text token_ids tokens seconds tokens_per_second rounds tau accepted_by_depth finish_reason"
    )
    assert set(wanted.split()) <= values.keys()
    assert (values["prompt"], values["text"]) == (PROMPT, ANSWER)


def test_bad_requests(ask: Ask, byte_text: Text, fake_target: Any) -> None:
    target = fake_target({}, 3)
    with pytest.raises(InputError, match="the prompt is empty"):
        Stream(target, None, byte_text, "", [])
    with pytest.raises(InputError, match="the prompt has 4 tokens, the bundle's capacity is 3"):
        Stream(target, None, byte_text, "abcd", [1, 2, 3, 4])
    with pytest.raises(InputError, match="prefill_chunk is 0"):
        Stream(target, None, byte_text, "a", [1], prefill_chunk=0)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        ask(max_new_tokens=0)


def test_threads_share_sessions(ask: Ask, byte_text: Text) -> None:
    """Each answer is whole, whoever asks; without turns they would read each other's caches."""
    first = ask()
    sessions = second_of(first, byte_text)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: Stream(*sessions).run().text, range(40)))
    assert answers == [ANSWER] * 40


def test_an_answer_waits_for_one_of_another_thread(ask: Ask, byte_text: Text) -> None:
    first = ask()
    pieces = iter(first)
    shown = next(pieces)
    second = Stream(*second_of(first, byte_text))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second.run)
        assert not wait([waiting], timeout=0.2).done
        assert shown + "".join(pieces) == ANSWER
        assert waiting.result(timeout=10).text == ANSWER


def test_an_answer_that_lost_its_turn_cannot_go_on(ask: Ask, byte_text: Text) -> None:
    """Its caches are gone: what it would say is not the target's."""
    first = ask()
    pieces = iter(first)
    next(pieces)
    second = Stream(*second_of(first, byte_text))
    assert second.run().text == ANSWER
    with pytest.raises(InputError, match="another answer began before this one had ended"):
        next(pieces)
    assert Stream(*second_of(second, byte_text)).run().text == ANSWER


def test_an_answer_that_failed_or_was_dropped_leaves_its_turn(ask: Ask, byte_text: Text) -> None:
    first = ask()
    next(iter(first))
    sessions = second_of(first, byte_text)
    del first

    def fail() -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Stream(*sessions, planner=fail).run()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(Stream(*sessions).run).result(timeout=10).text == ANSWER


def second_of(stream: Stream, byte_text: Text) -> Any:
    """What makes another stream of the same sessions."""
    return stream._target, stream._drafter, byte_text, PROMPT, byte_text.encode(PROMPT)
