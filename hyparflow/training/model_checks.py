"""What is found out about a model before its first steps, and remembered for the next calls.

Errors are the same on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.world import World
from hyparflow.engine.gradients.overwritten import check_overwritten
from hyparflow.engine.rank_engine import RankEngine
from hyparflow.engine.trials.layer_checks import require_means, require_rows, require_sums
from hyparflow.engine.trials.position_sums import require_additive_positions
from hyparflow.engine.trials.row_findings import find_row_faults
from hyparflow.engine.trials.seen import Look, seen_labels
from hyparflow.engine.trials.sums import require_additive, require_weights
from hyparflow.model.experts.expert_checks import check_balance
from hyparflow.model.keras_internals.compiled import has_overridden, symbolic_batch
from hyparflow.model.keras_internals.layers import all_layers, check_inputs
from hyparflow.model.keras_internals.optimizer import check_known
from hyparflow.model.own_layers import own_layers
from hyparflow.training import notices
from hyparflow.training.call import Call
from hyparflow.training.checks import check_labels, check_state
from hyparflow.training.first_labels import first_labels

__all__ = ["ModelChecks"]


class ModelChecks:
    """Checks of one model, each of which runs once for an engine, or for a kind of data.

    Attributes:
        sums: see `hyparflow.model.layout.ModelCut.sums`.

    Args:
        model: the user's model.
        world: all ranks.
    """

    def __init__(self, model: Any, world: World) -> None:
        self._model, self._world = model, world
        self._parted: RankEngine | None = None  # checked for batches in parts
        self._divided: RankEngine | None = None  # checked for sequences in parts
        self._trainable: RankEngine | None = None  # checked for `fit`
        self._weighted: set[str] = set()  # kinds of sample weights
        self.sums: set[tuple[int, int]] = set()

    def may_train(self, part: RankEngine | None) -> bool:
        """Whether an engine was checked for `fit`."""
        return part is not None and part is self._trainable

    def require_state(self, call: Call) -> None:
        """Check what layers, optimizer and losses keep from step to step."""
        replicas = call.options.grid.num_replicas
        try:
            check_state(self._model, call.method, replicas, call.num_microbatches)
            check_balance(self._model, call.method, call.num_microbatches)
            if call.method == "fit":
                check_overwritten(self._model, replicas * call.num_microbatches)
        except ValueError as error:
            raise abort.mark_collective(error) from None

    def require_labels(self, call: Call, specs: Any) -> None:
        """Check that a stream has labels; its parts are known by now."""
        if specs[1] is None and call.method != "predict":
            with abort.alike():
                check_labels(self._model, None, call.method)

    def require_inputs(self, specs: Any, where: str = "") -> None:
        """Check that the data fit the model, before any message; the same on all ranks."""
        inputs = [spec for spec in keras.tree.flatten(specs[0]) if spec is not None]
        unknown = any(None in s.shape[1:] or s.dtype == "string" for s in inputs)
        if unknown or not self._model.built:
            return
        try:
            zeros = keras.tree.map_structure(lambda spec: spec.zeros(), specs[0])
            check_inputs(self._model, zeros)
        except ValueError as error:
            found = ValueError(f"{where}{error}") if where else error
            raise abort.mark_collective(found) from None

    def require_optimizer(self, part: RankEngine) -> None:
        """Check, once per engine, that the optimizer knows the weights, as Keras's step does."""
        if part.learner is not None and part is not self._trainable:
            with abort.alike():
                check_known(self._model.optimizer, self._model.trainable_variables)
        self._trainable = part

    def require_weights(self, part: RankEngine, specs: Any) -> None:
        """Check sample weights, once per kind; the same on all ranks."""
        kind = repr(keras.tree.map_structure(lambda s: s and (s.shape[1:], s.dtype), specs[1:]))
        if specs[2] is None or part.losses is None or kind in self._weighted:
            return
        symbolic = symbolic_batch(self._model, specs)
        if symbolic is not None and not has_overridden(self._model, "compute_loss"):
            try:
                require_weights(part.losses.terms, symbolic)
            except ValueError as error:
                raise abort.mark_collective(error) from None
        self._weighted.add(kind)

    def require_parts(self, part: RankEngine, call: Call, specs: Any, stream: Any) -> None:
        """If batches are parted, check once per engine that the model adds up. Collective."""
        split = call.options.grid.num_replicas * call.num_microbatches > 1
        if not split or part is self._parted:
            return
        self._world.board.write("trials whether batches can be parted")
        try:
            self._check_layers(part, call, specs)
            self._check_sums(part, call, stream)
        except ValueError as error:
            raise abort.mark_collective(error) from None
        self._parted = part

    def require_positions(self, part: RankEngine, call: Call, specs: Any, stream: Any) -> None:
        """If sequences are divided, check once per engine that the model may be. Collective."""
        if not call.options.divides_sequences or part is self._divided:
            return
        self._world.board.write("trials whether sequences can be divided")
        inputs = [x for x in keras.tree.flatten(specs[0]) if x is not None and len(x.shape) > 1]
        lengths = [x.shape[1] for x in inputs]
        try:
            if lengths and None not in lengths:
                for stage in part.sequences:
                    stage.require(max(lengths))
            if part.losses is not None:
                require_additive_positions(
                    self._model, part.losses.terms, part.losses.symbolic, *self._looks(call, stream)
                )
        except ValueError as error:
            raise abort.mark_collective(error) from None
        self._divided = part

    def note_rebuilt(self, part: RankEngine) -> None:
        """Note that an engine takes the place of one whose model was found to add up."""
        self._parted = part

    def _check_layers(self, part: RankEngine, call: Call, specs: Any) -> None:
        names = own_layers(self._model)
        if not names:
            return
        found = None
        if self._world.rank == LEADER:
            found = find_row_faults(self._model, specs[0], call.rows, call.part_rows)
        found = self._world.broadcast_object(found, LEADER, "what layers do with rows")
        replicas, count = call.options.grid.num_replicas, call.num_microbatches
        parts = f"{replicas} replicas x {count} micro-batches"
        require_rows(names, found, call.rows, parts)
        require_sums(names, found)
        layers = all_layers(self._model)
        if "train_step" in part.own or "test_step" in part.own:
            require_means(found, [layer.name for layer in layers])
        self.sums = {(id(layers[number]), position) for number, position in found.sums}
        if self._world.rank == LEADER:
            notices.announce_layers(names, found)

    def _check_sums(self, part: RankEngine, call: Call, stream: Any) -> None:
        if part.losses is None or "train_step" in part.own:
            return
        require_additive(
            self._model,
            part.losses.terms,
            part.losses.symbolic,
            *self._looks(call, stream),
        )

    def _looks(self, call: Call, stream: Any) -> tuple[Look, Callable[[Any], list[Any]]]:
        """What gives the user's first labels, and what joins what the ranks found."""
        return (
            lambda: seen_labels(first_labels(call, stream, self._world.rank)),
            lambda mine: self._world.all_gather_objects(mine, "what losses and metrics do"),
        )
