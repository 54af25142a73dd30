"""The text forms of actions and steps, and what both ends of a message agree on."""

from __future__ import annotations

import itertools

import pytest

from hyparflow.pipeline.actions import Action, Kind, Step


@pytest.mark.parametrize(
    "action, text",
    [
        (Action(0, "F", 0), "0F0"),
        (Action(1, "B", 3), "1B3"),
        (Action(12, "F", 345), "12F345"),
    ],
)
def test_text_form(action: Action, text: str) -> None:
    assert str(action) == text
    assert Action.parse(text) == action


def test_every_text_form_parses_back() -> None:
    for stage, kind, m in itertools.product((0, 1, 9, 10), "FB", (0, 7, 11)):
        action = Action(stage, kind, m)
        assert Action.parse(str(action)) == action


@pytest.mark.parametrize("text", ["", "F0", "1F", "1f0", "1F0 ", "x1F0", "1F0B", "-1F0"])
def test_what_is_not_an_action(text: str) -> None:
    with pytest.raises(ValueError, match="written as stage, kind, micro-batch") as caught:
        Action.parse(text)
    assert f"Received: {text!r}" in str(caught.value)


def test_step_text_names_edge_and_peer() -> None:
    assert str(Step(1, Kind.FUSED, 2)) == "1FB2"
    assert str(Step(0, Kind.SEND_ACTIVATION, 2, edge=5, peer=3)) == "0SA2.5@3"


@pytest.mark.parametrize(
    "send, receive",
    [
        (Kind.SEND_ACTIVATION, Kind.RECEIVE_ACTIVATION),
        (Kind.SEND_GRADIENT, Kind.RECEIVE_GRADIENT),
    ],
)
def test_both_ends_have_one_message(send: str, receive: str) -> None:
    sent, received = Step(0, send, 4, 2, 1), Step(1, receive, 4, 2, 0)
    assert sent.message == received.message


def test_different_messages_differ() -> None:
    kinds = (Kind.SEND_ACTIVATION, Kind.SEND_GRADIENT)
    steps = [Step(0, k, m, e, 1) for k, m, e in itertools.product(kinds, range(3), range(3))]
    assert len({step.message for step in steps}) == len(steps)
