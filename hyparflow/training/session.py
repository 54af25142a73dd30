"""Runs a call of `fit`, `evaluate` or `predict`: the leader runs Keras, the others follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.log import STATUS
from hyparflow.comm.portable_errors import is_faithful, portable
from hyparflow.comm.world import World
from hyparflow.engine import assembly, rank_engine
from hyparflow.engine.gradients.overwritten import check_overwritten
from hyparflow.engine.trials.layer_checks import require_means, require_rows, require_sums
from hyparflow.engine.trials.row_findings import find_row_faults
from hyparflow.engine.trials.seen import seen_labels
from hyparflow.engine.trials.sums import require_additive, require_weights
from hyparflow.launching.cores import announce_cores
from hyparflow.model.building import build_weights
from hyparflow.model.keras_internals.compiled import has_overridden, symbolic_batch
from hyparflow.model.keras_internals.layers import all_layers, check_inputs
from hyparflow.model.keras_internals.optimizer import check_known
from hyparflow.model.layer_names import layer_that_failed
from hyparflow.model.layout import ModelCut, cut_model
from hyparflow.model.own_layers import own_layers
from hyparflow.model.saving import use_atomic_saves
from hyparflow.options import Options
from hyparflow.tracing.collect import traced
from hyparflow.training import agreement, notices
from hyparflow.training.call import Call
from hyparflow.training.checks import check_labels, check_state
from hyparflow.training.commands import Fail, Finish, Stop
from hyparflow.training.engine_key import (
    engine_key,
    has_another_optimizer,
    require_same_weights,
)
from hyparflow.training.first_labels import first_labels
from hyparflow.training.keras_bridge import bridge
from hyparflow.training.leader_data import peek_on_leader
from hyparflow.training.left_weights import goes_to_all, take_back
from hyparflow.training.memory_check import require_memory
from hyparflow.training.progress_of_ranks import building_shown
from hyparflow.training.worker import LeaderSteps, Worker

__all__ = ["Session"]


class Session:
    """Runs calls on all ranks; functions that were compiled for one call serve the next.

    Args:
        model: the user's model.
        options: the checked parallel arguments; the engine serves all calls, with any number of
            micro-batches, schedule and kind of data.
        world: all ranks.
    """

    def __init__(self, model: Any, options: Options, world: World) -> None:
        self.model = model
        self.options = options
        self._world = world
        self._part: rank_engine.RankEngine | None = None
        self._part_key: Any = None
        self._checked_part: rank_engine.RankEngine | None = None
        self._trainable_part: rank_engine.RankEngine | None = None  # checked for `fit`
        self._checked_weights: set[str] = set()
        self._layout: ModelCut | None = None
        self._sums: set[tuple[int, int]] = set()  # see `ModelCut.sums`
        self._traced: rank_engine.RankEngine | None = None

    def layout(self) -> ModelCut:
        """How the model is cut."""
        if self._layout is None:
            self._layout = cut_model(self.model, self.options)
        return self._layout

    def run(self, call: Call, lead: Callable[[Worker, Any], Any]) -> Any:
        """Run `lead` on the leader while the others follow; its result, on every rank.

        Args:
            call: what is called.
            lead: calls Keras; takes the leader's worker and the stream to read.
        """
        with building_shown(lead, call, self._world) as led:
            return self._run(call, led)

    def _run(self, call: Call, lead: Callable[[Worker, Any], Any]) -> Any:
        if self._part is None:
            self._layout = None  # it may be outdated: trainable weights are those of now
        if self.model.built:
            self._world.board.write("the cut of the model")
            self.layout()
        self._world.board.write("the comparison of ranks")
        self._world.begin_call()
        agreement.require_same(
            self._world,
            agreement.collect(
                self.model, call.options, call.sources, call.method, call.arguments, call.rows
            ),
        )
        announce_cores(self._world)
        who = self.options.grid.describe(self._world.rank)
        STATUS.debug("hyparflow: %s begins %s of model '%s'", who, call.method, self.model.name)
        with traced(self._world, call.trace):
            return self._run_alike(call, lead)

    def _run_alike(self, call: Call, lead: Callable[[Worker, Any], Any]) -> Any:
        if "train" in call.sources:
            stream, specs = None, call.sources["train"].specs()
        else:
            stream, specs, rows = peek_on_leader(call, self._world)
            shards = call.options.grid.num_replicas if call.shards else 1
            call.rows = None if rows is None else rows * shards
            if "train" in call.shards:  # Keras gets tickets, and the leader reads like other ranks
                call.shards["train"] = (stream, call.shards["train"][1])
                stream = None
        self._check_state(call)
        self._check_labels(call, specs)
        self._check_inputs(specs)
        if "validation" in call.sources:
            self._check_inputs(call.sources["validation"].specs(), "In `validation_data`: ")
        part = self._build(call, specs, with_loss=call.method != "predict")
        to_all = goes_to_all(call, self.model, self._world)
        take_back(self.model, part.sync)
        if call.method == "fit":
            self._check_optimizer(part)
        self._check_weights(part, specs)
        part = self._check_parts(part, call, specs, stream)
        is_leader = self._world.rank == LEADER
        if is_leader and part.losses is not None and call.method == "fit":
            notices.announce(self.model, call, part.losses.terms)
        self._traced = part
        worker = Worker(self.model, part, call, self._world, to_all)
        use_atomic_saves(self.model)  # by callbacks, and after the call
        try:
            worker.start()
            result = self._lead(worker, lead, stream) if is_leader else worker.follow()
        except BaseException as error:
            if not getattr(error, "hyparflow_everywhere", False):
                abort.locate(error, self.options.grid.describe(self._world.rank))
                layers = all_layers(self.model)
                abort.locate_layer(error, layer_that_failed(error, layers))
                abort.fail(error)
            raise
        finally:
            self._world.board.write("outside of hyparflow")
        return result

    def _check_state(self, call: Call) -> None:
        replicas = call.options.grid.num_replicas
        try:
            check_state(self.model, call.method, replicas, call.num_microbatches)
            if call.method == "fit":
                check_overwritten(self.model, replicas * call.num_microbatches)
        except ValueError as error:
            raise abort.mark_collective(error) from None

    def _check_labels(self, call: Call, specs: Any) -> None:
        """Check that a stream has labels; its parts are known by now."""
        if specs[1] is None and call.method != "predict":
            with abort.alike():
                check_labels(self.model, None, call.method)

    def _check_inputs(self, specs: Any, where: str = "") -> None:
        """Check that the data fit the model, before any message; the same on all ranks."""
        inputs = [spec for spec in keras.tree.flatten(specs[0]) if spec is not None]
        unknown = any(None in s.shape[1:] or s.dtype == "string" for s in inputs)
        if unknown or not self.model.built:
            return
        try:
            zeros = keras.tree.map_structure(lambda spec: spec.zeros(), specs[0])
            check_inputs(self.model, zeros)
        except ValueError as error:
            found = ValueError(f"{where}{error}") if where else error
            raise abort.mark_collective(found) from None

    def _check_optimizer(self, part: rank_engine.RankEngine) -> None:
        """Check, once per engine, that the optimizer knows the weights, as Keras's step does."""
        if part.learner is not None and part is not self._trainable_part:
            with abort.alike():
                check_known(self.model.optimizer, self.model.trainable_variables)
        self._trainable_part = part

    def _check_weights(self, part: rank_engine.RankEngine, specs: Any) -> None:
        """Check sample weights, once per kind; the same on all ranks."""
        kind = repr(keras.tree.map_structure(lambda s: s and (s.shape[1:], s.dtype), specs[1:]))
        if specs[2] is None or part.losses is None or kind in self._checked_weights:
            return
        symbolic = symbolic_batch(self.model, specs)
        if symbolic is not None and not has_overridden(self.model, "compute_loss"):
            try:
                require_weights(part.losses.terms, symbolic)
            except ValueError as error:
                raise abort.mark_collective(error) from None
        self._checked_weights.add(kind)

    def _check_parts(
        self, part: rank_engine.RankEngine, call: Call, specs: Any, stream: Any
    ) -> rank_engine.RankEngine:
        """If batches are parted, check once per engine that the model adds up. Collective.

        Returns:
            The engine, built again if it was traced before this was known.
        """
        split = call.options.grid.num_replicas * call.num_microbatches > 1
        if not split or part is self._checked_part:
            return part
        self._world.board.write("trials whether batches can be parted")
        try:
            self._check_layers(part, call, specs)
            self._check_sums(part, call, stream)
        except ValueError as error:
            raise abort.mark_collective(error) from None
        if part is self._traced and not self._sums <= self.layout().sums:
            self._part_key = None
            part = self._build(call, specs, with_loss=part.losses is not None)
        self.layout().sums.update(self._sums)
        self._checked_part = part
        return part

    def _check_layers(self, part: rank_engine.RankEngine, call: Call, specs: Any) -> None:
        names = own_layers(self.model)
        if not names:
            return
        found = None
        if self._world.rank == LEADER:
            found = find_row_faults(self.model, specs[0], call.rows, call.part_rows)
        found = self._world.broadcast_object(found, LEADER, "what layers do with rows")
        replicas, count = call.options.grid.num_replicas, call.num_microbatches
        parts = f"{replicas} replicas x {count} micro-batches"
        require_rows(names, found, call.rows, parts)
        require_sums(names, found)
        layers = all_layers(self.model)
        if "train_step" in part.own or "test_step" in part.own:
            require_means(found, [layer.name for layer in layers])
        self._sums = {(id(layers[number]), position) for number, position in found.sums}
        if self._world.rank == LEADER:
            notices.announce_layers(names, found)

    def _check_sums(self, part: rank_engine.RankEngine, call: Call, stream: Any) -> None:
        if part.losses is None or "train_step" in part.own:
            return
        require_additive(
            self.model,
            part.losses.terms,
            part.losses.symbolic,
            lambda: seen_labels(first_labels(call, stream, self._world.rank)),
            lambda mine: self._world.all_gather_objects(mine, "what losses and metrics do"),
        )

    def _lead(self, worker: Worker, lead: Callable[[Worker, Any], Any], stream: Any) -> Any:
        try:
            with bridge(self.model, worker, LeaderSteps(self.model, worker)):
                result = lead(worker, stream)
        except (Exception, SystemExit) as error:  # a callback may end the script, on all ranks
            if worker.in_command:
                raise  # in the middle of a step: no rank can go on
            abort.locate(error, f"{self.options.grid.describe(LEADER)}, between two steps")
            abort.mark_collective(error)
            # As in plain Keras, the weights trained so far are kept.
            worker.order(Finish(failed=True))
            recipe = portable(error)
            worker.release(Fail(recipe))
            if not is_faithful(recipe):  # all ranks must raise the same error
                raise abort.mark_collective(recipe[0](*recipe[1])) from error
            raise
        worker.order(Finish())
        worker.release(Stop(result))
        return result

    def _build(self, call: Call, specs: Any, with_loss: bool) -> rank_engine.RankEngine:
        """This rank's part, built anew after the model was compiled again.

        As in plain Keras, what is trainable is decided at the first `fit` after `compile`.
        """
        model = self.model
        build_weights(model, specs[0])
        key = engine_key(model)
        usable = self._part is not None and (self._part.losses is not None or not with_loss)
        anew = self._part is None or not usable or self._part_key != key
        if anew and self._part is not None:
            self._layout = None
            require_same_weights(model, self._part_key, key)
            if self._part.has_trained and has_another_optimizer(self._part_key, key):
                notices.announce_another_optimizer(model)
        if call.method == "fit" and (anew or self._part is not self._trainable_part):
            require_memory(model, self.layout(), self.options, self._world)
        if anew or self._part is None:
            who = self.options.grid.describe(self._world.rank)
            STATUS.debug("hyparflow: %s builds its part of model '%s'", who, model.name)
            self._world.board.write("the building of its part")
            self._part = assembly.build_rank_engine(
                model, self.layout(), self.options, self._world, specs, with_loss, call.part_rows
            )
            self._part_key = key
        return self._part
