"""Whether rounds keep what is right: no answer shows it, for what they lose costs speed alone.

The target's own answer is proposed to it, round by round, each token behind a sibling that is wrong. All of
it must be accepted; and what the drafter draws behind such rounds must be what it draws where it reads the
same tokens afresh.
"""

from collections.abc import Sequence as Tokens
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poss_export.evaluation.answers import answer
from poss_export.evaluation.checks import NO_DRAFTER, NOT_CLAIMED, SAMPLED, Check
from poss_export.evaluation.differences import SCORE_TOLERANCE, largest, tree_difference
from poss_export.evaluation.equality import Verdict, find_divergence, judge
from poss_export.progress import Report
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.loop import read, speculate
from poss_export.runtime.planning.planner import Plan
from poss_export.runtime.round import Round
from poss_export.runtime.sampling import GREEDY, Sampling
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import PREFILL_CHUNK, DraftSession, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import verifier

_DEPTH = 3  # of proposed trees: an accepted path lies scattered over its rows
_PROMPTS = 2

ACCEPTED, AFRESH = "rounds: own tokens accepted", "rounds: drafts = afresh"


class _Knowing:
    """Proposes what it knows to be right; the drafter draws every round, and nothing of it is verified."""

    plan: Plan | None = None
    racing = False

    def __init__(self, own: Tokens[int], siblings: bool) -> None:
        """Take the target's own answer; without `siblings` trees are chains."""
        self._own, self._siblings = own, siblings
        self.proposed = self.accepted = 0  # tokens that are right
        self.drafted: tuple[int, DraftTree] | None = None  # the last tree, and how many tokens lead to it

    def read(self, prompt: NDArray[np.int64]) -> None:
        """Need nothing of the prompt."""

    def propose(self, sequence: Sequence, drafter: DraftSession | None, room: int) -> DraftTree:
        """Return a tree of the next own tokens."""
        if drafter is None:
            sequence.take_unread()
        else:
            self.drafted = sequence.position, sequence.draft(drafter)
        own = np.asarray(self._own[sequence.emitted :][:_DEPTH], np.int64)
        step = 2 if self._siblings else 1
        other = np.where(own > 0, own - 1, 1)
        tokens = np.stack((other, own), axis=1)[:, -step:].flatten()
        parents = np.repeat(step * np.arange(len(own)), step)
        tree = DraftTree.with_root(sequence.root, tokens, parents, -np.arange(1.0, 1 + len(tokens)))
        tree = tree.first(room)
        self.proposed += (len(tree) - 1) // step
        return tree

    def learn(self, done: Round) -> None:
        """Count what was accepted."""
        self.accepted += done.accepted


@dataclass(frozen=True)
class _Found:
    """What rounds made of a target's own answer; `draft`: the difference of what was drafted behind them."""

    proposed: int
    accepted: int
    verdict: Verdict
    draft: float | None


def check_rounds(bundle: Bundle, prompts: Tokens[Prompt], max_new_tokens: int, report: Report) -> list[Check]:
    """Check that rounds accept the target's own tokens, and hand the drafter what they should."""
    exactness = bundle.manifest.exactness
    report("rounds of own tokens")
    found = [
        _propose_own(bundle, prompt, sampling, max_new_tokens)
        for prompt in prompts[:_PROMPTS]
        for sampling in (GREEDY, SAMPLED)
    ]
    return [_accepted(found, exactness.claims(chain=True)), _afresh(found, bundle)]


def _accepted(found: Tokens[_Found], claimed: bool) -> Check:
    proposed, accepted = sum(one.proposed for one in found), sum(one.accepted for one in found)
    detail, figures = f"{accepted} of {proposed} accepted", {"proposed": proposed, "accepted": accepted}
    if not claimed:
        return Check(ACCEPTED, None, f"{NOT_CLAIMED}: {detail}", figures=figures)
    right = all(
        one.verdict == "near-tie" or (one.verdict == "equal" and one.accepted == one.proposed)
        for one in found
    )
    return Check(ACCEPTED, right, detail, figures=figures)


def _afresh(found: Tokens[_Found], bundle: Bundle) -> Check:
    if bundle.drafter is None:
        return Check(AFRESH, None, NO_DRAFTER)
    differences = [one.draft for one in found if one.draft is not None]
    if not differences:
        return Check(AFRESH, None, "no answer went on as the target's own")
    manifest = bundle.manifest
    allowed = SCORE_TOLERANCE[manifest.precision]
    return Check.within(AFRESH, largest(differences), allowed, NOT_CLAIMED if manifest.quantisation else "")


def _propose_own(bundle: Bundle, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> _Found:
    exactness, target = bundle.manifest.exactness, bundle.target
    siblings = exactness.claims(chain=False)
    stream = next(bundle.conversation(prompt, raw=not bundle.chats))
    ids = stream.prompt_ids.tolist()
    own = answer(bundle, ids, max_new_tokens, target_only=True, sampling=sampling).token_ids
    planner = _Knowing(own, siblings)
    sequence = Sequence(stream.prompt_ids, verifier(sampling), planner=planner)
    for session in filter(None, (target, bundle.drafter)):
        session.reset()
    made = list[int]()
    for done in speculate(target, bundle.drafter, sequence):
        made += done.tokens.tolist()
        if len(made) >= len(own):
            break
    tie = exactness.tie(chain=not siblings)
    parted = find_divergence(target, ids, made[: len(own)], own, sampling, tie)
    draft = None
    if planner.drafted is not None and bundle.drafter is not None and parted is None:
        count, tree = planner.drafted
        draft = tree_difference(tree, _draft_afresh(target, bundle.drafter, [*ids, *made][:count]))
    return _Found(planner.proposed, planner.accepted, judge(parted, exactness, not siblings), draft)


def _draft_afresh(target: TargetSession, drafter: DraftSession, ids: Tokens[int]) -> DraftTree:
    """Return the tree behind ids, the root last; the drafter reads them as `DraftSession.propose` says."""
    target.reset()
    drafter.reset()
    tokens = np.asarray(ids, np.int64)
    for start, output in read(target, tokens[:-1], chunk=PREFILL_CHUNK):
        features = output.features
        tree = drafter.propose(tokens[start + 1 : start + 1 + len(features)], features)
    return tree
