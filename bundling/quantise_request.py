"""What is asked of exported graphs: precisions, samples to learn from, and how good they must be."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from poss_export.calibration.record import Record
from poss_export.config import Thresholds
from poss_export.engine_spec import GraphName
from poss_export.evaluation.held_out import HELD_OUT, PROMPTS
from poss_export.prompts import Prompt
from poss_export.quantisation.decisions import GraphRequest


@dataclass(frozen=True)
class QuantiseRequest:
    """What is asked of a bundle's graphs, and what the result is measured by.

    Without samples a build records rounds itself. `contest`: the quantised drafter is kept only if it is the
    faster one, because nobody asked for it.
    """

    graphs: Mapping[GraphName, GraphRequest]
    samples: Record | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    text: Path = HELD_OUT
    prompts: tuple[Prompt, ...] = PROMPTS
    contest: bool = False

    @property
    def calibration_request(self) -> dict[str, Any]:
        """What decides what is learned of a drafter, as plain JSON values."""
        tau = None if self.contest else self.thresholds.tau
        return {"samples": self._samples_sha256, "contest": self.contest, "tau": tau}

    @property
    def quality_request(self) -> dict[str, Any]:
        """What the result must reach, and what it is measured on, as plain JSON values."""
        prompts = [[*prompt.before, *prompt.turns] for prompt in self.prompts]
        return {
            "thresholds": asdict(self.thresholds),
            "text": hashlib.sha256(self.text.read_bytes()).hexdigest(),
            "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        }

    def to_dict(self) -> dict[GraphName, dict[str, Any]]:
        """Return what decides how each graph is quantised, as plain JSON values."""
        return {
            graph: {
                **asdict(wanted),
                "layers": [list(layer) for layer in wanted.layers],
                "samples": self._samples_sha256,
            }
            for graph, wanted in self.graphs.items()
        }

    @property
    def _samples_sha256(self) -> str | None:
        """The hash of the samples; None for those that a build records itself."""
        return None if self.samples is None else self.samples.sha256
