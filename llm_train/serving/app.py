"""The addresses of the endpoint: ``/v1/completions`` and ``/v1/models``, with OpenAI's errors.

Messages to chat with are refused: what is served was pretrained on text, and has no template that
would make text of them.
"""

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from socket import socket

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from llm_train.errors import ConfigError
from llm_train.model.network.sample import chooser
from llm_train.run.pretrained import Pretrained, Text
from llm_train.serving.engine import Choice, Engine, Piece, Request


class Server(uvicorn.Server):
    """Answers requests until a signal ends it.

    Args:
        pretrained: the network.
        most: texts in one forward.
        hosts: names under which it answers.
    """

    def __init__(self, pretrained: Pretrained, most: int, hosts: list[str]) -> None:
        self._pretrained, self._engine = pretrained, Engine(pretrained, most)
        self._tokenizer, self._end = pretrained.tokenizer, pretrained.end_of_text()
        app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/completions", self.completions, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ],
            # Or a page in a browser could reach the loopback under a name of its own.
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
            exception_handlers=dict.fromkeys((ConfigError, ValidationError, HTTPException), _error),
        )
        super().__init__(uvicorn.Config(app, log_level="warning"))

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Ends the answers that are under way, for which uvicorn would wait."""
        self._engine.end(HTTPException(503, "the server is ending"))
        await super().shutdown(sockets)

    async def models(self, _: HTTPRequest) -> Response:
        """The one that is served."""
        model = {"id": self._pretrained.name, "object": "model", "owned_by": "llm-train"}
        return JSONResponse({"object": "list", "data": [{"created": 0, **model}]})

    async def chat(self, _: HTTPRequest) -> Response:
        """Refused."""
        name = self._pretrained.name
        raise HTTPException(404, f"{name} has no chat template; send text to /v1/completions")

    async def completions(self, http: HTTPRequest) -> Response:
        """Texts, or their pieces as they are known."""
        request = Request.model_validate_json(await http.body())
        if request.model != (name := self._pretrained.name):
            raise HTTPException(404, f"the model {request.model!r} is not here; ask for {name!r}")
        prompts = [self._pretrained.start(prompt) for prompt in request.prompt]
        choices = self._choices(request, prompts)
        about = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "model": name}
        head: Piece = {**about, "created": int(time.time())}
        if request.stream:
            return StreamingResponse(self._events(head, choices), media_type="text/event-stream")
        whole: list[Piece] = [{"text": ""} for _ in choices]
        async with aclosing(self._engine.pieces(choices)) as pieces:
            async for piece in pieces:
                before = whole[piece["index"]]["text"]
                whole[piece["index"]] = piece | {"text": before + piece["text"]}
                if await http.is_disconnected():
                    break
        read, new = sum(map(len, prompts)), sum(choice.tokens for choice in choices)
        usage = {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}
        return JSONResponse(head | {"choices": whole, "usage": usage})

    def _choices(self, request: Request, prompts: list[list[int]]) -> list[Choice]:
        """``n`` texts for each prompt; the first has the seed that was asked for, or any."""
        seed = random.getrandbits(48) if request.seed is None else request.seed
        news: asyncio.Queue[Piece | HTTPException] = asyncio.Queue()
        how = request.model_dump(include={"temperature", "top_k", "top_p"})
        wanted = [(prompt, seed + number) for prompt in prompts for number in range(request.n)]
        return [
            Choice(
                list(prompt),
                chooser(**how, seed=own),
                index,
                request,
                self._end,
                Text(self._tokenizer, prompt),
                news,
            )
            for index, (prompt, own) in enumerate(wanted)
        ]

    async def _events(self, head: Piece, choices: list[Choice]) -> AsyncIterator[str]:
        """Pieces as server-sent events."""
        try:
            async with aclosing(self._engine.pieces(choices)) as pieces:
                async for piece in pieces:
                    if piece["text"] or piece["finish_reason"]:
                        yield f"data: {json.dumps(head | {'choices': [piece]})}\n\n"
            yield "data: [DONE]\n\n"
        except HTTPException as error:
            yield f"data: {bytes(_error(None, error).body).decode()}\n\n"


def _error(_: HTTPRequest | None, error: Exception) -> JSONResponse:
    """An error in OpenAI's shape."""
    status, message, parameter = 400, str(error).replace("--", ""), None  # an option's name
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
    elif isinstance(error, ValidationError):
        first = error.errors()[0]
        parameter = str(first["loc"][0]) if first["loc"] else None
        message = f"{parameter or 'the body'}: {first['msg']}"
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"message": message, "type": kind, "param": parameter, "code": None}
    return JSONResponse({"error": content}, status_code=status)
