"""One export of a target and its drafter, before or beside the bundle that is made of it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from poss_export.bundling.staging import link_or_copy
from poss_export.engine_spec import GraphName
from poss_export.exporters.embedding import find_embedding
from poss_export.manifest import DRAFT_IDS, GRAPHS, TARGET_GRAPH, TOKENIZER, Manifest
from poss_export.runtime.bundle import Bundle
from poss_export.runtime.sessions.ort import OrtOptions


@dataclass(frozen=True)
class Export:
    """The graphs in a folder, and the manifest that describes them."""

    folder: Path
    manifest: Manifest

    def graph(self, graph: GraphName) -> Path:
        """Return where a graph is."""
        return self.folder / GRAPHS[graph]

    def open(self, capacity: int | None = None) -> Bundle:
        """Return it as a bundle, with caches of `capacity` tokens if its form leaves that open."""
        table = find_embedding(self.folder / TARGET_GRAPH)
        target = replace(self.manifest.target, embedding=table)
        manifest = replace(self.manifest, target=target, capacity=capacity or self.manifest.capacity)
        return Bundle(self.folder, manifest, OrtOptions())

    def link(self, graphs: Iterable[GraphName], to: Path) -> None:
        """Put these graphs and what belongs to them into `to`, without a copy where the file system can."""
        names = [
            TOKENIZER,
            DRAFT_IDS,
            *(f"{GRAPHS[graph]}{end}" for graph in graphs for end in ("", ".data")),
        ]
        for name in names:
            if (self.folder / name).exists() and not (to / name).exists():
                link_or_copy(self.folder / name, to / name)
