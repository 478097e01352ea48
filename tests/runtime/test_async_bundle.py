import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from poss_export.errors import BusyError, PromptError
from poss_export.runtime.async_bundle import Answers, AsyncBundle
from poss_export.runtime.bundle import open_bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.sampling import Sampling
from poss_export.runtime.scheduler import Done, Piece

Use = Callable[[Callable[[AsyncBundle], Coroutine[Any, Any, Any]]], Any]
SAMPLING = Sampling(1.0, seed=3)


@pytest.fixture
def use(tiny_bundle: Path) -> Use:
    """Return use(do): the result of do(bundle), with the tiny bundle entered and a queue of 4."""

    def run(do: Callable[[AsyncBundle], Coroutine[Any, Any, Any]]) -> Any:
        async def entered() -> Any:
            async with AsyncBundle(open_bundle(tiny_bundle, threads=1), queue=4) as bundle:
                return await do(bundle)

        return asyncio.run(entered())

    return run


@pytest.fixture(scope="module")
def alone(tiny_bundle: Path) -> Callable[..., Generation]:
    """Return alone(prompt, tokens): what the bundle answers without a scheduler."""

    def answer(prompt: str, tokens: int) -> Generation:
        with open_bundle(tiny_bundle, threads=1) as bundle:
            return bundle.generate(prompt, raw=True, max_new_tokens=tokens, sampling=SAMPLING)

    return answer


def test_many_tasks_at_once(use: Use, alone: Callable[..., Generation]) -> None:
    asked = [("<5> <9>", 20), ("<7>", 9), ("<11> <12> <13>", 12)]

    async def do(bundle: AsyncBundle) -> list[Generation]:
        return await asyncio.gather(
            *(bundle.generate(p, raw=True, max_new_tokens=n, sampling=SAMPLING) for p, n in asked)
        )

    for (prompt, tokens), answer in zip(asked, use(do), strict=True):
        expected = alone(prompt, tokens)
        assert (answer.prompt, answer.text) == (prompt, expected.text)
        assert answer.token_ids == expected.token_ids


def test_a_stream_has_a_result_in_the_end(use: Use) -> None:
    async def do(bundle: AsyncBundle) -> None:
        stream = bundle.stream("<5>", raw=True, max_new_tokens=9)
        text = "".join([piece async for piece in stream])
        assert text == stream.result.text
        assert stream.result.tokens == 9

    use(do)


def test_an_answer_given_up_makes_room(use: Use) -> None:
    async def do(bundle: AsyncBundle) -> None:
        for _ in range(10):  # more than the queue holds
            stream = bundle.stream("<5>", raw=True, max_new_tokens=40)
            pieces = stream.__aiter__()
            await anext(pieces)
            await pieces.aclose()
        task = asyncio.create_task(bundle.generate("<5>", raw=True, max_new_tokens=40))
        await asyncio.sleep(0.01)
        task.cancel()
        assert (await bundle.generate("<6>", raw=True, max_new_tokens=3)).tokens == 3

    use(do)


def test_errors(use: Use) -> None:
    async def do(bundle: AsyncBundle) -> None:
        with pytest.raises(PromptError, match="the prompt is empty"):
            await bundle.generate([])
        with pytest.raises(PromptError, match="capacity is 48"):
            await bundle.generate("<5> " * 60, raw=True)
        tasks = [asyncio.create_task(bundle.generate("<5>", raw=True, max_new_tokens=40)) for _ in range(12)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, BusyError) for result in results)
        assert any(isinstance(result, Generation) for result in results)

    use(do)


def test_answers_in_one_stream(tiny_bundle: Path) -> None:
    from poss_export.runtime.scheduler import Scheduler

    async def do() -> None:
        with open_bundle(tiny_bundle, threads=1) as bundle, Scheduler(bundle) as scheduler:
            answers = Answers(scheduler)
            for tokens in (3, 5):
                answers.submit([5, 9], max_new_tokens=tokens)
            told = [(number, event) async for number, event in answers]
            assert [(n, e.generation.tokens) for n, e in told if isinstance(e, Done)] == [(0, 3), (1, 5)]
            assert {n for n, e in told if isinstance(e, Piece)} == {0, 1}
            answers = Answers(scheduler)
            answers.submit([5, 9], max_new_tokens=40)
            answers.cancel()
            with pytest.raises(BusyError, match="the answer was cancelled"):
                _ = [event async for event in answers]

    asyncio.run(do())
