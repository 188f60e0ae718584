"""Serve a page and its API: bounds on what comes in, headers on what goes out, an end within a second.

Who may ask is decided by the address that is listened to, 127.0.0.1 unless --host names another, and by the Host
header: an address, `localhost` or the name given with --host. A page from elsewhere that makes its own name mean
127.0.0.1 (DNS rebinding) still sends that name.
"""

import asyncio
import errno
import gc
import ipaddress
import os
import re
import socket
from collections.abc import Callable

import h11
import torch
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from threadpoolctl import threadpool_limits
from uvicorn.protocols.http.h11_impl import H11Protocol

from preprocessing.dataset import DataError
from recommending.formatting import as_json_object
from recommending.page.answers import Answers
from recommending.page.app import MOST_WAITING, make_app, problem
from recommending.page.workers import Workers, default_num_workers
from recommending.recommender import Recommender

BODY_S = 10  # in which a request's body must be there
SILENCE_S = 15  # in which a connection must send a whole request head, and take what is answered
KEEP_ALIVE_S = 10
END_S = 0.4  # for requests in flight when the end comes
MOST_CONNECTIONS = 400  # then the oldest one that asks nothing makes room, first of those that never asked
MOST_BODY = {"/api/recommend": 1 << 18, "/api/ask": 1 << 18, "/api/ratings_file": 1 << 20}  # bytes
HEADERS = [(name.encode(), value.encode()) for name, value in {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                               "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()"}.items()]


class Guard:
    """Stands before an application: refuses foreign Host headers and bodies that are too large or too slow, and adds
    the headers that keep a browser from doing anything else with an answer."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """Let `host` be a name that the server may be called by."""
        self.app, self.host = app, host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                cache = [] if any(name == b"cache-control" for name, _ in message["headers"]) else [
                    (b"Cache-Control", b"no-store")]
                message["headers"] = [*message["headers"], *HEADERS, *cache]
            await send(message)

        async def refuse(status: int, sentence: str) -> None:
            await problem(status, sentence, {"Connection": "close"})(scope, receive, send_with_headers)

        if sum(name == b"host" for name, _ in scope["headers"]) != 1 or not self.may_be_called(headers[b"host"]):
            await refuse(400, "the Host header is not a name of this server")
        elif scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send_with_headers)
        else:
            most = MOST_BODY.get(scope["path"], 1 << 10)
            try:
                async with asyncio.timeout(BODY_S):
                    body = await _read_body(headers, receive, most)
            except TimeoutError:
                await refuse(408, f"the request's body was not there after {BODY_S} seconds")
            except ValueError:
                await refuse(413, f"the request's body is larger than {most:,} bytes")
            except asyncio.CancelledError:
                await refuse(503, "the server ends")
            except ConnectionError:
                return
            else:
                waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

                async def receive_whole() -> Message:
                    return waiting.pop() if waiting else await receive()

                await self.app(scope, receive_whole, send_with_headers)

    def may_be_called(self, host: bytes) -> bool:
        """Tell whether a Host header names this server: no name that a stranger can register does."""
        found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:\d{1,5})?", host.decode("latin-1").lower())
        if found is None:
            return False
        if found[1] in ("localhost", self.host):
            return True
        try:
            ipaddress.ip_address(found[1].strip("[]"))
        except ValueError:
            return False
        return True


async def _read_body(headers: dict[bytes, bytes], receive: Receive, most: int) -> bytes:
    """Return a request's body; raise ValueError where it is too large, ConnectionError where nobody is there any
    more."""
    if int(headers.get(b"content-length", b"0")) > most:
        raise ValueError
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        body += message.get("body", b"")
        if len(body) > most:
            raise ValueError
        if not message.get("more_body", False):
            return body


class Connection(H11Protocol):
    """A connection that is dropped when it says nothing or takes nothing for some seconds, or when others need its
    place."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room where there are too many."""
        super().connection_made(transport)
        self._free_since, self._has_asked = self.loop.time(), False
        self._watch: asyncio.TimerHandle = self.loop.call_later(SILENCE_S, self._drop_if_silent)
        if len(self.connections) > MOST_CONNECTIONS:
            free = [other for other in self.connections if isinstance(other, Connection) and not other.is_busy()]
            if free:
                min(free, key=lambda other: (other._has_asked, other._free_since)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch no more."""
        self._watch.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._free_since, self._has_asked = self.loop.time(), True

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of all errors."""
        body = as_json_object({"error": "this is no HTTP request"}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def is_busy(self) -> bool:
        """Tell whether a request that is there whole is being answered."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _drop_if_silent(self) -> None:
        left = SILENCE_S - (self.loop.time() - self._free_since)
        if not self.is_busy() and left <= 0:
            self.transport.abort()
        else:
            self._watch = self.loop.call_later(max(left, 1), self._drop_if_silent)


def serve(recommender: Recommender, host: str = "127.0.0.1", port: int = 8000,
          say: Callable[[str], None] = lambda sentence: print(sentence, flush=True),
          num_workers: int | None = None) -> None:
    """Answer requests until SIGINT or SIGTERM comes; then answer those in flight, and pass the signal on.

    Args:
        host: address to listen to.
        port: 0 for any that is free.
        say: is told where the page is, once it can be opened.
        num_workers: processes that work out lists; None for `default_num_workers`.

    Raises:
        DataError: the port is in use, or the address is not one of this machine.
    """
    listening = _listen(host, port)
    num_workers = default_num_workers() if num_workers is None else num_workers
    torch.set_num_threads(1)  # a question is too small to share out, and BLAS's threads would wait for each other
    with listening, threadpool_limits(1):
        answers = Answers(recommender)
        answers.warm_up()
        gc.freeze()  # what is there now is no garbage; looking through it would delay answers, and the end by 0.8 s
        workers = Workers(answers, num_workers, MOST_WAITING, [listening]) if num_workers else None
        try:
            _run(Guard(make_app(answers, workers), host), host, listening, say)
        finally:
            if workers is not None:
                workers.end()


def _run(app: ASGIApp, host: str, listening: socket.socket, say: Callable[[str], None]) -> None:
    """Say where the page is, and serve it until a signal comes."""
    config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_level="critical", access_log=False,
                            server_header=False, timeout_keep_alive=KEEP_ALIVE_S, proxy_headers=False)
    config.timeout_graceful_shutdown = END_S  # type: ignore[assignment]
    shown = f"[{host}]" if ":" in host else host
    say(f"open http://{shown}:{listening.getsockname()[1]}/ in a browser; Ctrl-C ends it")
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    if server.should_exit:  # by a signal; once in some hundred times uvicorn did not pass it on
        raise KeyboardInterrupt


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Named as TCP, or asyncio would leave Nagle's algorithm on, and every answer would wait 40 ms for the client.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name == "posix":  # elsewhere it would let two programs have one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
        except OSError:
            listening.close()
            raise
        listening.listen(256)
        return listening
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise DataError(f"port {port} of {host} is in use; choose another: python rec.py --serve --port "
                            f"{port + 1 if port < 65535 else 8000}") from None
        reason = error.strerror if isinstance(error, OSError) else "no name of a machine"
        raise DataError(f"{host}, port {port}, cannot be listened to: {reason}") from None
