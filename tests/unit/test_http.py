"""Completions of texts and chats over HTTP, asked for by OpenAI's own client."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

over_http = pytest.importorskip(
    "over_http", reason="the extra serve, httpx or openai is not installed", exc_type=ImportError
)
import httpx  # noqa: E402
import keras_hub  # noqa: E402
import openai  # noqa: E402

import hyparflow as hf  # noqa: E402
from hyparflow.serving.http.messages import ChatMessage  # noqa: E402
from hyparflow.serving.http.token_texts import CompletionLogprobs, TokenTexts  # noqa: E402
from hyparflow.serving.ranks.runner import LocalRunner  # noqa: E402
from hyparflow.serving.requests.served_request import ServedPiece  # noqa: E402
from hyparflow.serving.scheduling.request import TokenLogprobs  # noqa: E402

TEMPLATE = """
{%- for message in messages %}
{% if message.role == "system" and not loop.first %}{{ raise_exception("system first") }}{% endif %}
<{{ message.role }}>{{ message.content }}
{% endfor %}
{% if add_generation_prompt %}<assistant>{% endif %}
"""


@pytest.fixture(scope="module")
def model() -> Any:
    return over_http.letters_model()


@pytest.fixture(scope="module")
def http(model: Any) -> Iterator[Any]:
    with over_http.listening(
        model, template=TEMPLATE, max_batch=4, max_length=64, max_waiting=8
    ) as http:
        yield http


@pytest.fixture(scope="module")
def client(http: Any) -> openai.OpenAI:
    return over_http.client_of(http)


def completed(client: openai.OpenAI, prompt: Any = "hello", **arguments: Any) -> Any:
    arguments = {"temperature": 0, "max_tokens": 24, **arguments}
    return client.completions.create(model="letters", prompt=prompt, **arguments)


def generated(model: Any, prompt: str, count: int, **arguments: Any) -> str:
    """By hyparflow.generate; prompts have a start token."""
    arguments = {"sampler": "greedy", **arguments}
    return hf.generate(model, prompt, len(prompt) + 1 + count, strip_prompt=True, **arguments)


def test_completions_are_those_of_generate(model: Any, client: openai.OpenAI) -> None:
    prompts = ["hello", "x", "grüße"]
    found = completed(client, prompts)
    lengths = [len(prompt.encode()) + 1 + 24 for prompt in prompts]
    wanted = hf.generate(model, prompts, lengths, strip_prompt=True, sampler="greedy")
    assert [choice.text for choice in found.choices] == wanted
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert {choice.finish_reason for choice in found.choices} == {"length"}
    taken = sum(lengths) - 3 * 24
    assert found.usage.prompt_tokens == taken
    assert found.usage.total_tokens == taken + found.usage.completion_tokens == taken + 72
    assert found.object == "text_completion" and found.model == "letters"


def test_prompts_may_be_tokens(model: Any, client: openai.OpenAI) -> None:
    tokens = [int(x) for x in model.preprocessor.tokenizer("hello")]
    start = over_http.END
    alone = completed(client, [start, *tokens])
    several = completed(client, [[start, *tokens], [5]], echo=True)
    wanted = generated(model, "hello", 24)
    assert alone.choices[0].text == wanted
    assert several.choices[0].text == "hello" + wanted
    assert len(several.choices) == 2 and several.usage.prompt_tokens == 7


def test_a_stream_is_the_same(client: openai.OpenAI) -> None:
    whole = completed(client, ["hello", "x"], n=2, echo=True)
    texts, finishes, usage = [""] * 4, [None] * 4, None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for part in completed(client, ["hello", "x"], n=2, echo=True, **options):
        usage = part.usage
        for choice in part.choices:
            texts[choice.index] += choice.text
            finishes[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert finishes == ["length"] * 4
    assert usage == whole.usage


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """To be set when a line came: each window waits for the lines of the one before, for a while.

    So that a slow client does not get all of them at once.
    """
    came, made = threading.Event(), [False]
    original = LocalRunner.run

    def run(self: Any, window: Any) -> Any:
        if made[0]:
            came.wait(4)  # half a letter is sent with the rest of it, in the next line
            came.clear()
        result = original(self, window)
        made[0] = bool(result.tokens)
        return result

    monkeypatch.setattr(LocalRunner, "run", run)
    return came


def test_a_stream_comes_in_parts_and_says_its_end(http: Any, came: threading.Event) -> None:
    body = {"prompt": "hello", "max_tokens": 56, "stream": True, "seed": 11}  # draws no end
    lines = []
    address = f"{http.address}/v1/completions"
    with httpx.stream("POST", address, json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            came.set()
            lines += [line] if line else []
    assert lines[-1] == "data: [DONE]" and len(lines) > 3
    parts = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert len({part["id"] for part in parts}) == 1
    assert all("usage" not in part for part in parts)
    assert [bool(part["choices"][0]["finish_reason"]) for part in parts][-2:] == [False, True]


def test_seeds_make_texts_again(model: Any, client: openai.OpenAI) -> None:
    drawn = {"temperature": 0.8, "seed": 11, "n": 3}
    first, second = (completed(client, **drawn) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 3
    sampler = keras_hub.samplers.RandomSampler(temperature=0.8)
    assert texts[1] == generated(model, "hello", 24, sampler=sampler, seed=12)
    nucleus = completed(client, temperature=0.8, top_p=0.5, seed=11).choices[0].text
    sampler = keras_hub.samplers.TopPSampler(p=0.5, temperature=0.8)
    assert nucleus == generated(model, "hello", 24, sampler=sampler, seed=11)


def test_without_a_seed_texts_differ(client: openai.OpenAI) -> None:
    found = client.completions.create(model="letters", prompt="hello", n=2)
    assert found.choices[0].text != found.choices[1].text
    assert found.usage.completion_tokens == 32  # OpenAI's default of 16 for each


def test_logprobs(client: openai.OpenAI) -> None:
    whole = completed(client, logprobs=2).choices[0]
    found = whole.logprobs
    assert [len(getattr(found, name)) for name in ("tokens", "text_offset")] == [24, 24]
    assert found.text_offset == sorted(found.text_offset) and found.text_offset[0] == 0
    for token, value, likeliest in zip(
        found.tokens, found.token_logprobs, found.top_logprobs, strict=True
    ):
        assert likeliest[token] == value == max(likeliest.values())  # greedy
        assert len(likeliest) == 2 and -math.log(257) < value < 0
    for place, token in enumerate(found.tokens):
        if not token.startswith("token_id:"):
            assert whole.text[found.text_offset[place]] == token
    values = [
        value
        for part in completed(client, logprobs=0, stream=True)
        if part.choices[0].logprobs
        for value in part.choices[0].logprobs.token_logprobs
    ]
    assert values == pytest.approx(found.token_logprobs, abs=1e-5)


def test_offsets_are_those_of_whole_characters(model: Any) -> None:
    tokens = tuple(int(token) for token in model.preprocessor.tokenizer("aü€b"))
    made = CompletionLogprobs(TokenTexts(model))
    pieces = [
        ServedPiece("", part, (TokenLogprobs(-1.0, ()),) * len(part))
        for part in (tokens[:2], tokens[2:])
    ]
    first, second = made.of(pieces[:1]), made.of(pieces[1:])
    offsets = first["text_offset"] + second["text_offset"]
    assert len(offsets) == 7
    assert [offsets[place] for place in (0, 1, 3, 6)] == [0, 1, 2, 3]
    assert second["tokens"][-1] == "b" and first["tokens"] == ["a", f"token_id:{tokens[1]}"]


def test_stop_strings(client: openai.OpenAI) -> None:
    text = completed(client).choices[0].text
    stop = text[9:11]
    found = completed(client, stop=["nowhere", stop]).choices[0]
    assert found.text == text[: text.index(stop)] and found.finish_reason == "stop"
    parts = list(completed(client, stop=stop, stream=True))
    assert "".join(part.choices[0].text for part in parts) == found.text
    assert parts[-1].choices[0].finish_reason == "stop"


def test_chat(model: Any, client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    prompt = "<system>be\n<user>ab\n<assistant>"
    asked: Any = {"model": "letters", "messages": messages, "temperature": 0}
    found = client.chat.completions.create(
        **asked, max_completion_tokens=9, logprobs=True, top_logprobs=3
    )
    (choice,) = found.choices
    assert choice.message.content == generated(model, prompt, 9)
    assert choice.message.role == "assistant" and choice.finish_reason == "length"
    assert found.usage.prompt_tokens == len(prompt) + 1
    assert len(choice.logprobs.content) == 9
    for entry in choice.logprobs.content:
        assert entry.logprob == entry.top_logprobs[0].logprob and len(entry.top_logprobs) == 3
        assert entry.bytes is None or bytes(entry.bytes).decode() == entry.token
    parts = list(client.chat.completions.create(**asked, max_tokens=9, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    texts = [part.choices[0].delta.content or "" for part in parts]
    assert "".join(texts) == choice.message.content
    assert parts[-1].choices[0].finish_reason == "length"


def test_templates_are_those_of_hugging_face(model: Any) -> None:
    source = """
{%- for message in messages %}
{% if loop.index > 2 %}{% break %}{% endif %}
{{ message | tojson }}{{ bos_token }}{{ eos_token }}
{% endfor %}
{{ strftime_now("%Y") | length }}"""
    messages = [ChatMessage(role="user", content=text) for text in ("<ö>", "b", "c")]
    text = over_http.ChatTemplate(source).text(messages, model)
    assert text.split("\n") == [
        '{"role": "user", "content": "<ö>"}<|endoftext|>',
        '{"role": "user", "content": "b"}<|endoftext|>',
        "4",
    ]


def test_a_chat_goes_on_as_long_as_there_is_room(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="letters", messages=[{"role": "user", "content": "hi"}], temperature=0
    )
    assert found.usage.total_tokens == 64 or found.choices[0].finish_reason == "stop"


def test_templates_refuse_messages(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    with pytest.raises(openai.BadRequestError, match="does not take these messages: system first"):
        client.chat.completions.create(model="letters", messages=messages)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["letters"]
    assert client.models.retrieve("letters").object == "model"
    with pytest.raises(openai.NotFoundError, match="no such model. Received: 'other'"):
        client.models.retrieve("other")


WRONG = [
    ('{"prompt":', "must be JSON", None),
    ("[]", "must be a JSON object", None),
    ("[" * 50_000, "", None),
    ("{}", "`prompt` must be given", "prompt"),
    ('{"prompt": "a", "foo": 1}', "There is no field `foo`", "foo"),
    ('{"prompt": 1}', "`prompt` must be a string", "prompt"),
    ('{"prompt": []}', "`prompt` must be a string", "prompt"),
    ('{"prompt": [1, "a"]}', "`prompt` must be a string", "prompt"),
    ('{"prompt": [true]}', "`prompt` must be a string", "prompt"),
    ('{"prompt": [[1], []]}', "`prompt` must be a string", "prompt"),
    ('{"prompt": [-1]}', "`prompt` must be a string", "prompt"),
    ('{"prompt": [257]}', "Tokens must be from 0 to 256. Received: 257", "prompt"),
    (r'{"prompt": "\ud800"}', "`prompt` must be a string", "prompt"),
    (r'{"prompt": "a", "stop": "\ud800"}', "unicode string", "stop"),
    ('{"prompt": "a", "stop": ""}', "at least 1 character", "stop"),
    ('{"prompt": "a", "stop": ["a", "b", "c", "d", "e"]}', "at most 4", "stop"),
    ('{"prompt": "a", "max_tokens": 0}', "greater than or equal to 1. Received: 0", "max_tokens"),
    ('{"prompt": "a", "max_tokens": -5}', "`max_tokens` is wrong", "max_tokens"),
    ('{"prompt": "a", "max_tokens": 1e400}', "`max_tokens` is wrong", "max_tokens"),
    ('{"prompt": "a", "max_tokens": true}', "`max_tokens` is wrong", "max_tokens"),
    ('{"prompt": "a", "max_tokens": 100000000000000000000}', "may have 64 tokens", None),
    ('{"prompt": "a", "max_tokens": 1%s}' % ("0" * 5000), "", None),
    ('{"prompt": "%s"}' % ("a" * 300), "may have 64 tokens", None),
    ('{"prompt": "a", "temperature": NaN}', "a finite number", "temperature"),
    ('{"prompt": "a", "temperature": -1}', "`temperature` is wrong", "temperature"),
    ('{"prompt": "a", "top_p": 1.5}', "`top_p` is wrong", "top_p"),
    ('{"prompt": "a", "seed": 99999999999999999999}', "`seed` is wrong", "seed"),
    ('{"prompt": "a", "logprobs": 6}', "`logprobs` is wrong", "logprobs"),
    ('{"prompt": "a", "n": 13}', "may ask for 12 completions. Received: 13", "n"),
    ('{"prompt": "a", "logit_bias": {"1": 2}}', "`logit_bias` is not supported", "logit_bias"),
    ('{"prompt": "a", "presence_penalty": 0.5}', "not supported", "presence_penalty"),
    ('{"prompt": "a", "best_of": 3}', "`best_of` other than `n`", "best_of"),
    ('{"prompt": "a", "echo": true, "logprobs": 1}', "prompts have none", "logprobs"),
    ('{"prompt": "a", "stream_options": {}}', "needs `stream`: true", "stream_options"),
]


@pytest.mark.parametrize(("body", "text", "param"), WRONG)
def test_what_is_wrong_is_told(http: Any, body: str, text: str, param: str | None) -> None:
    error = refused(http, "/v1/completions", body, 400)
    assert text in error["message"] and error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ('"tools": [{}]', "`tools` is not supported"),
        ('"response_format": {"type": "json_object"}', "`response_format` is not supported"),
        ('"top_logprobs": 2', "needs `logprobs`: true"),
        ('"messages": []', "at least 1 item"),
        ('"messages": [{"role": "tool", "content": "a"}]', "messages.0.role"),
        ('"messages": [{"role": "user", "content": null}]', "messages.0.content"),
        (
            '"messages": [{"role": "user", "content": [{"type": "image_url"}]}]',
            "must be texts. Received: image_url",
        ),
        ('"max_tokens": 3, "max_completion_tokens": 3', "is the old name"),
    ],
)
def test_what_is_wrong_with_a_chat_is_told(http: Any, fields: str, text: str) -> None:
    body = '{"messages": [{"role": "user", "content": "a"}], ' + fields + "}"
    assert text in refused(http, "/v1/chat/completions", body, 400)["message"]


def test_far_too_long_texts_are_not_made_tokens_whole(http: Any) -> None:
    """That would take ten seconds, in which nobody else is admitted."""
    begun = time.monotonic()
    body = json.dumps({"prompt": "a b " * 240_000})
    error = refused(http, "/v1/completions", body, 400)
    assert "a prompt of 960000 letters, the first 1024 of which" in error["message"]
    assert time.monotonic() - begun < 5


def test_fields_that_ask_for_nothing_are_taken(http: Any) -> None:
    body = {"prompt": "a", "max_tokens": 1, "logit_bias": {}, "presence_penalty": 0, "best_of": 1}
    body |= {"user": "me", "suffix": None, "n": None, "stop": None}
    assert httpx.post(f"{http.address}/v1/completions", json=body).status_code == 200


def test_other_mistakes(http: Any, client: openai.OpenAI) -> None:
    large = '{"prompt": "%s"}' % ("a" * 10**6)
    assert "1000000 bytes" in refused(http, "/v1/completions", large, 413)["message"]
    pieces = (b"[" * 10**5 for _ in range(20))  # of a length that nobody tells
    answer = httpx.post(
        f"{http.address}/v1/completions",
        content=pieces,
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    form = httpx.post(f"{http.address}/v1/completions", data={"prompt": "a"})
    assert (form.status_code, "must be JSON" in form.text) == (415, True)
    assert httpx.get(f"{http.address}/v1/nothing").json()["error"]["message"] == "Not Found"
    assert httpx.get(f"{http.address}/v1/completions").status_code == 405
    with pytest.raises(openai.NotFoundError, match="This server has 'letters'"):
        client.completions.create(model="gpt-4", prompt="a")


def refused(http: Any, path: str, body: str, status: int) -> dict[str, Any]:
    answer = httpx.post(
        http.address + path, content=body, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
