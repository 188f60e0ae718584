"""Who works out answers: a thread, or worker processes; and a bounded number of questions that wait for them.

In one process two questions would take turns for the interpreter. Where the system can copy a process (fork), workers
are copies of the server's. They share its memory, and the run that it has loaded, whatever becomes of its files; they
read the ratings by `pread`, which moves no position that they share. If a worker is killed, its question goes to
another, and if there is none, to a thread.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import torch
from fastapi import HTTPException, Response

from preprocessing.dataset import DataError
from recommending.page.answers import Answers
from recommending.page.messages import Person, Question

QUESTIONS: dict[str, type[Person]] = {"recommend": Question, "ask": Person}  # the methods of Answers that workers call
HEADER = struct.Struct(">HI")  # the place of a method in QUESTIONS, or the status of an answer; the bytes that follow
MOST_WORKERS = 8
MOST_DEATHS = 2  # of workers by one question, before it is refused
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Pool:
    """Threads that call functions, and a bounded number of calls that wait for one."""

    def __init__(self, num_threads: int, most_waiting: int) -> None:
        """Start no thread yet; `most_waiting` counts the calls in work too."""
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
    """Worker processes that call methods of Answers, and a thread for when there is none."""

    def __init__(self, answers: Answers, num_workers: int, most_waiting: int,
                 not_theirs: Sequence[socket.socket] = ()) -> None:
        """Copy this process, in which nothing else may be at work; fewer times where the system refuses.

        Args:
            answers: whose QUESTIONS the workers answer.
            not_theirs: sockets that a worker has no use for, and closes.
        """
        super().__init__(1, most_waiting)
        self._idle: list[socket.socket] = []
        self._pids: dict[socket.socket, int] = {}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until a worker ignores them
        try:
            for _ in range(num_workers):
                ours, theirs = socket.socketpair()
                try:
                    pid = os.fork()
                except OSError:
                    ours.close()
                    theirs.close()
                    break
                if not pid:
                    _work(answers, theirs, [ours, *self._pids, *not_theirs])
                theirs.close()
                ours.setblocking(False)
                self._pids[ours] = pid
                self._idle.append(ours)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._places = asyncio.Semaphore(max(len(self._idle), 1))  # who has waited longest is the next

    def end(self) -> None:
        """End the workers, whatever they are doing."""
        for worker in list(self._pids):
            self._give_up(worker)

    async def _call(self, function: Callable[..., str], *args: Any) -> str | bytes:
        deaths = 0
        while deaths < MOST_DEATHS:
            await self._places.acquire()
            if not self._idle:  # no worker is left: whoever else waits is to know
                self._places.release()
                return await super()._call(function, *args)
            worker = self._idle.pop()
            try:
                status, written = await _ask(worker, function.__name__, *args)
            except OSError:
                self._give_up(worker)
                print("a worker process of the server is gone; others answer, more slowly", file=sys.stderr, flush=True)
                deaths += 1
                continue
            except BaseException:  # the answer is still to come, and would be taken for the next question's
                self._give_up(worker)
                raise
            self._idle.append(worker)
            self._places.release()
            if status != 200:
                raise HTTPException(status, written.decode())
            return written
        raise HTTPException(503, "the server could not finish this question")

    def _give_up(self, worker: socket.socket) -> None:
        """End a worker, whose place stays empty; where it is the last one, let who waits know."""
        pid = self._pids.pop(worker)
        if not self._pids:
            self._places.release()
        worker.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # where this process was started with SIGCHLD ignored
            os.waitpid(pid, 0)


def default_num_workers() -> int:
    """Return how many workers a server has: one for each thread that PyTorch may use, MOST_WORKERS at most; none where
    that is one, and none but on Linux, where a process that has had threads can be copied."""
    num_workers = min(torch.get_num_threads(), MOST_WORKERS)
    return num_workers if sys.platform == "linux" and num_workers > 1 else 0


async def _ask(worker: socket.socket, name: str, question: Person) -> tuple[int, bytes]:
    """Send a worker a question; return the status of its answer and JSON, or a sentence where that is not 200."""
    loop, body = asyncio.get_running_loop(), question.model_dump_json().encode()

    async def read(num_bytes: int) -> bytes:
        found = bytearray()
        while len(found) < num_bytes:
            chunk = await loop.sock_recv(worker, num_bytes - len(found))
            if not chunk:
                raise ConnectionError
            found += chunk
        return bytes(found)

    await loop.sock_sendall(worker, HEADER.pack(list(QUESTIONS).index(name), len(body)) + body)
    status, num_bytes = HEADER.unpack(await read(HEADER.size))
    return status, await read(num_bytes)


def _work(answers: Answers, server: socket.socket, not_theirs: list[socket.socket]) -> NoReturn:
    """Answer what the server asks until it is gone, then end this process."""
    try:
        for signum in SIGNALS:  # are for the server, which answers what is in flight
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for other in not_theirs:
            other.close()  # else a worker would not see that the server is gone, and its port would stay in use
        kinds = list(QUESTIONS.items())
        with server.makefile("rb") as questions, contextlib.suppress(ConnectionError):
            while len(header := questions.read(HEADER.size)) == HEADER.size:
                place, num_bytes = HEADER.unpack(header)
                if len(body := questions.read(num_bytes)) < num_bytes:
                    break
                name, kind = kinds[place]
                status, written = _answer(getattr(answers, name), kind.model_validate_json(body))
                server.sendall(HEADER.pack(status, len(written)) + written)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def _answer(method: Callable[[Any], str], question: Person) -> tuple[int, bytes]:
    """Return the status and the body of an answer; where that is not 200, the body is a sentence."""
    try:
        return 200, method(question).encode()
    except HTTPException as error:
        return error.status_code, str(error.detail).encode()
    except Exception as error:
        traceback.print_exc()
        return 500, failure_sentence(error).encode()


def failure_sentence(error: Exception) -> str:
    """Return what an answer says where the server has failed."""
    return str(error) if isinstance(error, DataError) else "the server has failed; its terminal says why"
