"""The checks that `poss-export verify` makes with a bundle's own engines."""

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from poss_export.evaluation import laws
from poss_export.evaluation.answers import answer
from poss_export.evaluation.differences import SCORE_TOLERANCE, TOLERANCE
from poss_export.evaluation.distribution import node_chances
from poss_export.evaluation.equality import Divergence, Verdict, find_divergence, judge
from poss_export.progress import Report
from poss_export.prompts import Prompt
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.loop import prefill
from poss_export.runtime.request import Request
from poss_export.runtime.sampling import GREEDY, Logits, Sampling
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import DraftSession, Ints, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import verifier

_SAMPLINGS = (Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=40, top_p=0.95))
_SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=0)  # whose tokens are compared
_TREES = 2  # that the distribution is tested on
_FALSE_ALARM = 1e-4  # chance that the distribution test refuses a right sampler

NO_DRAFTER = "the bundle has no drafter"
_NOT_CLAIMED = "not claimed of a quantised graph"


@dataclass(frozen=True)
class Check:
    """What a check found; `passed` None: it was skipped, `detail` says why. `notes` are single cases."""

    name: str
    passed: bool | None
    detail: str
    notes: tuple[str, ...] = ()


def check_cache_laws(bundle: Bundle) -> list[Check]:
    """Check every law of `cache_laws` on random tokens."""
    manifest, target, drafter = bundle.manifest, bundle.target, bundle.drafter
    precision, vocab = manifest.precision, manifest.target.config.vocab_size
    tokens = np.random.default_rng(0).integers(0, vocab, laws.TOKENS)
    exactness = manifest.exactness

    def check(name: str, difference: float, allowed: float, claimed: bool) -> Check:
        detail = f"difference {difference:.1e}, allowed {allowed:.0e}"
        if not claimed:
            return Check(name, None, f"{_NOT_CLAIMED}: {detail}")
        return Check(name, difference <= allowed, detail)

    def law(name: str, difference: float, chain: bool) -> Check:
        tie = exactness.tie(chain)
        return check(name, difference, max(TOLERANCE[precision], tie or 0), tie is not None)

    def draft(name: str, law: Callable[[TargetSession, DraftSession, Ints], float]) -> Check:
        if drafter is None:
            return Check(name, None, NO_DRAFTER)
        claimed = "draft" not in manifest.quantisation
        return check(name, law(target, drafter, tokens), SCORE_TOLERANCE[precision], claimed)

    found = [
        law("n tokens = n steps", laws.steps_equal_one_call(target, tokens), chain=True),
        law("tree = its paths", laws.tree_equals_its_paths(target, tokens), chain=False),
        law("commit = fresh run", laws.commit_equals_fresh_run(target, tokens), chain=False),
        draft("draft rows at once = in parts", laws.draft_parts_equal_one_call),
    ]
    if target.slots > 1:
        alone = laws.beside_others_equals_alone(target, tokens)
        found += [
            law("beside others = alone", alone, chain=True),
            draft("draft beside others = alone", laws.draft_beside_others_equals_alone),
        ]
    return found


def check_greedy(bundle: Bundle, prompts: abc.Sequence[Prompt], max_new_tokens: int, report: Report) -> Check:
    """Check that greedy speculative and target-only decoding give the same tokens, by `equality.judge`.

    Where nothing is claimed the check is skipped, and what differs is told.
    """
    name = "greedy: speculative = target-only"
    return _check_equality(name, bundle, prompts, GREEDY, max_new_tokens, report)


def check_sampled(
    bundle: Bundle, prompts: abc.Sequence[Prompt], max_new_tokens: int, report: Report
) -> Check:
    """Check the same of sampled tokens: each has a random number of its own (docs/lossless-sampling.md)."""
    name = "sampled: speculative = target-only"
    return _check_equality(name, bundle, prompts, _SAMPLED, max_new_tokens, report)


def _check_equality(
    name: str,
    bundle: Bundle,
    prompts: abc.Sequence[Prompt],
    sampling: Sampling,
    max_new_tokens: int,
    report: Report,
) -> Check:
    cases = list[_Case]()
    for number, prompt in enumerate(prompts, start=1):
        report(f"{name}, prompt {number} of {len(prompts)}")
        cases += _answered(bundle, prompt, sampling, max_new_tokens)
    return _judged(name, cases)


@dataclass(frozen=True)
class _Case:
    """A prompt that was answered with the drafter and by the target alone."""

    prompt: str
    tokens: int  # of the target's own answer
    claimed: bool  # the answers must be equal
    divergence: Divergence | None
    verdict: Verdict

    def note(self) -> str:
        """Return where the answers part."""
        assert self.divergence is not None
        kind = "near-tie" if self.verdict == "near-tie" else "mismatch"
        return f"{kind} at token {self.divergence.position}, gap {self.divergence.gap:.1e}: {self.prompt!r}"


def _answered(bundle: Bundle, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> abc.Iterator[_Case]:
    """Yield a case for each turn, asked behind what the target alone answered to those before."""
    exactness = bundle.manifest.exactness
    request = Request(
        max_new_tokens=max_new_tokens, sampling=sampling, target_only=True, raw=not bundle.chats
    )
    for stream in bundle.conversation(prompt, **request):
        plain, ids = stream.run(), stream.prompt_ids.tolist()
        ours = answer(bundle, ids, max_new_tokens, target_only=False, sampling=sampling)
        found = find_divergence(
            bundle.target, ids, ours.token_ids, plain.token_ids, sampling, exactness.tie(ours.chains)
        )
        verdict = judge(found, exactness, ours.chains)
        yield _Case(plain.prompt, plain.tokens, exactness.claims(ours.chains), found, verdict)


def _judged(name: str, cases: abc.Sequence[_Case]) -> Check:
    parted = [case for case in cases if case.divergence is not None]
    near_ties = sum(case.verdict == "near-tie" for case in parted)
    detail = (
        f"{len(cases)} answers, {sum(case.tokens for case in cases)} tokens, "
        f"{len(parted) - near_ties} mismatches, {near_ties} near-ties"
    )
    notes = tuple(case.note() for case in parted)
    if any(case.verdict == "mismatch" for case in parted):
        return Check(name, False, detail, notes)
    if not all(case.claimed for case in cases):
        return Check(name, None, f"{_NOT_CLAIMED}: {detail}", notes)
    return Check(name, True, detail, notes)


def check_sampling(bundle: Bundle, prompts: abc.Sequence[Prompt], draws: int, report: Report) -> Check:
    """Check that tokens sampled through trees follow the target's distribution; `draws` walks in all.

    Engines give each prompt's first tree and its logits once; the walks cost no engine.
    """
    name = "sampling: distribution"
    if bundle.drafter is None:
        return Check(name, None, NO_DRAFTER)
    report(name)
    prompts = prompts[:_TREES]
    each = max(draws // (len(prompts) * len(_SAMPLINGS)), 1)
    chances = list[float]()
    for prompt in prompts:
        first = next(bundle.conversation(prompt, raw=not bundle.chats))
        tree, logits = _first_round(bundle.target, bundle.drafter, first.prompt_ids.tolist())
        for seed, sampling in enumerate(_SAMPLINGS):
            chances += node_chances(tree, logits, sampling, each, seed).values()
    allowed = _FALSE_ALARM / len(chances)
    detail = (
        f"{draws} draws, {len(chances)} nodes tested, smallest p {min(chances):.2g}, allowed {allowed:.0e}"
    )
    return Check(name, min(chances) >= allowed, detail)


def _first_round(
    target: TargetSession, drafter: DraftSession, prompt_ids: abc.Sequence[int]
) -> tuple[DraftTree, Logits]:
    """Return the tree after a prompt and the target's logits after each of its nodes."""
    target.reset()
    drafter.reset()
    sequence = Sequence(np.asarray(prompt_ids), verifier(GREEDY))
    prefill(target, drafter, sequence)
    tree = sequence.draft(drafter).first(target.room())
    return tree, target.forward(tree).logits.copy()
