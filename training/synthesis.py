"""The target writes its own training data: it invents user turns, then answers them greedily.

Self-written answers are what the drafter must predict later; published data sets are not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from poss_export.errors import InputError
from poss_export.targets.decoder import Decoder
from poss_export.text import Text
from poss_export.training.decoding import BatchDecoder
from poss_export.training.dialogues import Dialogues

HOLDOUT = 0.05
MIN_ANSWER = 12  # tokens; shorter answers hold no drafts worth learning
LONGEST_PROMPT, LONGEST_TURN, LONGEST_ANSWER = 256, 160, 200  # tokens
SLOTS = 96  # answers written at a time

# The target finishes these; an empty opener lets it begin as it likes. They steer variety, not content.
OPENERS = (
    "", "", "", "", "", "", "What is", "What are the", "What would", "Which", "Who", "When did", "Where",
    "Why do", "Why is", "How do I", "How does", "How many", "How much", "How long", "How can", "If", "If a",
    "If you have", "Suppose", "Given", "Given the following", "Calculate", "Solve", "Find the", "Is it",
    "Do you", "Can you", "Can you explain", "Could you", "Please", "Help me", "I want to", "I need", "I am",
    "I have", "My", "Tell me", "Give me", "Give an example", "Give three", "List", "List five", "Name",
    "Write", "Write a", "Write a short story", "Write a poem", "Write a Python function", "Write a program",
    "Write an essay", "Write an email", "Draft a", "Compose a", "Create a", "Generate", "Design", "Imagine",
    "Act as", "Pretend", "You are", "Describe", "Describe how", "Explain", "Explain why", "Compare",
    "Discuss", "Analyze the", "Summarize", "Summarize the following", "Rewrite", "Rewrite the following",
    "Translate", "Classify", "Identify", "Extract", "Evaluate", "Edit", "Correct", "Convert", "Suggest",
    "Recommend", "Provide", "Plan", "Outline", "Define", "In the", "In a", "A train", "A farmer", "A store",
    "A class of", "A company", "The", "There are", "John has", "Mary bought", "Sam and", "Each", "Every",
    "One day", "During", "After", "Two", "Three friends", "Let", "Consider", "Implement", "Use", "Does",
    "Are", "Was", "Should", "Read the following", "Complete", "Continue", "Make a", "Show", "Prove", "Tom",
    "Lisa", "Anna", "Using", "Determine",
)  # fmt: skip


def greedy(logits: Tensor) -> Tensor:
    """Choose the likeliest token of each row."""
    return logits.argmax(-1)


def nucleus(top_p: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Return a chooser that samples at temperature 1 from the `top_p` nucleus."""

    def choose(logits: Tensor) -> Tensor:
        probabilities, order = logits.float().softmax(-1).topk(1024)
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        picked = torch.multinomial(probabilities.masked_fill(outside, 0), 1, generator=generator)
        return order.gather(-1, picked)[:, 0]

    return choose


def invent_turns(decoder: Decoder, text: Text, count: int, seed: int) -> list[str]:
    """Let the target finish `count` user turns that begin with an opener; duplicates are dropped."""
    generator = torch.Generator(decoder.embed_tokens.device).manual_seed(seed)
    stop = text.config.stop_ids
    openers = [OPENERS[i % len(OPENERS)] for i in range(count)]
    heads = [text.encode_user_opening(opener) for opener in openers]
    batch = BatchDecoder(decoder, SLOTS, LONGEST_PROMPT + LONGEST_TURN)
    turns: dict[str, None] = {}
    for index, tokens in batch.run(heads, LONGEST_TURN, stop, nucleus(0.95, generator)):
        if tokens[-1] in stop:
            turns[(openers[index] + text.decode(tokens)).strip()] = None
    return [turn for turn in turns if turn]


def answer_prompts(
    decoder: Decoder, prompts: Sequence[list[int]], stop_ids: Sequence[int]
) -> Iterator[tuple[int, list[int]]]:
    """Yield (prompt index, greedy answer) as answers end."""
    batch = BatchDecoder(decoder, SLOTS, LONGEST_PROMPT + LONGEST_ANSWER)
    yield from batch.run(prompts, LONGEST_ANSWER, stop_ids, greedy)


def chat_prompts(text: Text, turns: Sequence[str]) -> list[list[int]]:
    """Return the ids that ask each user turn."""
    return [text.encode_chat([{"role": "user", "content": turn}]) for turn in turns]


def join_dialogues(prompts: Sequence[list[int]], answers: Mapping[int, list[int]]) -> Dialogues:
    """Return dialogues in prompt order, without answers too short to learn from.

    Raises InputError where fewer than two are left.
    """
    pairs = [(prompts[i], answer) for i, answer in sorted(answers.items()) if len(answer) >= MIN_ANSWER]
    if len(pairs) < 2:
        raise InputError(
            f"{len(prompts)} prompts gave {len(pairs)} answers of at least {MIN_ANSWER} tokens; "
            "give more prompts, or let the target invent more"
        )
    return Dialogues.from_answers(pairs, HOLDOUT)
