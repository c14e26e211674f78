"""Run a function on several ranks, each a process of its own; no test can hang."""

from __future__ import annotations

import atexit
import faulthandler
import os
import time
import traceback
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 20
"""Seconds for which a call of torch.distributed waits."""


class RankFailedError(AssertionError):
    """A rank raised, or did not end in time."""


def run(function, *args, ranks=2, limit=90, patience=None, fresh=False, **options):
    """Return what ``function(rank, *args, **options)`` returns on every rank.

    The processes are kept for the next call while all goes well.

    Args:
        function: Of a module, so that other processes find it.
        args: Passed on.
        ranks: How many there are.
        limit: Seconds after which a rank is stopped, and shows where it was.
        patience: Timeout of the process group, in seconds, which is then one of its own.
        fresh: Whether the processes are used for this alone: it leaves something behind.
        options: Passed on.
    """
    alone = fresh or patience is not None
    world = None if alone else _KEPT.pop(ranks, None)
    world = world or World(ranks, patience or PATIENCE)
    found = world.call(function, args, options, limit)
    if alone:
        world.end()
    else:
        _KEPT[ranks] = world
    return found


class World:
    """Processes that are the ranks of one job.

    Args:
        ranks: How many.
        patience: Timeout of their process group, in seconds.
    """

    def __init__(self, ranks, patience):
        self._folder = TemporaryDirectory(prefix="ranks")
        context = mp.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            given = (rank, ranks, self._folder.name, patience, theirs)
            self._pipes.append(mine)
            self._processes.append(context.Process(target=_enter, args=given, daemon=True))
            self._processes[-1].start()
            theirs.close()

    def call(self, function, args, options, limit):
        """Call a function on every rank; end the world if one of them fails."""
        for pipe in self._pipes:
            pipe.send((function, args, options, limit))
        found, until = [], time.monotonic() + limit + 30
        for rank, pipe in enumerate(self._pipes):
            try:
                answered = pipe.poll(max(0.0, until - time.monotonic()))
                done, value = pipe.recv() if answered else (False, "it did not answer")
            except EOFError:
                done, value = False, "it has ended"
            if not done:
                error = Path(self._folder.name, f"error{rank}")
                where = error.read_text() if error.exists() else ""
                self.end()
                raise RankFailedError(f"rank {rank}: {value}\n{where}"[-4000:])
            found.append(value)
        return found

    def end(self):
        """Stop all processes."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._folder.cleanup()


_KEPT: dict[int, World] = {}


@atexit.register
def _end_all():
    for world in _KEPT.values():
        world.end()


def _enter(rank, ranks, folder, patience, pipe):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    errors = Path(folder, f"error{rank}").open("w")  # noqa: SIM115 - until the process ends
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=patience),
    )
    while True:
        function, args, options, limit = pipe.recv()
        faulthandler.dump_traceback_later(limit, exit=True, file=errors)
        try:
            answer = True, function(rank, *args, **options)
        except BaseException:  # noqa: BLE001 - it is shown by the process that waits
            answer = False, traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        pipe.send(answer)
