"""A Keras model as one flat, ordered list of calls.

`FlatGraph` walks the model as its own `call` would, opens nested models, and records every call as
a `GraphCall` (`hyparflow.model.graph_call`). The user's own graph is left as it is; a layer that is
called twice becomes two calls of the same layer.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import keras

from hyparflow.model.graph_call import CallContext, GraphCall, Standardize
from hyparflow.model.keras_internals.layers import (
    all_layers,
    execution_order,
    filled_in,
    opened_graph,
    state_variables,
)
from hyparflow.model.operation_cost import OperationWork, crossing_cost, work_of
from hyparflow.pipeline.operations import Operation, OperationGraph

__all__ = ["FlatGraph", "GraphFunction"]

# (tensors, what the calls of this run share) -> tensors
GraphFunction = Callable[[list[Any], CallContext], list[Any]]


class FlatGraph:
    """The calls of a model in execution order, with their tensors numbered.

    Attributes:
        model: the user's model.
        functional: its Keras graph.
        calls: the calls, each a `keras.Operation` of its own.
        tensors: symbolic tensors by number; the model's inputs come first.
        arguments: of each call, args and kwargs, with symbolic tensors in them.
        inputs, outputs: numbers of the model's flat inputs and outputs.
    """

    def __init__(self, model: Any, functional: Any) -> None:
        self.model = model
        self.functional = functional
        self.calls: list[GraphCall] = []
        self.tensors: list[Any] = []
        self._ids: list[int] = []  # of the tensors that arguments hold
        self._numbers: dict[int, int] = {}
        self._calls_of: dict[str, int] = {}
        self.arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._reads: list[tuple[int, ...]] = []
        self._makes: list[tuple[int, ...]] = []
        self._origins: dict[int, tuple[int, int]] = {}  # tensor -> the call that makes it, position
        entries = [_like(x) for x in functional.inputs]
        self.inputs = tuple(self._number(x) for x in entries)
        outputs = self._expand(functional, entries)
        self.outputs = tuple(self._numbers[id(x)] for x in outputs)

    def _number(self, tensor: Any) -> int:
        self._numbers[id(tensor)] = len(self.tensors)
        self.tensors.append(tensor)
        self._ids.append(id(tensor))
        return len(self.tensors) - 1

    def _unique(self, name: str) -> str:
        """A name for one more call of the operation `name`; Keras wants them all different."""
        times = self._calls_of[name] = self._calls_of.get(name, 0) + 1
        return name if times == 1 else self._unique(f"{name}_call{times}")

    def _expand(self, functional: Any, inputs: Sequence[Any]) -> list[Any]:
        """Record the calls of `functional` on `inputs`; return its flat outputs."""
        values = {id(old): new for old, new in zip(functional.inputs, inputs, strict=True)}
        for node in execution_order(functional):
            if any(id(x) not in values for x in node.input_tensors):
                continue  # not computable from the inputs: Keras skips it too
            args, kwargs = node.arguments.fill_in(values)
            nested = self._openable(node.operation, args, kwargs)
            if nested is None:
                outputs = self._record(node.operation, node.outputs, args, kwargs)
            else:
                outputs = self._expand(nested, self._enter(nested, args[0]))
            values.update({id(old): new for old, new in zip(node.outputs, outputs, strict=True)})
        return [values[id(x)] for x in functional.outputs]

    @staticmethod
    def _openable(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any | None:
        """The graph of a nested model, if the call passes it inputs and nothing else."""
        plain = len(args) == 1 and all(
            name == "training" or all(leaf is None for leaf in keras.tree.flatten(value))
            for name, value in kwargs.items()  # masks come as one None per input
        )
        return opened_graph(operation) if plain else None

    def _enter(self, nested: Any, argument: Any) -> list[Any]:
        """The nested model's inputs for `argument`, standardized only if that changes them."""
        flat = keras.tree.flatten(argument)
        same_order = not isinstance(argument, dict)
        if same_order and len(flat) == len(nested.inputs):
            pairs = zip(flat, nested.inputs, strict=True)
            if all(a.dtype == b.dtype and len(a.shape) == len(b.shape) for a, b in pairs):
                return flat
        standardize = Standardize(nested)
        return self._record(standardize, standardize.compute_output_spec(argument), (argument,), {})

    def _record(
        self, operation: Any, specs: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        call = GraphCall(operation, specs, self._unique(operation.name))
        outputs = keras.tree.flatten(call(*args, **kwargs))
        reads = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]
        self.calls.append(call)
        self.arguments.append((args, kwargs))
        self._reads.append(tuple(dict.fromkeys(self._numbers[id(x)] for x in reads)))
        made = tuple(self._number(x) for x in outputs)
        self._origins.update({n: (len(self._makes), p) for p, n in enumerate(made)})
        self._makes.append(made)
        return outputs

    def origin(self, index: int, tensor: Any) -> tuple[int, int]:
        """Where a tensor that call `index` reads was made: how many calls before, and which output.

        For an input of the model, (0, its position).
        """
        number = self._numbers[id(tensor)]
        if number in self._origins:
            call, position = self._origins[number]
            return index - call, position
        return 0, number

    def maker(self, tensor: int) -> str:
        """The name of the call that makes a tensor."""
        return next(
            c.name for c, made in zip(self.calls, self._makes, strict=True) if tensor in made
        )

    @staticmethod
    def call_of(error: BaseException) -> str:
        """The name of the call in which an error was raised, or ""."""
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        owners = (frame.f_locals.get("self") for frame in frames)
        return next((owner.name for owner in owners if isinstance(owner, GraphCall)), "")

    def at_length(self, length: int) -> FlatGraph:
        """The same graph, whose tensors have this length wherever the model leaves one open."""
        sized = copy.copy(self)
        sized.tensors = [_sized(tensor, length) for tensor in self.tensors]
        return sized

    def ancestors(self, tensor: int) -> set[int]:
        """The numbers of the tensors that a tensor is computed from, with its own."""
        found, waiting = set[int](), [tensor]
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                if number in self._origins:
                    waiting += self._reads[self._origins[number][0]]
        return found

    def function(
        self, inputs: Sequence[int], outputs: Sequence[int], operations: Sequence[int]
    ) -> GraphFunction:
        """A function from tensors `inputs` to tensors `outputs`, by `operations`; all are numbers.

        It makes the calls in their order in the whole model, also those whose results nobody takes,
        as Keras does for an unused output of a nested model: they may change state, and add to the
        loss. (A `keras.Function` leaves them out; it copies each call, and looks for the name of
        each among all.) An output that is an input is passed on as it is.
        """
        taken = [self._ids[n] for n in inputs]
        given = [self._ids[n] for n in outputs]
        calls = [
            (self.calls[index], [self._ids[n] for n in self._makes[index]]) for index in operations
        ]

        def run(tensors: list[Any], context: CallContext) -> list[Any]:
            values = dict(zip(taken, tensors, strict=True))
            for call, made in calls:
                args, kwargs = filled_in(call, values)
                results = keras.tree.flatten(call.call_in(context, *args, **kwargs))
                values.update(zip(made, results, strict=False))  # as Keras pairs them
            return [values[made] for made in given]

        return run

    def shapes_follow_rows(self) -> bool:
        """Whether no known operation chooses the shape of its output by values of its inputs.

        Keras's layers do not; the user's own code may (`boolean_mask`), and so do `nonzero` and
        indexing with a tensor.
        """
        for call, reads in zip(self.calls, self._reads, strict=True):
            kind = type(call.operation).__name__
            own = any(not type(sub).__module__.startswith("keras.") for sub in _parts(call))
            if own or kind in ("Lambda", "Nonzero", "NonZero"):
                return False
            if kind == "GetItem" and len(reads) > 1:
                return False
        return True

    def variables(self, operations: range | Sequence[int]) -> list[Any]:
        """The distinct variables of these operations' layers, in order."""
        found: dict[int, Any] = {}
        for index in operations:
            for layer in self.calls[index].layers:
                found.update({id(variable): variable for variable in layer.variables})
        return list(found.values())

    def operation_graph(self, trainable: Sequence[Any]) -> OperationGraph:
        """The graph as pure data, for `hyparflow.pipeline.partition`.

        Args:
            trainable: the variables that will be trained; tensors that depend on none of them
                need no gradient.
        """
        trained = {id(variable) for variable in trainable}
        needs: set[int] = set()
        operations = []
        edges = zip(self._reads, self._makes, strict=True)
        for index, (call, (reads, makes)) in enumerate(zip(self.calls, edges, strict=True)):
            variables = [v for layer in call.layers for v in layer.variables]
            if needs.intersection(reads) or any(id(v) in trained for v in variables):
                needs.update(n for n in makes if "float" in self.tensors[n].dtype)
            state = [v for layer in call.layers for v in state_variables(layer)]
            operations.append(
                Operation(
                    name=call.name,
                    inputs=reads,
                    outputs=makes,
                    cost=self.work(index).cost,
                    state=frozenset(id(v) for v in state),
                    crossing=tuple(crossing_cost(self.tensors[n]) for n in makes),
                )
            )
        return OperationGraph(tuple(operations), self.inputs, self.outputs, frozenset(needs))

    def work(self, index: int) -> OperationWork:
        """The work of a call."""
        read = [self.tensors[n] for n in self._reads[index]]
        made = [self.tensors[n] for n in self._makes[index]]
        return work_of(self.calls[index], read, made)


def _sized(tensor: Any, length: int) -> Any:
    rows, *rest = tensor.shape
    shape = (rows, *(length if size is None else size for size in rest))
    return keras.KerasTensor(shape, tensor.dtype, name=tensor.name)


def _parts(call: GraphCall) -> list[Any]:
    """The operation of a call and every layer inside it, without hyparflow's own."""
    if isinstance(call.operation, Standardize):
        return []
    return [sub for layer in call.layers for sub in all_layers(layer)] or [call.operation]


def _like(tensor: Any) -> Any:
    """A new input of the shape and dtype of `tensor`."""
    return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, sparse=tensor.sparse)
