"""A backward pass in Python: torch's own engine asks the driver for streams of every device it meets.

The same nodes are called, in the order of torch's engine: each after all that it gets gradients from. Hooks
of tensors and of nodes are not run.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

__all__ = ["python_backward"]


class _Held:
    """A tensor that is kept for the backward pass, until its node has run."""

    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value: Tensor | None = value


class _Pass:
    """One backward pass.

    Args:
        roots: edges into the graph.
        wanted: edges whose gradients are asked for; None: leaves get theirs in `grad`.
        accumulates: leaves get theirs in `grad`; those of `wanted` alone, where there are any.
        opened: what nodes have unpacked since the last node.
    """

    def __init__(
        self,
        roots: Sequence[GradientEdge],
        wanted: Sequence[GradientEdge] | None,
        opened: list[_Held],
        *,
        accumulates: bool,
        keeps: bool,
    ) -> None:
        self.wanted = None if wanted is None else [(edge.node, edge.output_nr) for edge in wanted]
        self.accumulates, self.keeps, self.opened = accumulates, keeps, opened
        self.found: dict[tuple[Any, int], Tensor] = {}
        self.buffers: dict[Any, list[Tensor | None]] = {}
        self.waiting = _dependencies([edge.node for edge in roots])
        self.needed = (
            None if self.wanted is None else _leading_to({node for node, _ in self.wanted}, self.waiting)
        )

    def add(self, node: Any, place: int, gradient: Tensor | None) -> None:
        """A gradient arrives at an input of a node."""
        held = self.buffers.setdefault(node, [None] * len(node._input_metadata))
        if gradient is not None:
            gradient = _fitting(gradient, node._input_metadata[place])
            before = held[place]
            held[place] = gradient if before is None else before + gradient

    def run(self, start: Sequence[Any]) -> None:
        """Call all nodes that are reached from `start`."""
        ready = [node for node in dict.fromkeys(start) if self.waiting[node] == 0]
        while ready:
            ready.sort(key=lambda node: node._sequence_nr())
            node = ready.pop()
            gradients = self.buffers.pop(node, [None] * len(node._input_metadata))
            for place, value in enumerate(gradients):
                if self.wanted is not None and (node, place) in self.wanted and value is not None:
                    self.found[node, place] = value
            following = [edge for edge in node.next_functions if edge[0] is not None]
            for edge, gradient in zip(following, self._call(node, gradients, len(following)), strict=True):
                self.add(edge[0], edge[1], gradient)
            for following_node, _ in following:
                self.waiting[following_node] -= 1
                if self.waiting[following_node] == 0:
                    ready.append(following_node)

    def _call(self, node: Any, gradients: list[Tensor | None], number: int) -> list[Tensor | None]:
        """What a node gives to the nodes that follow: nothing, where that is not needed."""
        nothing: list[Tensor | None] = [None] * number
        is_leaf = hasattr(node, "variable")
        if all(value is None for value in gradients):
            return nothing
        if is_leaf:
            if self.accumulates and (self.wanted is None or (node, 0) in self.wanted):
                node(*gradients)
            return nothing
        if self.needed is not None and node not in self.needed:
            return nothing
        result = _called(node, gradients)
        if not self.keeps:
            for held in self.opened:
                held.value = None
        self.opened.clear()
        return result


def _dependencies(roots: Sequence[Any]) -> dict[Any, int]:
    """How many edges lead to every node that can be reached."""
    found: dict[Any, int] = dict.fromkeys(roots, 0)
    stack = list(found)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is None:
                continue
            if node not in found:
                found[node] = 0
                stack.append(node)
            found[node] += 1
    return found


def _leading_to(targets: set[Any], nodes: dict[Any, int]) -> set[Any]:
    """The nodes from which a target can be reached; targets that lead to no other are not among them."""
    before: dict[Any, list[Any]] = {}
    for node in nodes:
        for following, _ in node.next_functions:
            if following is not None:
                before.setdefault(following, []).append(node)
    found: set[Any] = set()
    stack = [node for target in targets for node in before.get(target, ())]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += before.get(node, ())
    return found


def _fitting(gradient: Tensor, metadata: Any) -> Tensor:
    """A gradient as the input that it is of: its shape and dtype, and on its device."""
    if gradient.device != metadata.device and gradient.ndim > 0:
        message = f"invalid gradient: expected device {metadata.device} but got {gradient.device}"
        raise RuntimeError(message)
    if gradient.shape != metadata.shape:
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient.to(metadata.device, metadata.dtype)


def _called(node: Any, gradients: list[Tensor | None]) -> list[Tensor | None]:
    """A node's gradients of its inputs that have a node."""
    flags = getattr(node, "needs_input_grad", None)
    if flags is None:
        result = node(*gradients)
        outputs = result if isinstance(result, tuple) else (result,)
        return [
            value for value, edge in zip(outputs, node.next_functions, strict=True) if edge[0] is not None
        ]
    # A function written in Python: it is given zeros for what did not arrive, and returns one gradient per
    # argument, of which those of tensors that need one have a node.
    given = [
        torch.zeros(about.shape, dtype=about.dtype, device=about.device) if value is None else value
        for value, about in zip(gradients, node._input_metadata, strict=True)
    ]
    result = node.apply(*given)
    outputs = result if isinstance(result, tuple) else (result,)
    return [value for value, is_needed in zip(outputs, flags, strict=True) if is_needed]


@contextlib.contextmanager
def python_backward() -> Iterator[None]:
    """`backward` and `torch.autograd.grad` without torch's engine."""
    opened: list[_Held] = []
    number = [-1, 0]  # of the pass that runs, and of all so far: checkpointing recomputes once per pass

    def open_(held: _Held) -> Tensor:
        if held.value is None:
            message = "Trying to backward through the graph a second time"
            raise RuntimeError(message)
        opened.append(held)
        return held.value

    def running() -> int:
        return number[0]

    def run_backward(
        outputs: Sequence[Tensor | GradientEdge],
        gradients: Sequence[Tensor | None],
        keep_graph: bool,
        create_graph: bool,
        inputs: Sequence[Tensor | GradientEdge],
        allow_unreachable: bool = False,
        accumulate_grad: bool = False,
    ) -> tuple[Tensor | None, ...]:
        roots, wanted = [_edge(value) for value in outputs], [_edge(value) for value in inputs] or None
        held, opened[:] = list(opened), []
        before, number[0], number[1] = number[0], number[1], number[1] + 1
        try:
            one = _Pass(roots, wanted, opened, accumulates=accumulate_grad, keeps=keep_graph)
            for edge, gradient in zip(roots, gradients, strict=True):
                one.add(edge.node, edge.output_nr, gradient)
            with torch.set_grad_enabled(create_graph):
                one.run([edge.node for edge in roots])
        finally:
            number[0], opened[:] = before, held
        if accumulate_grad:
            return ()
        found = tuple(one.found.get(place) for place in one.wanted or ())
        if not allow_unreachable and any(value is None for value in found):
            message = "One of the differentiated Tensors appears to not have been used in the graph."
            raise RuntimeError(message)
        return found

    with (
        mock.patch.object(torch.autograd, "_engine_run_backward", run_backward),
        mock.patch.object(torch._C, "_current_graph_task_id", running),
        torch.autograd.graph.saved_tensors_hooks(_Held, open_),
    ):
        yield


def _edge(value: Tensor | GradientEdge) -> GradientEdge:
    return value if isinstance(value, GradientEdge) else get_gradient_edge(value)
