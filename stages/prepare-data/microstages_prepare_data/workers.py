"""A function over a stream of items in processes of their own, results in the order of the items.

Each process holds one item at a time, and a few results wait for a slower one before them, so memory is bounded by the
number of processes. They end with their parent however it ends: it holds the only other end of their pipes.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from microstages.errors import UserError

AHEAD = 4

T = TypeVar("T")
R = TypeVar("R")


def ordered(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`map(work, items)`; with one worker in this process. Raises what `work` raises, UserError if one is killed."""
    if workers <= 1 or not hasattr(os, "fork"):
        yield from map(work, items)
        return
    import multiprocessing

    context = multiprocessing.get_context("fork")  # the children have the tokenizer without loading it
    ends: list[Any] = []
    processes: list[Any] = []
    try:
        signals = {signal.SIGTERM, signal.SIGINT}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            for _ in range(workers):
                mine, theirs = context.Pipe()
                ends.append(mine)
                process = context.Process(target=_serve, args=(work, theirs, tuple(ends), signals), daemon=True)
                process.start()
                theirs.close()
                processes.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from _in_order(ends, iter(items))
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.terminate()
            process.join()


def _in_order(ends: Sequence[Any], items: Iterator[Any]) -> Iterator[Any]:
    """Whoever is idle gets the next item; results wait for their turn, AHEAD items for each process at most."""
    from multiprocessing.connection import wait

    idle = list(ends)
    busy: dict[Any, int] = {}
    done: dict[int, Any] = {}
    sent = given = 0
    more = True
    while True:
        while more and idle and sent - given < AHEAD * len(ends):
            try:
                item = next(items)
            except StopIteration:
                more = False
                break
            end = idle.pop()
            _send(end, item)
            busy[end] = sent
            sent += 1
        if given in done:
            yield done.pop(given)
            given += 1
        elif busy:
            for end in wait(list(busy)):
                done[busy.pop(end)] = _receive(end)
                idle.append(end)
        else:
            return


def _serve(work: Callable[[Any], Any], end: Any, others: Sequence[Any], signals: set[signal.Signals]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    for other in others:
        other.close()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while True:
        try:
            item = end.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[bool, Any] = True, work(item)
        except Exception as error:
            try:
                pickle.dumps(error)
                known = isinstance(error, (UserError, MemoryError, OSError))
                answer = False, error if known else RuntimeError(traceback.format_exc())
            except Exception:
                answer = False, RuntimeError(traceback.format_exc())
        try:
            end.send(answer)
        except OSError:
            return


def _send(end: Any, item: object) -> None:
    try:
        end.send(item)
    except OSError:
        raise _killed() from None


def _receive(end: Any) -> Any:
    try:
        done, value = end.recv()
    except (EOFError, OSError):
        raise _killed() from None
    if done:
        return value
    raise value


def _killed() -> UserError:
    return UserError(
        "a worker process was killed, most likely for want of memory",
        where="--workers",
        fix="give fewer workers, or more memory",
    )
