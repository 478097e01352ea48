"""The target writes its own training data: it is asked, answers, is asked about its answers, and goes on.

Self-written answers are what the drafter must predict later; published data sets are not.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from poss_export.targets.decoder import Decoder
from poss_export.text import Message, Text, user_says
from poss_export.training.decoding import BatchDecoder
from poss_export.training.dialogues import Dialogues
from poss_export.training.tasks import FOLLOW_UPS, OPENERS, passage_task, pick, topic_task, word_problem

HOLDOUT = 0.05
MIN_ANSWER = 12  # tokens; shorter answers hold no drafts worth learning
LONGEST_PROMPT, LONGEST_TURN, LONGEST_ANSWER = 384, 160, 256  # tokens
LONGEST_PASSAGE = 200  # tokens of a dialogue that is asked about or gone on with
LIKELIEST = 256  # tokens that sampling chooses from

# Shares of a part's dialogues. One in four is gone on with; its second answer is no dialogue of its own.
INVENTED, TOPICS, PROBLEMS, PASSAGES, FOLLOWED = 0.4, 0.2, 0.15, 0.25, 0.25

Choose = Callable[[Tensor], Tensor]


def greedy(logits: Tensor) -> Tensor:
    """Choose the likeliest token of each row."""
    return logits.max(-1).indices  # several times faster than argmax in bfloat16


def nucleus(top_p: float, generator: torch.Generator) -> Choose:
    """Return a chooser that samples at temperature 1 from the `top_p` nucleus of the likeliest tokens."""

    def choose(logits: Tensor) -> Tensor:
        best, order = logits.topk(min(LIKELIEST, logits.shape[-1]))
        probabilities = best.float().softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        picked = torch.multinomial(probabilities.masked_fill(outside, 0), 1, generator=generator)
        return order.gather(-1, picked)[:, 0]

    return choose


@dataclass
class _Dialogue:
    """A dialogue that is being written: its messages, and the ids of what was said so far."""

    kind: str
    messages: list[Message]
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)  # True on tokens the target wrote as an answer
    begun: "_Dialogue | None" = None  # the dialogue that this one goes on with


class Writer:
    """Writes dialogues of one target, `slots` at a time, until it is `over`."""

    def __init__(
        self, decoder: Decoder, text: Text, slots: int, seed: Sequence[int], over: Callable[[], bool]
    ) -> None:
        """Allocate the caches; `seed` repeats what is written on equal hardware."""
        self.text, self.over = text, over
        self.random = np.random.default_rng(seed)
        generator = torch.Generator(decoder.embed_tokens.device).manual_seed(int(self.random.integers(2**62)))
        self.batch = BatchDecoder(decoder, slots, LONGEST_PROMPT + LONGEST_ANSWER)
        self.invent, self.sample = nucleus(0.95, generator), nucleus(1.0, generator)

    def write(self, size: int, sampled: bool) -> Dialogues | None:
        """Return about `size` dialogues of all kinds; answers are sampled at temperature 1, or greedy.

        None: nothing was finished in time.
        """
        choose, random = self.sample if sampled else greedy, self.random
        openers = [pick(random, OPENERS) for _ in range(round(size * INVENTED))]
        heads = [self.text.encode_user_opening(opener) for opener in openers]
        turns = {turn: "invented" for _, turn in self._finish_turns(openers, heads)}
        turns |= {topic_task(random): "topic" for _ in range(round(size * TOPICS))}
        turns |= {word_problem(random): "problem" for _ in range(round(size * PROBLEMS))}
        first = self._answered([_Dialogue(kind, [user_says(turn)]) for turn, kind in turns.items()], choose)
        short = [dialogue for dialogue in first if len(dialogue.ids) <= LONGEST_PASSAGE]
        passages = [
            _Dialogue("passage", [user_says(passage_task(random, str(dialogue.messages[1]["content"])))])
            for dialogue in self._some(short, round(size * PASSAGES))
        ]
        second = self._answered(passages + self._gone_on(self._some(short, round(size * FOLLOWED))), choose)
        grown = {id(dialogue.begun) for dialogue in second}
        return _joined([*(dialogue for dialogue in first if id(dialogue) not in grown), *second])

    def answer(self, turns: Sequence[str]) -> Dialogues | None:
        """Return the greedy answers to given user turns."""
        return _joined(self._answered([_Dialogue("given", [user_says(turn)]) for turn in turns], greedy))

    def _some(self, dialogues: Sequence[_Dialogue], most: int) -> list[_Dialogue]:
        return [dialogues[i] for i in self.random.permutation(len(dialogues))[:most]]

    def _finish_turns(self, openers: Sequence[str], heads: Sequence[list[int]]) -> Iterator[tuple[int, str]]:
        """Yield (index, user turn) where the target ends the turn that an opener begins."""
        stop = self.text.config.stop_ids
        for index, tokens in self._run(heads, LONGEST_TURN, self.invent):
            turn = (openers[index] + self.text.decode(tokens)).strip()
            if tokens[-1] in stop and turn:
                yield index, turn

    def _gone_on(self, begun: Sequence[_Dialogue]) -> list[_Dialogue]:
        """Return dialogues whose user has said something more, which the target invents."""
        openers = [pick(self.random, FOLLOW_UPS) for _ in begun]
        heads = [
            self.text.encode_user_opening(opener, dialogue.messages)
            for opener, dialogue in zip(openers, begun, strict=True)
        ]
        return [
            _Dialogue(
                kind="followed",
                messages=[*begun[index].messages, user_says(turn)],
                ids=begun[index].ids,
                mask=begun[index].mask,
                begun=begun[index],
            )
            for index, turn in self._finish_turns(openers, heads)
        ]

    def _answered(self, dialogues: Sequence[_Dialogue], choose: Choose) -> list[_Dialogue]:
        """Return the dialogues that could be asked and got an answer worth learning from, with it."""
        prompts, asked = list[list[int]](), list[_Dialogue]()
        for dialogue in dialogues:
            prompt, said = self.text.encode_chat(dialogue.messages), len(dialogue.ids)
            # Words that the target wrote may be cut into other tokens when they are read again.
            if prompt[:said] == dialogue.ids and len(prompt) <= LONGEST_PROMPT:
                prompts.append(prompt)
                asked.append(dialogue)
        done = dict[int, _Dialogue]()
        for index, answer in self._run(prompts, LONGEST_ANSWER, choose):
            if len(answer) < MIN_ANSWER:
                continue
            dialogue, prompt = asked[index], prompts[index]
            says = {"role": "assistant", "content": self.text.decode(answer)}
            done[index] = replace(
                dialogue,
                messages=[*dialogue.messages, says],
                ids=[*prompt, *answer],
                mask=[*dialogue.mask, *[False] * (len(prompt) - len(dialogue.mask)), *[True] * len(answer)],
            )
        return [dialogue for _, dialogue in sorted(done.items())]

    def _run(
        self, prompts: Sequence[list[int]], longest: int, choose: Choose
    ) -> Iterator[tuple[int, list[int]]]:
        return self.batch.run(prompts, longest, self.text.config.stop_ids, choose, self.over)


def _joined(dialogues: Sequence[_Dialogue]) -> Dialogues | None:
    if not dialogues:
        return None
    masked = [(dialogue.ids, dialogue.mask) for dialogue in dialogues]
    return Dialogues.join(masked, [dialogue.kind for dialogue in dialogues], HOLDOUT)
