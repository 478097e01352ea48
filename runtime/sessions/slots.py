"""Rewrites a target graph of one sequence for several: their tokens lie behind each other in one row.

Everything but attention works on rows and does not know whose they are. Attention gets a node for each slot,
because GroupQueryAttention takes one sequence where several tokens follow cached ones. What a node needs
besides its rows, and comes from inputs of its sequence, is computed for each slot from inputs of that name
and the slot's number: `tree_mask.3`, `past_key_values.0.key.3`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poss_export.contract import PAST, PRESENT, GraphContract, TensorSpec
from poss_export.errors import BackendError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_PER_SLOT = ("position_ids", "tree_mask", "past_length")  # beside the caches
_ATTENTION = "GroupQueryAttention"


def slot_name(name: str, slot: int) -> str:
    """Return what an input or output of a sequence is called in a graph of several."""
    return f"{name}.{slot}"


def for_slots(contract: GraphContract, slots: int) -> GraphContract:
    """Return the contract of a target graph that was rewritten for so many slots.

    In it `seq` counts the rows of all slots; those of a slot are `seq.0`, `seq.1`, ...
    """

    def spread(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        made = []
        for spec in specs:
            if not _per_slot(spec.name):
                made.append(spec)
                continue
            for slot in range(slots):
                shape = tuple(slot_name(dim, slot) if dim == "seq" else dim for dim in spec.shape)
                made.append(TensorSpec(slot_name(spec.name, slot), spec.dtype, shape))
        return tuple(made)

    return GraphContract(spread(contract.inputs), spread(contract.outputs))


def load_for_slots(graph: Path, slots: int) -> bytes:
    """Return the target graph of a file rewritten for so many slots, its weights left where they are.

    Raises:
        BackendError: onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError(
            f"answers in several slots need onnx, which cannot be imported ({error}): "
            "pip install 'poss-export[server]', or answer in one slot",
            options=("slots",),
        ) from error
    model = onnx.load(graph, load_external_data=False)
    rewrite(model, slots)
    serialised: bytes = model.SerializeToString()
    return serialised


def rewrite(model: "ModelProto", slots: int) -> None:
    """Change a target graph of the `shared` form, in place, into one of `slots` sequences."""
    _Rewriting(model.graph, slots).run()


class _Rewriting:
    def __init__(self, graph: "GraphProto", slots: int) -> None:
        self.graph, self.slots = graph, slots
        self.maker = {name: node for node in graph.node for name in node.output}
        self.nodes: list[NodeProto] = []  # new ones, in the order of their work
        self.renamed: list[dict[str, str]] = [{} for _ in range(slots)]
        self.sizes = ""

    def run(self) -> None:
        """Rewrite all nodes, then inputs and outputs."""
        from onnx import helper

        sequence = {node.input[0] for node in self.graph.node if node.op_type == _ATTENTION}
        assert sequence, "a target graph has attention"
        lengths = []
        for slot in range(self.slots):
            length = slot_name("rows_of_slot", slot)
            self.nodes.append(
                helper.make_node("Shape", [slot_name("position_ids", slot)], [length], start=1, end=2)
            )
            lengths.append(length)
        self.sizes = "rows_of_slots"
        self.nodes.append(helper.make_node("Concat", lengths, [self.sizes], axis=0))
        for node in self.graph.node:
            if node.op_type == _ATTENTION:
                self._attention(node)
            else:
                self.nodes.append(node)
        needed = _reachable(self.nodes, [o.name for o in self.graph.output if not _per_slot(o.name)])
        nodes = [node for node in self.nodes if needed.intersection(node.output)]
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        self._spread(self.graph.input)
        self._spread(self.graph.output)

    def _attention(self, node: "NodeProto") -> None:
        """Replace an attention node by one for each slot, between a split of the rows and a concatenation."""
        from onnx import helper

        rows = self._split_rows(node)
        mixed = []
        for slot in range(self.slots):
            copy = type(node)()
            copy.CopyFrom(node)
            copy.name = slot_name(node.name, slot)
            del copy.input[:], copy.output[:]
            of_slot = [self._of_slot(name, slot) for name in node.input[3:]]
            copy.input.extend([*rows[slot], *of_slot])
            copy.output.extend(slot_name(name, slot) for name in node.output)
            mixed.append(copy.output[0])
            self.nodes.append(copy)
        self.nodes.append(helper.make_node("Concat", mixed, [node.output[0]], axis=1))

    def _split_rows(self, node: "NodeProto") -> list[list[str]]:
        """Return query, key and value of each slot; those of one product stay one, as the operator may."""
        from onnx import helper

        makers = [self.maker.get(name) for name in node.input[:3]]
        packed = makers[0]
        if (
            packed is not None
            and packed.op_type == "Split"
            and all(maker is packed for maker in makers)
            and list(packed.output) == list(node.input[:3])
        ):
            wanted = [packed.input[0]]
        else:
            wanted = list(node.input[:3])
        parts: list[list[str]] = [[] for _ in range(self.slots)]
        for name in wanted:
            outputs = [slot_name(name, slot) for slot in range(self.slots)]
            self.nodes.append(helper.make_node("Split", [name, self.sizes], outputs, axis=1))
            for slot, output in enumerate(outputs):
                parts[slot].append(output)
        return [[*part, *[""] * (3 - len(part))] for part in parts]

    def _of_slot(self, name: str, slot: int) -> str:
        """Return a value that a slot's attention reads, computed anew where it depends on the sequence."""
        if _per_slot(name):
            return slot_name(name, slot)
        if (known := self.renamed[slot].get(name)) is not None:
            return known
        maker = self.maker.get(name)
        if maker is None:
            return name  # a weight
        inputs = [self._of_slot(source, slot) for source in maker.input]
        if inputs == list(maker.input):
            return name  # a constant
        copy = type(maker)()
        copy.CopyFrom(maker)
        copy.name = slot_name(maker.name, slot)
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        for output in maker.output:
            self.renamed[slot][output] = slot_name(output, slot)
            copy.output.append(self.renamed[slot][output])
        self.nodes.append(copy)
        return self.renamed[slot][name]

    def _spread(self, values: Any) -> None:  # a list in a protocol buffer
        kept = list(values)
        del values[:]
        for value in kept:
            if not _per_slot(value.name):
                values.append(value)
                continue
            for slot in range(self.slots):
                copy = type(value)()
                copy.CopyFrom(value)
                copy.name = slot_name(value.name, slot)
                for dim in copy.type.tensor_type.shape.dim:
                    if dim.dim_param == "seq":
                        dim.dim_param = slot_name("seq", slot)
                values.append(copy)


def _per_slot(name: str) -> bool:
    return name in _PER_SLOT or name.startswith((f"{PAST}.", f"{PRESENT}."))


def _reachable(nodes: "list[NodeProto]", wanted: list[str]) -> set[str]:
    """Return the values that wanted ones are made of, and what attention writes."""
    maker = {name: node for node in nodes for name in node.output}
    found, todo = set[str](), list(wanted)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        if (node := maker.get(name)) is not None:
            todo += node.input
    return found
