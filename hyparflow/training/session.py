"""Runs a call of `fit`, `evaluate` or `predict`: the leader runs Keras, the others follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hyparflow.comm import abort
from hyparflow.comm.leader import LEADER
from hyparflow.comm.log import STATUS
from hyparflow.comm.portable_errors import is_faithful, portable
from hyparflow.comm.world import World
from hyparflow.engine import assembly, rank_engine
from hyparflow.engine.sequence.sequence_counts import SequenceCounts
from hyparflow.launching.cores import announce_cores
from hyparflow.model.building import build_weights
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.layer_names import layer_that_failed
from hyparflow.model.layout import ModelCut, cut_model
from hyparflow.model.saving import use_atomic_saves
from hyparflow.options import Options
from hyparflow.tracing.collect import traced
from hyparflow.training import agreement, notices
from hyparflow.training.automatic_chunks import decide_chunks
from hyparflow.training.call import Call
from hyparflow.training.checkpoints.folder_in_use import folder_in_use
from hyparflow.training.commands import Fail, Finish, Stop
from hyparflow.training.engine_key import (
    engine_key,
    has_another_optimizer,
    require_same_weights,
)
from hyparflow.training.keras_bridge import bridge
from hyparflow.training.leader_data import peek_on_leader
from hyparflow.training.left_weights import goes_to_all, take_back
from hyparflow.training.memory_check import require_memory
from hyparflow.training.model_checks import ModelChecks
from hyparflow.training.progress_of_ranks import building_shown
from hyparflow.training.resume import resume
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
        self._checks = ModelChecks(model, world)
        self._layout: ModelCut | None = None
        self._traced: rank_engine.RankEngine | None = None

    def layout(self) -> ModelCut:
        """How the model is cut."""
        if self._layout is None:
            self._layout = cut_model(self.model, self.options)
        return self._layout

    @property
    def sequence_counts(self) -> SequenceCounts:
        """What dividing sequences moved and kept on this rank, by the steps so far."""
        stages = () if self._part is None else self._part.sequences
        return SequenceCounts.sum_of(stage.counts for stage in stages)

    @property
    def rewritten(self) -> Counter[str]:
        """How often which faster kernel was put in on this rank, by the steps so far."""
        return Counter() if self._part is None else self._part.rewritten

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
        if self._world.size > 1:
            agreement.require_same(
                self._world,
                agreement.collect(
                    self.model, call.options, call.sources, call.method, call.arguments, call.rows
                ),
            )
        announce_cores(self._world)
        who = self.options.grid.describe(self._world.rank)
        STATUS.debug("hyparflow: %s begins %s of model '%s'", who, call.method, self.model.name)
        before = self.sequence_counts
        since = (lambda: self.rewritten), (lambda: self.sequence_counts.since(before))
        with traced(self._world, call.trace, *since):
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
        self._checks.require_state(call)
        self._checks.require_labels(call, specs)
        self._checks.require_inputs(specs)
        if "validation" in call.sources:
            self._checks.require_inputs(
                call.sources["validation"].specs(), "In `validation_data`: "
            )
        part = self._build(call, specs, with_loss=call.method != "predict")
        to_all = goes_to_all(call, self.model, self._world)
        take_back(self.model, part.sync)
        if call.method == "fit":
            self._checks.require_optimizer(part)
        self._checks.require_weights(part, specs)
        self._checks.require_positions(part, call, specs, stream)
        decide_chunks(self.model, part, call, specs, self._world)
        part = self._parted(part, call, specs, stream)
        if self._world.rank == LEADER and part.losses is not None and call.method == "fit":
            notices.announce(self.model, call, part.losses.terms, part.num_chunks)
        self._traced = part
        worker = Worker(self.model, part, call, self._world, to_all)
        with folder_in_use(call.checkpoint, self._world):
            worker.checkpoints.resumption = resume(self.model, call, self._world)
            use_atomic_saves(self.model)  # by callbacks, and after the call
            return self._work(worker, lead, stream)

    def _work(self, worker: Worker, lead: Callable[[Worker, Any], Any], stream: Any) -> Any:
        """Carry out a call on this rank; an error tells where it was."""
        try:
            worker.start()
            if self._world.rank == LEADER:
                return self._lead(worker, lead, stream)
            return worker.follow()
        except BaseException as error:
            if not getattr(error, "hyparflow_everywhere", False):
                abort.locate(error, self.options.grid.describe(self._world.rank))
                layers = all_layers(self.model)
                abort.locate_layer(error, layer_that_failed(error, layers))
                abort.fail(error)
            raise
        finally:
            worker.checkpoints.end()
            self._world.board.write("outside of hyparflow")

    def _parted(
        self, part: rank_engine.RankEngine, call: Call, specs: Any, stream: Any
    ) -> rank_engine.RankEngine:
        """The engine, once batches are known to add up from parts. Collective.

        It is built again if it was traced before it was known what is a sum over rows.
        """
        self._checks.require_parts(part, call, specs, stream)
        sums = self._checks.sums
        if part is self._traced and not sums <= self.layout().sums:
            self._part_key = None
            part = self._build(call, specs, with_loss=part.losses is not None)
            self._checks.note_rebuilt(part)
        self.layout().sums.update(sums)
        return part

    def _lead(self, worker: Worker, lead: Callable[[Worker, Any], Any], stream: Any) -> Any:
        try:
            resumption = worker.checkpoints.resumption
            passed = None if resumption is None else resumption.passed
            with bridge(self.model, worker, LeaderSteps(self.model, worker), passed):
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
        worker.checkpoints.end()  # so that it is there when any rank goes on
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
        if call.method == "fit" and (anew or not self._checks.may_train(self._part)):
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
