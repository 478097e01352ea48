"""The target writes its own training data: it invents user turns, then answers them greedily.

Self-written answers are what the drafter must predict later; published data sets are not.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from poss_export.errors import InputError
from poss_export.targets.decoder import Decoder
from poss_export.text import Text
from poss_export.training.decoding import BatchDecoder
from poss_export.training.dialogues import Dialogues

HOLDOUT = 0.05
MIN_ANSWER = 12  # tokens; shorter answers hold no drafts worth learning

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


def invent_dialogues(
    decoder: Decoder,
    text: Text,
    count: int,
    *,
    seed: int,
    max_answer: int = 200,
    slots: int = 96,
    prompts: Sequence[str] = (),
    progress: Callable[[int], None] = lambda tokens: None,
) -> Dialogues:
    """Return about `count` dialogues: user turns from `prompts`, or invented; answers greedy.

    `progress` is told how many new answer tokens were written.
    """
    generator = torch.Generator(decoder.embed_tokens.device).manual_seed(seed)
    batch = BatchDecoder(decoder, slots, capacity=256 + max_answer)
    turns = list(prompts) or list(_invent_turns(batch, text, count, generator))
    asked = [text.encode_chat([{"role": "user", "content": turn}]) for turn in turns]
    pairs: list[tuple[int, list[int]]] = []
    for index, answer in batch.run(asked, max_answer, text.config.stop_ids, greedy):
        progress(len(answer))
        if len(answer) >= MIN_ANSWER:
            pairs.append((index, answer))
    if len(pairs) < 2:
        raise InputError(f"{len(turns)} prompts gave {len(pairs)} usable answers; ask for more dialogues")
    return Dialogues.from_answers([(asked[i], answer) for i, answer in sorted(pairs)], HOLDOUT)


def _invent_turns(batch: BatchDecoder, text: Text, count: int, generator: torch.Generator) -> list[str]:
    """Let the target finish user turns that begin with an opener; duplicates are dropped."""
    marker = "\x00"
    frame = text.encode_chat([{"role": "user", "content": marker}])
    head = text.decode_special(frame).split(marker)[0]
    stop = text.config.stop_ids
    openers = [OPENERS[i % len(OPENERS)] for i in range(count)]
    heads = [text.tokenizer.encode(head + opener, add_special_tokens=False).ids for opener in openers]
    turns: dict[str, None] = {}
    for index, tokens in batch.run(heads, 160, stop, nucleus(0.95, generator)):
        if tokens[-1] in stop:
            turns[(openers[index] + text.decode(tokens)).strip()] = None
    return [turn for turn in turns if turn]


def read_prompts(path: Path) -> list[str]:
    """Read user turns from a JSON-lines file with `prompt` or `turns` (first turn) on each line."""
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            prompts.append(str(entry["prompt"] if "prompt" in entry else entry["turns"][0]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f'{path}, line {number}: expected a JSON object with "prompt" or "turns", found {line[:60]!r}'
            ) from error
    return prompts
