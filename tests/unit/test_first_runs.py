"""What ranks say that they compile, and what the leader shows of it."""

from __future__ import annotations

from hyparflow.engine.first_runs import FirstRuns, compiling
from hyparflow.pipeline.actions import Kind, Step
from hyparflow.training.call import is_shown
from hyparflow.training.progress_of_ranks import words_of


def test_a_computation_is_compiled_when_it_runs_first() -> None:
    runs = FirstRuns([1, 5])
    forward = Step(5, Kind.FORWARD, 0)
    assert runs.named("5F0", forward, "training") == (
        "5F0, compiling stage 5 (2 of 2 here), forward"
    )
    assert runs.named("5F1", Step(5, Kind.FORWARD, 1), "training") == "5F1"
    assert compiling(runs.named("5F0", forward, "evaluation"))
    assert compiling(runs.named("1F0", Step(1, Kind.FORWARD, 0), "training")).startswith("stage 1")
    apply = runs.named("0APPLY0", Step(0, Kind.APPLY), "training")
    assert compiling(apply) == "the optimizer's step"


def test_what_is_no_computation_is_not_compiled() -> None:
    runs = FirstRuns([0])
    for step in (Step(0, Kind.REDUCE), Step(0, Kind.SEND_ACTIVATION, 0, 3, 1)):
        assert runs.named(str(step), step, "training") == str(step)
    assert compiling(runs.ahead(0)) == "stage 0"


def test_ranks_that_compile_are_shown_first() -> None:
    ahead = FirstRuns([1]).ahead(1)
    forward = FirstRuns([0]).named("0F0", Step(0, Kind.FORWARD, 0), "training")
    assert words_of({0: forward}) == "rank 0 compiles stage 0, forward"
    assert words_of({0: forward, 1: ahead}) == "rank 0 compiles stage 0, forward; 1 rank more"
    assert words_of({0: "0RG0.1@1", 1: ahead}) == "rank 1 compiles stage 1"
    assert words_of({0: "0RG0.1@1", 1: "1F3"}) == "action 0RG0.1@1"
    assert words_of({0: "the cut of the model"}) == "the cut of the model"
    assert words_of({}) == ""


def test_verbose_is_keras_s() -> None:
    shown = [is_shown({}), *(is_shown({"verbose": how}) for how in ("auto", 1, 2, 0))]
    assert shown == [True, True, True, True, False]
