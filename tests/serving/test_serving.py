"""OpenAI's own client against the endpoint: the tokens of generate, errors, and ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_train.data import TrainBPE
from llm_train.errors import ConfigError
from llm_train.run.pretrained import Pretrained
from llm_train.testing.command import refused, run
from tests.data.test_generation import pretrained

openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    place = tmp_path_factory.mktemp("run") / "checkpoints" / "step-1"
    place.mkdir(parents=True)
    return pretrained(place, TrainBPE(vocab_size=290))


@pytest.fixture(scope="module")
def client(model: Pretrained) -> Iterator[openai.OpenAI]:
    from llm_train.serving.app import Server

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(model, 8, ["127.0.0.1"])
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found:
            yield found
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def test_the_model_is_named_after_the_run(client: openai.OpenAI, model: Pretrained) -> None:
    assert [found.id for found in client.models.list()] == [model.name]


def test_fifty_requests_at_once_get_the_tokens_of_generate(
    client: openai.OpenAI, model: Pretrained
) -> None:
    """Of many lengths, half of them streamed, and longer than the network's context."""
    prompts = ["the cat " * (1 + number % 3) for number in range(50)]
    settings = {"temperature": 0.8, "top_p": 0.9}

    def ask(number: int) -> str:
        common = {"model": model.name, "max_tokens": 2 + number % 12, "seed": number, **settings}
        answer = client.completions.create(prompt=prompts[number], stream=number % 2 == 1, **common)
        if number % 2 == 0:
            assert answer.usage.completion_tokens <= 2 + number % 12
            return str(answer.choices[0].text)
        return "".join(piece.choices[0].text for piece in answer)

    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(ask, range(50)))
    for number, text in enumerate(found):
        alone = model.generate(prompts[number], tokens=2 + number % 12, seed=number, **settings)
        assert text == "".join(alone), number


def test_several_prompts_and_choices(client: openai.OpenAI, model: Pretrained) -> None:
    answer = client.completions.create(
        model=model.name, prompt=["the", "a"], n=2, max_tokens=4, seed=5, temperature=0.7
    )
    expected = [
        "".join(model.generate(prompt, tokens=4, seed=seed, temperature=0.7))
        for prompt in ("the", "a")
        for seed in (5, 6)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_is_not_part_of_the_text(
    client: openai.OpenAI, model: Pretrained, stream: bool
) -> None:
    whole = "".join(model.generate("the", tokens=20, seed=1, temperature=1.0))
    stop = whole[6:9]
    answer = client.completions.create(
        model=model.name, prompt="the", max_tokens=20, seed=1, stop=["never", stop], stream=stream
    )
    choices = [piece.choices[0] for piece in (answer if stream else [answer])]
    assert "".join(choice.text for choice in choices) == whole[: whole.index(stop)]
    assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{bad", 400, "Invalid JSON"),
        (b'{"model": "%s", "max_token": 5}', 400, "max_token"),
        (b'{"model": "%s", "temperature": "hot"}', 400, "temperature"),
        (b'{"model": "%s", "prompt": "a", "temperature": -1}', 400, "temperature=-1"),
        (b'{"model": "%s", "prompt": "a", "logprobs": 1}', 400, "logprobs"),
        (b'{"model": "%s", "prompt": "' + b"cat " * 99 + b'"}', 400, "shorten prompt"),
        (b'{"model": "other"}', 404, "other"),
    ],
)
def test_a_wrong_request_gets_one_clear_error(
    client: openai.OpenAI, model: Pretrained, body: bytes, status: int, said: str
) -> None:
    content = body.replace(b"%s", model.name.encode())
    answer = httpx.post(f"{client.base_url}completions", content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert said in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


def test_other_addresses_and_names_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no chat template"):
        client.chat.completions.create(model="x", messages=[{"role": "user", "content": "a"}])
    answer = httpx.get(f"{client.base_url}models", headers={"host": "elsewhere.example"})
    assert answer.status_code == 400


def test_a_reader_that_leaves_makes_room(client: openai.OpenAI, model: Pretrained) -> None:
    """Nine texts without end, of readers that leave, in a batch of eight."""
    for _ in range(9):
        endless = client.completions.create(
            model=model.name, prompt="the", max_tokens=10**9, stream=True
        )
        next(iter(endless))
        endless.close()
    begun = time.monotonic()
    client.completions.create(model=model.name, prompt="a", max_tokens=2)
    assert time.monotonic() - begun < 10


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (line,) = refused("serve", str(tmp_path / "nope"), f"--port={port}")
    assert f"--port={port}" in line
    assert "--port=0" in line
    (line,) = refused("serve", str(tmp_path / "nope"), "--port=0")
    assert "does not exist" in line
    (line,) = refused("serve", str(tmp_path / "nope"), "--port=0", "--batch=0")
    assert "--batch=0" in line


def test_prompts_and_lengths_at_the_edges(model: Pretrained) -> None:
    assert list(model.generate("the", tokens=0)) == []
    assert "".join(model.generate("the", tokens=40, seed=1)), "beyond the context of 16"
    with pytest.raises(ConfigError, match="shorten --prompt"):
        model.generate("cat " * 99)
    with pytest.raises(ConfigError, match="--tokens=-1"):
        model.generate("the", tokens=-1)
    with pytest.raises(ConfigError, match="seed="):
        model.generate("the", seed=2**70)


def test_a_chat_continues_what_was_said(model: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["the", " a", "/new", "cat " * 99])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or end())
    monkeypatch.setattr("llm_train.run.pretrained.load_checkpoint", lambda *_: model)
    said = run("chat", "runs/any", "--tokens=3").out
    first = "".join(model.generate("the", tokens=3, seed=0))
    second = "".join(model.generate(f"the{first} a", tokens=3, seed=1))
    assert said.splitlines()[1:-1] == f"{first}\n{second}".splitlines()
    assert "/new" in said.splitlines()[-1]


def end() -> str:
    raise EOFError
