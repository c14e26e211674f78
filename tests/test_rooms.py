"""The rooms of the package: who may import whom, how many there are, and how large files are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "stableopt"

FLOORS = [
    {"functional", "types"},
    {"errors"},
    {"runtime"},
    {"update", "sensors", "triggers", "layouts", "telemetry", "testing"},
    {"ranks"},
    {"guard"},
    {"snapshots"},
    {"health"},
    {"transforms"},
    {"loop"},
    {"presets"},
    {"config"},
    {"optimizer"},
    {"integrations", "recorded"},
    {"commands"},
    {"__init__", "__main__"},
]
"""The lowest first: a room may import from those below it, and from none beside or above it."""

MOST_LINES = 350
MOST_ENTRIES = 25


def rooms() -> dict[str, int]:
    return {room: i for i, floor in enumerate(FLOORS) for room in floor}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, those for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
            if node.module == "stableopt":
                names = [f"stableopt.{alias.name}" for alias in node.names]
            found |= {name for name in names if name.split(".")[0] == "stableopt"}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "stableopt"}
    return found


def test_every_room_has_its_floor():
    entries = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__pycache")}
    assert entries - {"py"} == set(rooms())


def test_there_are_few_rooms():
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    """So there is no circle among rooms either."""
    floors = rooms()
    inside = path.relative_to(PACKAGE.parent).with_suffix("").parts
    own = inside[1]
    for module in imported(path):
        other = room_of(module)
        assert other == own or floors[other] < floors[own], f"{'.'.join(inside)} imports {module}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_circle_among_files():
    graph = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): imported_at_once(path)
        for path in modules()
    }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def imported_at_once(path: Path) -> set[str]:
    """Return the modules of ours that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stableopt."):
            found.add(node.module)
    return found
