"""The checks that `poss-export verify` makes with a bundle's own engines."""

import math
from collections import abc
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np

from poss_export.costs import Costs, Fingerprint
from poss_export.evaluation import laws, metrics
from poss_export.evaluation.answers import answer
from poss_export.evaluation.differences import SCORE_TOLERANCE, TOLERANCE
from poss_export.evaluation.distribution import invented_round, node_chances
from poss_export.evaluation.equality import Divergence, Verdict, find_divergence, judge
from poss_export.manifest import Manifest
from poss_export.progress import Report
from poss_export.prompts import Prompt
from poss_export.runtime.answers import answer_ids
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.generation import Generation
from poss_export.runtime.loop import prefill
from poss_export.runtime.request import Request
from poss_export.runtime.sampling import GREEDY, Logits, Sampling
from poss_export.runtime.sequence import Sequence
from poss_export.runtime.sessions.base import DraftSession, Ints, TargetSession
from poss_export.runtime.tree import DraftTree
from poss_export.runtime.verify import verifier

_SAMPLINGS = (Sampling(temperature=1.0), Sampling(temperature=0.8, top_k=40, top_p=0.95))
SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=0)  # whose tokens are compared
_TREES = 2  # that the distribution is tested on
_FALSE_ALARM = 1e-4  # chance that the distribution test refuses a right sampler

NO_DRAFTER = "the bundle has no drafter"
NOT_CLAIMED = "not claimed of a quantised graph"
NOT_AT_ONCE = "not claimed of this bundle"


@dataclass(frozen=True)
class Check:
    """What a check found; `passed` None: it was skipped, `detail` says why.

    `notes` are single cases, with their prompts. `figures`: what was measured, as plain JSON values.
    """

    name: str
    passed: bool | None
    detail: str
    notes: tuple[str, ...] = ()
    figures: abc.Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def within(cls, name: str, difference: float, allowed: float, unclaimed: str = "") -> "Check":
        """Return the check that a difference is allowed; `unclaimed`: why it is told and not judged."""
        detail = f"difference {difference:.1e}, allowed {allowed:.0e}"
        figures = {"difference": _finite(difference), "allowed": allowed}
        if unclaimed:
            return cls(name, None, f"{unclaimed}: {detail}", figures=figures)
        return cls(name, difference <= allowed, detail, figures=figures)


@dataclass(frozen=True)
class Verification:
    """All checks of a bundle, what ran it, and what its rounds cost, where that was asked for."""

    manifest: Manifest
    checks: tuple[Check, ...]
    engine: Fingerprint
    costs: Costs | None = None

    @property
    def failed(self) -> bool:
        """Whether any check did."""
        return any(check.passed is False for check in self.checks)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no other numbers


def check_cache_laws(bundle: Bundle) -> list[Check]:
    """Check every law of `laws` on random tokens."""
    manifest, target, drafter = bundle.manifest, bundle.target, bundle.drafter
    precision, vocab = manifest.precision, manifest.target.config.vocab_size
    tokens = np.random.default_rng(0).integers(0, vocab, laws.TOKENS)
    exactness = manifest.exactness

    def law(name: str, difference: float, chain: bool) -> Check:
        tie = exactness.tie(chain)
        allowed = max(TOLERANCE[precision], tie or 0)
        return Check.within(name, difference, allowed, NOT_CLAIMED if tie is None else "")

    def beside(difference: float) -> Check:
        measured = manifest.beside is not None
        tie, claimed = exactness.tie(chain=True, beside=measured), exactness.claims(chain=True)
        allowed = 0.0 if measured and tie == 0 else max(TOLERANCE[precision], tie or 0)
        unclaimed = "" if tie is not None else (NOT_AT_ONCE if claimed else NOT_CLAIMED)
        return Check.within("beside others = alone", difference, allowed, unclaimed)

    def draft(name: str, law: abc.Callable[[TargetSession, DraftSession, Ints], float]) -> Check:
        if drafter is None:
            return Check(name, None, NO_DRAFTER)
        unclaimed = NOT_CLAIMED if "draft" in manifest.quantisation else ""
        return Check.within(name, law(target, drafter, tokens), SCORE_TOLERANCE[precision], unclaimed)

    found = [
        Check.within("next token = highest logit", laws.next_token_is_likeliest(target, tokens), 0),
        law("n tokens = n steps", laws.steps_equal_one_call(target, tokens), chain=True),
        law("tree = its paths", laws.tree_equals_its_paths(target, tokens), chain=False),
        law("commit = fresh run", laws.commit_equals_fresh_run(target, tokens), chain=False),
        draft("draft rows at once = in parts", laws.draft_parts_equal_one_call),
    ]
    if target.slots > 1:
        found += [
            beside(laws.beside_others_equals_alone(target, tokens)),
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
    return _check_equality(name, bundle, prompts, SAMPLED, max_new_tokens, report)


def check_together(
    bundle: Bundle, prompts: abc.Sequence[Prompt], max_new_tokens: int, report: Report
) -> Check:
    """Check the same of greedy answers in all slots at once; prompts come again to fill them."""
    name = "at once: speculative = target-only"
    report(name)
    ids, plain = list[list[int]](), list[Generation]()
    for prompt in prompts:
        first = next(bundle.conversation(prompt, raw=not bundle.chats))
        ids.append(first.prompt_ids.tolist())
        alone = answer(bundle, ids[-1], max_new_tokens, target_only=True)
        plain.append(replace(alone, prompt=prompt.turns[0]))
    asked = [*islice(cycle(ids), max(len(ids), bundle.target.slots))]
    ours = answer_ids(bundle, asked, max_new_tokens=max_new_tokens)
    beside = bundle.manifest.beside is not None
    cases = [
        _case(bundle, each, alone, made, GREEDY, beside)
        for each, alone, made in zip(asked, cycle(plain), ours, strict=False)
    ]
    return _judged(name, cases)


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
    ours: Generation
    claimed: bool  # the answers must be equal
    divergence: Divergence | None
    verdict: Verdict

    @property
    def kind(self) -> Literal["near-tie", "mismatch"]:
        """What a divergence is, whether or not equality is claimed."""
        return "near-tie" if self.verdict == "near-tie" else "mismatch"

    def note(self) -> str:
        """Return where the answers part."""
        assert self.divergence is not None
        return (
            f"{self.kind} at token {self.divergence.position}, gap {self.divergence.gap:.1e}: {self.prompt!r}"
        )


def _answered(bundle: Bundle, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> abc.Iterator[_Case]:
    """Yield a case for each turn, asked behind what the target alone answered to those before."""
    request = Request(
        max_new_tokens=max_new_tokens, sampling=sampling, target_only=True, raw=not bundle.chats
    )
    for stream in bundle.conversation(prompt, **request):
        plain, ids = stream.run(), stream.prompt_ids.tolist()
        ours = answer(bundle, ids, max_new_tokens, target_only=False, sampling=sampling)
        yield _case(bundle, ids, plain, ours, sampling)


def _case(
    bundle: Bundle,
    ids: abc.Sequence[int],
    plain: Generation,
    ours: Generation,
    sampling: Sampling,
    beside: bool = False,
) -> _Case:
    exactness, chain = bundle.manifest.exactness, ours.chains
    tie = exactness.tie(chain, beside=beside)
    found = find_divergence(bundle.target, ids, ours.token_ids, plain.token_ids, sampling, tie)
    verdict = judge(found, exactness, chain, beside=beside)
    return _Case(plain.prompt, plain.tokens, ours, tie is not None, found, verdict)


def _judged(name: str, cases: abc.Sequence[_Case]) -> Check:
    figures = _equality_figures(cases)
    detail = "{answers} answers, {tokens} tokens, {mismatches} mismatches, {near_ties} near-ties".format_map(
        figures
    )
    passed = None if not all(case.claimed for case in cases) else True
    if any(case.verdict == "mismatch" for case in cases):
        passed = False
    told = f"{NOT_CLAIMED}: {detail}" if passed is None else detail
    return Check(name, passed, told, tuple(case.note() for case in cases if case.divergence), figures)


def _equality_figures(cases: abc.Sequence[_Case]) -> dict[str, Any]:
    """Return what was counted; `rounds_by_depth` as in metrics.py, of the answers with the drafter."""
    ours = [case.ours for case in cases]
    divergences = [
        {
            "answer": number,
            "position": case.divergence.position,
            "gap": _finite(case.divergence.gap),
            "kind": case.kind,
        }
        for number, case in enumerate(cases, start=1)
        if case.divergence is not None
    ]
    return {
        "answers": len(cases),
        "tokens": sum(case.tokens for case in cases),
        "mismatches": sum(one["kind"] == "mismatch" for one in divergences),
        "near_ties": sum(one["kind"] == "near-tie" for one in divergences),
        "divergences": divergences,
        "tau": metrics.pooled_tau(ours),
        "rounds_by_depth": metrics.rounds_by_depth(ours),
    }


def check_sampling(bundle: Bundle, prompts: abc.Sequence[Prompt], draws: int, report: Report) -> Check:
    """Check that tokens sampled through trees follow the target's distribution; `draws` walks in all.

    Engines give each prompt's first tree and its logits once; the walks cost no engine. An invented tree is
    walked too: a target may be too sure, or a drafter too bad, for anything to be drawn below a root.
    """
    name = "sampling: distribution"
    report(name)
    walked = [invented_round(bundle.manifest.target.config.vocab_size)]
    if bundle.drafter is not None:
        for prompt in prompts[:_TREES]:
            first = next(bundle.conversation(prompt, raw=not bundle.chats))
            walked.append(_first_round(bundle.target, bundle.drafter, first.prompt_ids.tolist()))
    each = max(draws // (len(walked) * len(_SAMPLINGS)), 1)
    chances = [
        chance
        for tree, logits in walked
        for seed, sampling in enumerate(_SAMPLINGS)
        for chance in node_chances(tree, logits, sampling, each, seed).values()
    ]
    allowed = _FALSE_ALARM / len(chances)
    detail = (
        f"{draws} draws, {len(chances)} nodes tested, smallest p {min(chances):.2g}, allowed {allowed:.0e}"
    )
    figures = {"draws": draws, "chances": chances, "allowed": allowed}
    return Check(name, min(chances) >= allowed, detail, figures=figures)


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
