"""A checkpoint file as named tensors; nothing in it is executed."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from stableopt.commands.audit.flatten import flatten
from stableopt.errors import ConfigError, MissingExtraError
from stableopt.runtime.paths import usable
from stableopt.runtime.words import natural

SAFE = ".safetensors"
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", SAFE)

_FEW = 3
"""How many names an error shows."""

_GLOBAL = re.compile(r"(?:GLOBAL|global:?) ([\w.]*\.\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTensor:
    """A tensor of a checkpoint.

    Attributes:
        name: The first of its names, dotted.
        tensor: On the CPU; ``None`` if it could not be read.
        aliases: Its other names, if it is shared.
        problem: Why it could not be read.
    """

    name: str
    tensor: Tensor | None
    aliases: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is in a file.

    Attributes:
        path: The file.
        tensors: Everything but optimizer state; each shared tensor once. In the order of the
            file, or, where that keeps none, of the names with their numbers.
        optimizer_tensors: How many tensors of optimizer state were left out.
    """

    path: Path
    tensors: tuple[NamedTensor, ...]
    optimizer_tensors: int = 0

    def matching(self, pattern: str) -> Checkpoint:
        """Return only the tensors of which a name fits ``pattern``.

        Args:
            pattern: As in :mod:`fnmatch`; upper and lower case differ.

        Raises:
            ConfigError: None fits.
        """
        found = tuple(
            named
            for named in self.tensors
            if any(fnmatchcase(name, pattern) for name in (named.name, *named.aliases))
        )
        if not found:
            some = ", ".join(repr(named.name) for named in self.tensors[:_FEW])
            raise ConfigError(
                f"match={pattern!r} must fit the name of a tensor in {self.path.name}: it has "
                f"{len(self.tensors)}, e.g. {some}; a * stands for anything"
            )
        return Checkpoint(path=self.path, tensors=found, optimizer_tensors=self.optimizer_tensors)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read every tensor of a file of torch or of safetensors.

    Nothing in the file is executed: a file of torch is read with ``weights_only=True``.

    Args:
        path: ``.pt``, ``.pth``, ``.bin`` or ``.ckpt``; or ``.safetensors``.

    Raises:
        ConfigError: It is missing, is no such file, is damaged, needs arbitrary pickle, or
            has no tensor besides optimizer state.
        MissingExtraError: The package safetensors is needed and not installed.

    Cost:
        The file is mapped where its format allows it, and read when it is measured.
    """
    _check_file(path)
    checkpoint = _read_safetensors(path) if path.suffix.lower() == SAFE else _read_torch(path)
    if not checkpoint.tensors:
        count = checkpoint.optimizer_tensors
        only = f"only {count} tensors of optimizer state" if count else "no tensor"
        advice = "give the file that model.state_dict() was saved to"
        raise _unusable(path, f"must hold weights, and has {only}: {advice}")
    return checkpoint


def _unusable(path: Path, why: str) -> ConfigError:
    return ConfigError(f"checkpoint={str(path)!r} {why}")


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        example = f", e.g. {inside[0]!r}" if inside else ""
        raise _unusable(path, f"must be a file, not a directory: give a file in it{example}")
    if not path.exists():
        raise _unusable(path, "must exist: check the path")
    if path.suffix.lower() not in SUFFIXES:
        endings = ", ".join(SUFFIXES)
        raise _unusable(
            path, f"must end in one of {endings}: rename it if torch.save or safetensors wrote it"
        )
    advice = "give a file that this process may read"
    with usable("checkpoint", path, "read", advice), path.open("rb") as file:
        empty = not file.read(1)
    if empty:
        raise _unusable(path, "is empty: give a complete file, or save it again")


def _read_torch(path: Path) -> Checkpoint:
    try:
        with warnings.catch_warnings():
            # About the storage of old versions of torch, which the user cannot change here.
            warnings.simplefilter("ignore")
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:
        raise _refusal(path, error) from error
    tensors, left_out = flatten(content)
    return Checkpoint(path=path, tensors=tuple(_share(tensors)), optimizer_tensors=left_out)


def _refusal(path: Path, error: Exception) -> ConfigError:
    """Return why a file cannot be read: it would run code, or it is damaged."""
    text = str(error)
    if "TorchScript" in text:
        return _unusable(
            path,
            "must hold tensors only, and is a TorchScript program, which is not run here: save its "
            "weights with torch.save(module.state_dict(), ...)",
        )
    found = _GLOBAL.search(text)
    if found or "Unsupported class" in text or "unrecognized function" in text:
        what = f"the Python object {found[1]}" if found else "a Python object"
        return _unusable(
            path,
            f"must hold tensors only, and needs {what}: loading it would run code of the file, so "
            "it was not loaded. If you trust it, load it with torch.load(..., weights_only=False) "
            "and save its weights with torch.save(model.state_dict(), ...)",
        )
    return _damaged(path, error, "torch.save")


def _damaged(path: Path, error: Exception, writer: str) -> ConfigError:
    why = f"it is damaged, or was not written by {writer} ({first_line(error)})"
    return _unusable(path, f"cannot be read: {why}. Copy or save it again")


def first_line(error: BaseException) -> str:
    """Return what an error says, in a few words."""
    words = str(error).strip().partition("\n")[0].strip() or type(error).__name__
    return words if len(words) <= 100 else f"{words[:99]}…"


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "safetensors":
            raise
        raise MissingExtraError("reading .safetensors", "audit") from error
    pairs: list[tuple[str, Tensor]] = []
    problems: list[NamedTensor] = []
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            for name in sorted(file.keys(), key=natural):
                try:
                    pairs.append((name, file.get_tensor(name)))
                except (SafetensorError, RuntimeError, ValueError, KeyError, AttributeError) as err:
                    problems.append(NamedTensor(name=name, tensor=None, problem=first_line(err)))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error, "safetensors") from error
    shared = list(_share(pairs, metadata))
    return Checkpoint(path=path, tensors=(*shared, *problems))


def _share(
    pairs: Iterable[tuple[str, Tensor]], metadata: dict[str, str] | None = None
) -> Iterable[NamedTensor]:
    """Return each tensor once, with all its names.

    Args:
        pairs: Name and tensor.
        metadata: Of a file of safetensors, whose ``save_model`` keeps there which name stood
            for which other.
    """
    names: dict[Hashable, list[str]] = {}
    tensors: dict[Hashable, Tensor] = {}
    for name, tensor in pairs:
        key = _identity(tensor)
        tensors.setdefault(key, tensor)
        names.setdefault(key, []).append(name)
    known = {name: found for found in names.values() for name in found}
    for alias, name in (metadata or {}).items():
        if name in known and alias not in known:
            known[name].append(alias)
    for key, tensor in tensors.items():
        first, *others = names[key]
        yield NamedTensor(name=first, tensor=tensor, aliases=tuple(others))


def _identity(tensor: Tensor) -> Hashable:
    """Return what two tensors have in common only if they are the same memory, read alike."""
    try:
        place = tensor.data_ptr()
        layout = (tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), tensor.is_conj())
    except (RuntimeError, ValueError):
        return id(tensor)
    return (place, *layout) if place and tensor.numel() else id(tensor)
