"""Plans of mixtures of experts: what replicas hold that share them out, and what they exchange."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from plans_on_paper import FAST, INSTANT, MEGABYTE, candidate, chain, costs

import hyparflow as hf
from hyparflow.cli.main import main
from hyparflow.pipeline.partition import make_partitioning
from hyparflow.pipeline.units import Units
from hyparflow.planning.costs.cluster import Cluster, Link
from hyparflow.planning.costs.costs import Costs, Weight
from hyparflow.planning.costs.mixtures import Mixture
from hyparflow.planning.search.layouts import best_of
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import Problem, Saving, constrained
from hyparflow.planning.search.saving import search

SHARED = Saving(expert_parallel=True)


def expert_costs(count: int = 8, experts: int = 8, **changes: Any) -> Costs:
    """Costs of a chain in which every fourth operation is a mixture of experts."""
    places = range(1, count, 4)
    weights = [Weight(MEGABYTE, True, experts if n in places else 0) for n in range(count)]
    mixtures = tuple(Mixture(n, top_k=2) for n in places)
    changes = {"weights": tuple(weights), "mixtures": mixtures} | changes
    return costs([1.0] * count, **changes)


def problem(saving: Saving = SHARED, cluster: Cluster = FAST, **changes: Any) -> Problem:
    balanced = changes.pop("balanced", ())
    return Problem(chain(8), expert_costs(**changes), cluster, 8, saving, balanced=balanced)


def mixture_model(load_balancing: float = 0.0, experts: int = 8, top_k: int = 2) -> Any:
    tokens = keras.Input([6, 16])
    x = keras.layers.Dense(16)(tokens)
    layer = hf.layers.MixtureOfExperts(experts, 32, top_k, load_balancing=load_balancing)
    x = keras.layers.Add(name="sum")([x, layer(x)])
    model = keras.Model(tokens, keras.layers.Dense(4)(x))
    model.compile("adam", "mse", jit_compile=False)
    return model


def plan(model: Any, **changes: Any) -> Any:
    arguments = {"batch_size": 64, "num_ranks": 4, "costs": "estimate"} | changes
    return hf.plan(model, **arguments)


# --- costs ---


def test_costs_know_experts(tmp_path: Path) -> None:
    model, path = mixture_model(), tmp_path / "costs.json"
    found = hf.Costs.load(saved_costs(model, path))
    experts = {v.path: w.num_experts for v, w in zip(model.variables, found.weights, strict=True)}
    held = {name for name, count in experts.items() if count == 8}
    assert {name.rpartition("/")[2] for name in held} == {
        *("first_kernel", "second_kernel", "first_bias", "second_bias")
    }
    assert set(experts.values()) == {0, 8}
    (mixture,) = found.mixtures
    assert found.operations[mixture.operation].startswith("mixture_of_experts")
    assert mixture.top_k == 2


def saved_costs(model: Any, path: Path) -> Path:
    from hyparflow.planning.costs_of_model import costs_of_model

    costs_of_model(model, "estimate", 8, Cluster(1, 2)).save(path)
    return path


def test_files_of_costs_that_know_no_experts(tmp_path: Path) -> None:
    """They load, and what they do not know the model tells."""
    model, path = mixture_model(), tmp_path / "costs.json"
    values = json.loads(saved_costs(model, path).read_text())
    expected = plan(model, costs=path, expert_parallel=True, num_replicas=4)
    values["weights"] = [pair[:2] for pair in values["weights"]]
    del values["mixtures"]
    path.write_text(json.dumps(values))
    assert {weight.num_experts for weight in hf.Costs.load(path).weights} == {0}
    assert plan(model, costs=path, expert_parallel=True, num_replicas=4) == expected


def test_a_mixture_of_an_operation_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    expert_costs(mixtures=(Mixture(8, 1),)).save(path)
    with pytest.raises(ValueError, match=r"`int` < 8 - at `\$.mixtures\[0\].operation`"):
        hf.Costs.load(path)


# --- predictions ---


def test_experts_are_held_by_one_replica_each() -> None:
    """Six weights of a megabyte are everyone's; two have experts, of which each has a quarter."""
    layout = candidate(chain(8), (0, 8), 1, replicas=4)
    whole, shared = (
        Prediction(problem(saving, slots=2.0), layout).memory[0] for saving in (Saving(), SHARED)
    )
    assert (whole.weights, shared.weights) == (8 * MEGABYTE, 6.5 * MEGABYTE)
    assert (whole.slots, shared.slots) == (16 * MEGABYTE, 13 * MEGABYTE)
    # Gradients of experts are complete where they are made: no sum over replicas of these.
    assert whole.gradients == 2 * 8 * MEGABYTE
    assert shared.gradients == (2 * 6 + 0.5) * MEGABYTE
    assert whole.around == shared.around  # all experts come back at the end


def test_updates_are_of_what_is_held() -> None:
    layout = candidate(chain(8), (0, 8), 1, replicas=4)
    (memory,) = Prediction(problem(kept=np.zeros(8)), layout).memory
    assert memory.updates == 2 * 6.5 * MEGABYTE


def test_one_replica_holds_all_experts() -> None:
    layout = candidate(chain(8), (0, 4, 8), 1)
    alone, shared = (Prediction(problem(saving), layout) for saving in (Saving(), SHARED))
    assert [m.weights for m in shared.memory] == [4 * MEGABYTE] * 2
    assert alone.step_seconds == shared.step_seconds


def test_gradients_of_experts_are_not_summed_over_replicas() -> None:
    slow = Cluster(1, 2, within=Link(0.0, INSTANT), sum_bandwidth=MEGABYTE)
    layout = candidate(chain(8), (0, 8), 1, replicas=2)
    whole, shared = (
        Prediction(problem(saving, slow), layout).reduce for saving in (Saving(), SHARED)
    )
    assert shared[0] == pytest.approx(whole[0] * 6 / 8)


def test_tokens_travel_to_experts_and_back() -> None:
    """Twice in a forward, and twice in a backward; half of them stay on one of two ranks."""
    slow = Cluster(1, 2, within=Link(0.25, MEGABYTE))
    layout = candidate(chain(8), (0, 8), 1, replicas=2)
    found = Prediction(problem(SHARED, slow), layout)
    each = 0.25 + 2 * 4 / 2  # latency; top 2 of 4 rows of a megabyte, of which half leave
    still = Prediction(problem(Saving(), slow), layout)
    assert found.forward[0] + found.backward[0] == pytest.approx(3 * 4 * 8 + 2 * 4 * each)
    assert still.forward[0] + still.backward[0] == pytest.approx(3 * 4 * 8)


def test_more_ranks_have_more_messages_of_smaller_parts() -> None:
    slow = Cluster(1, 4, within=Link(0.25, MEGABYTE))
    layout = candidate(chain(8), (0, 8), 1, replicas=4)
    found = Prediction(problem(SHARED, slow), layout)
    each = 3 * (0.25 + 2 * 2 / 4)
    assert found.forward[0] + found.backward[0] == pytest.approx(3 * 2 * 8 + 2 * 4 * each)


@pytest.mark.parametrize("balanced", [(), ("mixture",)])
def test_units_are_not_shared_where_replicas_exchange_in_stages(balanced: tuple[str, ...]) -> None:
    graph = chain(8)
    alike = Units(make_partitioning(graph, (0, 2, 4, 6, 8)), (range(4),), (0, 1, 1, 1))
    saving = Saving() if balanced else SHARED
    made = dataclasses.replace(problem(saving, balanced=balanced), units=alike)
    several, one = (candidate(graph, (0, 8), 1, replicas=n).grid for n in (2, 1))
    assert made.compiled_units(one) is alike
    assert made.compiled_units(several) is None
    again = dataclasses.replace(made, saving=dataclasses.replace(saving, recompute="block"))
    apart = again.compiled_units(several)
    assert apart is not None
    assert apart.kinds == (0, 1, 2, 3)


# --- the search ---


def choose(num_ranks: int = 4, balanced: tuple[str, ...] = (), limit: float | None = None,
           experts: int = 8, **decided: Any) -> Prediction:  # fmt: skip
    """The layout that is chosen; without a chosen one, the best of all."""
    bytes_ = None if limit is None else round(limit * MEGABYTE)
    wishes = constrained(num_ranks, bytes_, **decided)

    def problem_with(saving: Saving) -> Problem:
        return problem(saving, balanced=balanced, slots=2.0, experts=experts)

    return best_of(search(problem_with, wishes), bytes_)


def test_only_replicas_that_divide_the_experts_are_considered() -> None:
    for experts, allowed in ((8, {1, 2, 4}), (6, {1, 2}), (5, {1})):
        wishes = constrained(4, None, expert_parallel=True)
        found = search(lambda saving, n=experts: problem(saving, experts=n), wishes)
        assert {prediction.candidate.grid.num_replicas for prediction in found} == allowed
        assert all(prediction.saving.expert_parallel for prediction in found)


def test_no_replicas_share_out_experts_evenly() -> None:
    with pytest.raises(ValueError, match=r"8 must be a multiple of their.* Received: 3 ranks"):
        choose(3, expert_parallel=True, num_partitions=1)


def test_optimizer_state_is_not_shared_out_beside_experts() -> None:
    """Training refuses both together, so what fits no limit is refused and not combined."""
    given: dict[str, Any] = {"num_replicas": 4, "num_microbatches": 1}
    found = choose(expert_parallel=True, **given)
    limit = max(memory.total for memory in found.memory) / MEGABYTE - 1
    assert choose(limit=limit, **given).saving.shard_optimizer
    with pytest.raises(ValueError, match=r"No layout fits.*expert_parallel=True") as raised:
        choose(limit=limit, expert_parallel=True, **given)
    assert "shard_optimizer" not in str(raised.value)


def test_less_memory_than_with_all_experts_on_each_replica() -> None:
    given: dict[str, Any] = {"num_replicas": 4, "num_microbatches": 2}
    each, shared = (choose(expert_parallel=flag, **given) for flag in (False, True))
    parts = [sum(found.memory[0].parts) for found in (each, shared)]
    # Three quarters of two megabytes: weights, gradients, two slots, two that an update makes; and
    # sums over replicas of all two.
    assert parts[0] - parts[1] == (1.5 * (1 + 1 + 2 + 2) + 2) * MEGABYTE


def test_a_loss_of_whole_batches_takes_no_micro_batches() -> None:
    free, balanced = choose(num_partitions=4), choose(num_partitions=4, balanced=("mixture",))
    assert free.candidate.num_microbatches > 1
    assert balanced.candidate.num_microbatches == 1
    with pytest.raises(ValueError, match=r"'mixture'.*balances experts.*batch"):
        choose(num_partitions=4, balanced=("mixture",), limit=40)
    with pytest.raises(ValueError, match=r"'mixture' balances.* Received: 4 ranks"):
        choose(num_partitions=4, balanced=("mixture",), num_microbatches=2)


# --- whole plans ---


def test_a_plan_shares_out_experts_and_passes_it_on(tmp_path: Path) -> None:
    model = mixture_model()
    each = plan(model, num_replicas=4)
    shared = plan(model, num_replicas=4, expert_parallel=True)
    assert (each.expert_parallel, shared.expert_parallel) == (False, True)
    assert each.arguments["expert_parallel"] is False
    assert shared.arguments["expert_parallel"] is True
    assert "(expert_parallel=True)" in str(shared)
    assert "expert_parallel" not in str(each)
    (part,), (whole,) = shared.partitions, each.partitions
    assert part.memory.weights < whole.memory.weights == whole.parameters == part.parameters
    assert part.summed is not None
    assert part.memory.weights == part.summed + (part.parameters - part.summed) / 4
    shared.save(tmp_path / "plan.json")
    assert hf.Plan.load(tmp_path / "plan.json") == shared


def test_plans_of_earlier_versions_share_out_nothing(tmp_path: Path) -> None:
    made = plan(mixture_model())
    values = made.to_values()
    del values["expert_parallel"]
    for part in values["partitions"]:
        del part["summed"]
    assert hf.Plan.from_values(json.loads(json.dumps(values))) == made


def test_a_plan_of_one_replica_shares_out_nothing() -> None:
    made = plan(mixture_model(), num_partitions=4, expert_parallel=True)
    assert not made.expert_parallel
    assert made.partitions[0].summed is None


def test_a_plan_and_the_argument() -> None:
    model = mixture_model()
    made = plan(model, num_ranks=1)
    with pytest.raises(ValueError, match=r"expert_parallel\. Received: plan and expert_parallel=T"):
        hf.parallelize(model, plan=made, expert_parallel=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_optimizer": True}, "steps are Keras's.* with shard_optimizer=True"),
        ({"num_sequence_chunks": 2, "sequence_length": 6}, "Keras's.* with divided sequences"),
        ({"num_replicas": 4, "model": mixture_model(experts=6)}, "multiple of .*: 4 replicas"),
        ({"num_partitions": 1, "model": mixture_model(experts=6)}, "multiple of .*: 4 replicas"),
        ({"model": keras.Sequential([keras.Input([4]), keras.layers.Dense(4)])}, "without any"),
    ],
    ids=["shard_optimizer", "sequences", "replicas", "replicas that are left", "no experts"],
)
def test_what_training_refuses(changes: dict[str, Any], message: str) -> None:
    model = changes.pop("model", None) or mixture_model()
    with pytest.raises(ValueError, match=message):
        plan(model, expert_parallel=True, **changes)


@pytest.mark.parametrize("expert_parallel", [False, True])
def test_a_loss_that_balances_experts(expert_parallel: bool) -> None:
    model = mixture_model(load_balancing=0.01)
    found = plan(model, num_partitions=2, expert_parallel=expert_parallel)
    assert found.num_microbatches == 1
    assert plan(mixture_model(), num_partitions=2, batch_size=4096).num_microbatches > 1
    with pytest.raises(ValueError, match="Use num_microbatches=1"):
        plan(model, num_microbatches=2, expert_parallel=expert_parallel)


def test_the_command(tmp_path: Path) -> None:
    mixture_model().save(tmp_path / "model.keras")
    given = [str(tmp_path / "model.keras"), "--batch-size", "64", "--ranks", "4"]
    given += ["--costs", "estimate", "--num-replicas", "4", "--expert-parallel"]
    done = CliRunner().invoke(main, ["plan", *given])
    assert done.exit_code == 0, done.output
    assert "(expert_parallel=True)" in done.output
    refused = CliRunner().invoke(main, ["plan", *given, "--shard-optimizer"])
    assert refused.exit_code == 2
    assert "with shard_optimizer=True" in " ".join(refused.output.split())
