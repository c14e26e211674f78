"""Run a function on several ranks, each a process of its own; no test can hang."""

from __future__ import annotations

import faulthandler
import os
import pickle
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


def run(function, *args, ranks=2, limit=90, patience=PATIENCE, **options):
    """Return what ``function(rank, *args, **options)`` returns on every rank.

    Args:
        function: Of a module, so that other processes find it.
        args: Passed on.
        ranks: How many there are.
        limit: Seconds after which a rank is stopped, and shows where it was.
        patience: Timeout of the process group, in seconds.
        options: Passed on.
    """
    with TemporaryDirectory(prefix="ranks") as folder:
        context = mp.get_context("spawn")
        given = (function, args, options, ranks, folder, limit, patience)
        processes = [context.Process(target=_enter, args=(rank, *given)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(limit + 30)
        for process in processes:
            process.kill()
        return [_result(Path(folder), rank) for rank in range(ranks)]


def _enter(rank, function, args, options, ranks, folder, limit, patience):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    errors = Path(folder, f"error{rank}").open("w")  # noqa: SIM115 - until the process ends
    faulthandler.dump_traceback_later(limit, exit=True, file=errors)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=patience),
        )
        found = function(rank, *args, **options)
        part = Path(folder, f"part{rank}")
        part.write_bytes(pickle.dumps(found))
        part.rename(Path(folder, f"result{rank}"))
    except BaseException:  # noqa: BLE001 - it is shown by the process that waits
        traceback.print_exc(file=errors)
    errors.flush()
    os._exit(0)  # the others may wait in a call that nobody answers


def _result(folder, rank):
    result = folder / f"result{rank}"
    if not result.exists():
        error = folder / f"error{rank}"
        text = error.read_text() if error.exists() else "it did not start"
        raise RankFailedError(f"rank {rank}: {text[-3000:]}")
    return pickle.loads(result.read_bytes())
