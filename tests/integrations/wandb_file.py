"""Read what W&B has stored offline: a LevelDB log of protocol buffers."""

from __future__ import annotations

import json
import math
import struct
import time
from pathlib import Path
from typing import NamedTuple

_BLOCK, _HEADER = 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


class Stored(NamedTuple):
    """A run in a file.

    Attributes:
        rows: ``{(name, step): value}``, from all rows of the history.
        config: The configuration.
        summary: What was set in the summary of the run.
        settings: Project, group and the like.
        exit_code: ``None`` if the run was never ended.
    """

    rows: dict
    config: dict
    summary: dict
    settings: object
    exit_code: int | None


def read(folder: Path) -> Stored:
    """Return the run in ``folder/wandb/offline-run-…``, of which there must be one."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return read_ended(path)


def read_ended(path: Path) -> Stored:
    """Return the run in a file whose end W&B's own process may still be writing."""
    deadline, size = time.monotonic() + 30.0, -1
    while time.monotonic() < deadline:
        before, size = size, path.stat().st_size
        if size == before and (stored := read_file(path)).exit_code is not None:
            return stored
        time.sleep(0.1)
    return read_file(path)


def read_file(path: Path) -> Stored:
    """Return the run in a file."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, config, summary, settings, exit_code = {}, {}, {}, None, None
    for data in _records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            step = record.history.step.num
            for item in record.history.item:
                name = "/".join(item.nested_key) or item.key
                assert (name, step) not in rows, "logged twice"
                rows[name, step] = _value(item.value_json)
        elif kind == "run":
            settings = record.run
            config.update(_items(record.run.config))
        elif kind == "config":
            config.update(_items(record.config))
        elif kind == "summary":
            summary.update(_items(record.summary))
        elif kind == "exit":
            exit_code = record.exit.exit_code
    return Stored(rows, config, summary, settings, exit_code)


def _items(holder) -> dict:
    return {"/".join(i.nested_key) or i.key: _value(i.value_json) for i in holder.update}


def _value(text: str):
    value = json.loads(text)
    spelled = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    return spelled.get(value, value) if isinstance(value, str) else value


def _records(data: bytes):
    """Yield the records of a LevelDB log, put together over blocks."""
    assert data[:4] == b":W&B"
    place, parts = _HEADER, []
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0:
            place += left
            continue
        parts.append(data[place + _HEADER : place + _HEADER + length])
        place += _HEADER + length
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
