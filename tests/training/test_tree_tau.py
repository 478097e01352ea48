"""The walk through held-out answers = rounds drafted from scratch, one dialogue after another."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from poss_export.config import TreeShape
from poss_export.drafters.model import Drafter
from poss_export.training.corpus import Corpus
from poss_export.training.dialogues import Dialogues
from poss_export.training.features import TargetView
from poss_export.training.tree_tau import tree_taus
from tests.fixtures.random_drafter import DRAFT_VOCAB, HIDDEN, VOCAB, random_drafter
from tests.fixtures.reference_round import reference_round

LENGTHS = [(5, 9), (3, 14), (7, 1), (4, 2)]  # prompt and answer


def make_corpus(drafter: Drafter) -> Corpus:
    random = torch.Generator().manual_seed(3)
    words = drafter.draft_ids[torch.randint(3, (sum(map(sum, LENGTHS)),), generator=random)].tolist()
    pairs = [([words.pop() for _ in range(p)], [words.pop() for _ in range(a)]) for p, a in LENGTHS]
    joined = Dialogues.from_answers(pairs, holdout=0.5)
    dialogues = replace(joined, validation=np.array([True, True, True, True]))
    tokens = len(dialogues.ids)
    index = torch.full((VOCAB,), -1)
    index[drafter.draft_ids] = torch.arange(DRAFT_VOCAB)
    return Corpus(
        dialogues=dialogues,
        view=TargetView(
            torch.randn(tokens, HIDDEN, generator=random).bfloat16(),
            torch.zeros(tokens, 1, dtype=torch.int32),
            torch.ones(tokens, 1),
        ),
        embeddings=torch.randn(VOCAB, HIDDEN, generator=random),
        head=torch.randn(DRAFT_VOCAB, HIDDEN, generator=random) * 0.3,
        draft_index=index,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def plain_tau(drafter: Drafter, corpus: Corpus, tree: TreeShape) -> float:
    rounds = emitted = 0
    for index in range(len(corpus.dialogues)):
        start, end = corpus.dialogues.offsets[index : index + 2]
        ids = corpus.dialogues.ids[start:end].tolist()
        root = int(corpus.dialogues.answer_mask[start:end].argmax())
        while root < len(ids) - 1:
            tokens, parents, _ = reference_round(
                drafter,
                tree,
                corpus.embeddings[drafter.draft_ids],
                corpus.head,
                corpus.embeddings[ids[1 : root + 1]],
                corpus.view.features[start : start + root].float(),
                torch.zeros(tree.depth, len(corpus.head)),
            )
            node, accepted = 0, 0
            while True:
                children = [i for i, parent in enumerate(parents, start=1) if parent == node]
                following = ids[root + accepted + 1 : root + accepted + 2]
                hits = [child for child in children if [tokens[child - 1]] == following]
                if not hits:
                    break
                node, accepted = hits[0], accepted + 1
            rounds += 1
            emitted += min(accepted + 1, len(ids) - 1 - root)
            root += accepted + 1
    return emitted / rounds


@pytest.mark.parametrize("tree", [TreeShape(3, 8, 60), TreeShape(4, 1, 4)])
@pytest.mark.parametrize(
    ("specialists", "choices"),
    [(1, {}), (2, {"fusion": "gated", "alignment": "split"}), (1, {"drafting": "parallel", "num_masks": 3})],
)
def test_the_walk_equals_rounds_from_scratch(
    specialists: int, choices: dict[str, Any], tree: TreeShape
) -> None:
    drafter = random_drafter(specialists, None if specialists == 1 else 1, **choices)
    corpus = make_corpus(drafter)
    expected = plain_tau(drafter, corpus, tree)
    assert tree_taus(drafter, corpus, [tree])[tree] == pytest.approx(expected)
    if tree.nodes == 60:
        assert expected > 1.1  # or nothing was accepted, and nothing shown


def test_trees_beyond_the_masks_are_left_out() -> None:
    drafter = random_drafter(drafting="parallel", num_masks=2)
    trees = TreeShape(3, 2, 6), TreeShape(4, 2, 6)
    assert tree_taus(drafter, make_corpus(drafter), trees).keys() == {trees[0]}
