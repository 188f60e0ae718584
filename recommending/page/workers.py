"""Who answers questions: a thread, or copies of the server's process, and a bounded number of questions that wait.

In one process two questions would take turns for the interpreter. Where the system can copy a process (fork), some
copies work out people's lists. They share the memory of the original, and the run that it has loaded, whatever becomes
of its files. A copy that is gone is missed by nobody: a thread answers in its place.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from fastapi import HTTPException, Response

from preprocessing.dataset import DataError
from recommending.page.answers import Answers
from recommending.page.messages import Person, Question

QUESTIONS: dict[str, type[Person]] = {"recommend": Question, "ask": Person}  # methods of Answers that copies call
HEAD = struct.Struct(">HI")  # which of them, or the status of an answer; and the number of bytes that follow


class Pool:
    """Some threads that work."""

    def __init__(self, num_threads: int, most_waiting: int) -> None:
        """Start no thread yet."""
        self._threads, self._most, self._waiting = ThreadPoolExecutor(num_threads, "question"), most_waiting, 0

    async def run(self, function: Callable[..., str], *args: Any) -> Response:
        """Call a function that writes JSON; return what it writes."""
        if self._waiting >= self._most:
            raise HTTPException(503, "the server has too much to do; ask again in a second", {"Retry-After": "1"})
        self._waiting += 1
        try:
            written = await self._call(function, *args)
        finally:
            self._waiting -= 1
        return Response(written, media_type="application/json")

    async def _call(self, function: Callable[..., str], *args: Any) -> str | bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


class Workers(Pool):
    """Copies of this process that work, and a thread for when there are none."""

    def __init__(self, answers: Answers, number: int, most_waiting: int,
                 close: Callable[[], None] = lambda: None) -> None:
        """Make so many copies of this process, in which nothing else may be at work.

        Args:
            answers: whose QUESTIONS they answer.
            close: is called in each copy: closes what it has no use for.
        """
        super().__init__(1, most_waiting)
        self._idle: asyncio.LifoQueue[socket.socket] = asyncio.LifoQueue()
        self._pids: dict[socket.socket, int] = {}
        for _ in range(number):
            here, there = socket.socketpair()
            pid = os.fork()
            if not pid:
                for end in (here, *self._pids):
                    end.close()  # else it would stay open when the server is gone
                close()
                _work(answers, there)
            there.close()
            here.setblocking(False)
            self._pids[here] = pid
            self._idle.put_nowait(here)

    def end(self) -> None:
        """End the copies, whatever they are doing."""
        for worker in list(self._pids):
            self._give_up(worker)

    async def _call(self, function: Callable[..., str], *args: Any) -> str | bytes:
        while self._pids:
            worker = await self._idle.get()
            if worker not in self._pids:  # the last one is gone: whoever else waits is to know
                self._idle.put_nowait(worker)
                break
            try:
                status, written = await _ask(worker, function.__name__, *args)
            except OSError:
                self._give_up(worker)
                break
            except BaseException:  # the answer is still to come, and would be taken for the next question's
                self._give_up(worker)
                raise
            self._idle.put_nowait(worker)
            if status != 200:
                raise HTTPException(status, written.decode())
            return written
        return await super()._call(function, *args)

    def _give_up(self, worker: socket.socket) -> None:
        """End a copy; let who waits for one look again."""
        pid = self._pids.pop(worker)
        worker.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if not self._pids:
            self._idle.put_nowait(worker)


async def _ask(worker: socket.socket, name: str, question: Person) -> tuple[int, bytes]:
    """Send a copy a question; return the status of its answer and JSON, or a sentence where that is not 200."""
    loop, body = asyncio.get_running_loop(), question.model_dump_json().encode()

    async def read(number: int) -> bytes:
        found = bytearray()
        while len(found) < number:
            some = await loop.sock_recv(worker, number - len(found))
            if not some:
                raise ConnectionError
            found += some
        return bytes(found)

    await loop.sock_sendall(worker, HEAD.pack(list(QUESTIONS).index(name), len(body)) + body)
    status, number = HEAD.unpack(await read(HEAD.size))
    return status, await read(number)


def _work(answers: Answers, server: socket.socket) -> NoReturn:
    """Answer what the server asks until it is gone; then end this process."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # are the server's, which answers what is in flight
            signal.signal(number, signal.SIG_IGN)
        kinds = list(QUESTIONS.items())
        with server.makefile("rb") as questions:
            while head := questions.read(HEAD.size):
                which, number = HEAD.unpack(head)
                name, kind = kinds[which]
                status, written = _answer(getattr(answers, name), kind.model_validate_json(questions.read(number)))
                server.sendall(HEAD.pack(status, len(written)) + written)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def _answer(method: Callable[[Any], str], question: Person) -> tuple[int, bytes]:
    try:
        return 200, method(question).encode()
    except HTTPException as error:
        return error.status_code, str(error.detail).encode()
    except Exception as error:
        traceback.print_exc()
        return 500, failure(error).encode()


def failure(error: Exception) -> str:
    """Return what an answer says where the server has failed."""
    return str(error) if isinstance(error, DataError) else "the server has failed; its terminal says why"
