"""Replay: recorded rounds once more, for what is fed to the target."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poss_export.calibration.record import Dialogue
from poss_export.contract import PAST
from poss_export.errors import InputError
from poss_export.runtime.sessions.ort import OrtTargetSession
from poss_export.runtime.tree import DraftTree

Feed = Mapping[str, NDArray[Any]]  # every input of a graph, by name


def dialogue_tree(dialogue: Dialogue, most: int) -> DraftTree:
    """Return a dialogue as one tree: its prompt, a chain, and behind it every tree that was drafted.

    A node's ancestors are the rows that it was verified with, so one call shows a target every row that the
    rounds showed it. The tree ends with the last round that does not pass `most` nodes.
    """
    prompt = DraftTree.chain(dialogue.prompt[:most])
    tokens, parents, committed = [prompt.tokens], [prompt.parents], len(prompt) - 1
    nodes = len(prompt)
    for done in dialogue.rounds:
        if nodes + len(done.tree) > most:
            break
        tokens.append(done.tree.tokens)
        parents.append(np.append(committed, done.tree.parents[1:] + nodes))
        committed = nodes + done.path[-1]
        nodes += len(done.tree)
    return DraftTree(np.concatenate(tokens), np.concatenate(parents), np.zeros(nodes, np.float32))


def dialogue_feeds(target: OrtTargetSession, dialogue: Dialogue) -> Iterator[Feed]:
    """Yield what an entered target would be fed to read a dialogue in two calls: its first token, the rest.

    The target itself runs the first only. A feed is a view of its buffers and valid until the next item. Of
    the rest it asks for the logits that the rounds asked for: of drafted rows, and of the prompt's last.
    """
    # The operator of the `shared` form heeds positions only behind committed rows.
    tree = dialogue_tree(dialogue, target.capacity)
    target.reset()
    target.forward(DraftTree.chain(tree.tokens[:1]))
    yield target.last_feed()
    target.commit([0])
    if len(tree) > 1:
        wanted = np.arange(max(min(len(dialogue.prompt), len(tree)) - 2, 0), len(tree) - 1)
        caches = {name: value for name, value in target.last_feed().items() if name.startswith(f"{PAST}.")}
        yield {
            "input_ids": tree.tokens[None, 1:],
            "position_ids": tree.depths[None, 1:],
            "tree_mask": tree.mask[None, 1:, 1:],
            "past_length": np.ones(1, np.int64),
            "logits_rows": wanted[None],
            **caches,
        }


def check_feeds(feeds: Iterable[Feed]) -> Iterator[Feed]:
    """Yield feeds that a graph can be calibrated with; caches are looked at up to `past_length`.

    Raises:
        InputError: there is no feed, or one holds a value that is not finite.
    """
    number = 0
    for number, feed in enumerate(feeds, start=1):
        for name, values in feed.items():
            if name.startswith(f"{PAST}.") and "past_length" in feed:
                values = values[..., : int(feed["past_length"].max()), :]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise InputError(
                    f"sample {number}: {name} holds NaN or infinity, expected finite values: "
                    "leave the sample out, or record samples again"
                )
        yield feed
    if number == 0:
        raise InputError(
            "no samples: the feeds ended before the first one; an iterator can be read only once, so give "
            "a list, or a new iterator each time"
        )
