"""Imports point inwards only, and each outside library has one owner."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the inside out; a module may import its own layer and those before it.
CORE = [
    {"errors", "codes", "version"},
    {
        "ids",
        "ports",
        "subjects",
        "limits",
        "messages",
        "codec",
        "budgets",
        "context",
        "breaker",
        "trace",
        "tracing",
        "logs",
        "otel",
    },
    {"config", "runfile", "lifeline", "broker", "lane", "loopthread", "when"},
    {"transport", "mailbox", "proto"},
    {
        "registry",
        "presence",
        "streaming",
        "chunked",
        "streams",
        "chat",
        "memory",
        "tooling",
        "keyed",
        "tasks",
        "metrics",
    },
    {
        "schemas",
        "lease",
        "llmops",
        "happenings",
        "orders",
        "deathwatch",
        "refs",
        "outgoing",
        "asking",
        "telling",
        "client",
        "facade",
        "brokercheck",
        "subjectlint",
    },
    {"agent"},
    {"supervisor", "crashes", "figures", "flight", "host", "local", "sync", "mesh", "node"},
    {"gateway"},
    {"up", "testing"},
    {"chaos"},
    {"cli"},
    {"__main__"},
]
OUTER = [{"tools", "memory_store"}, {"agents"}]

OWNERS = {
    "nats": "agentmesh/transport/",
    "cloudpickle": "tools/",
    "aiosqlite": "agentmesh/lane.py",
    "google": "agentmesh/proto/",
    "typer": "agentmesh/cli/",
    "watchfiles": "agentmesh/up/",
    "opentelemetry": "agentmesh/otel.py",
    "starlette": "agentmesh/gateway/",
    "uvicorn": "agentmesh/gateway/",
    "h11": "agentmesh/gateway/",
}


def _sources() -> Iterator[tuple[str, Path]]:
    for folder in ("agentmesh", "agents", "tools", "memory_store"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if relative.parts[:2] in {("agentmesh", "agents"), ("agentmesh", "tools"), ("agentmesh", "memory_store")}:
                continue  # the links
            if "templates" not in relative.parts:
                yield relative.as_posix(), path


@cache
def _imports(path: Path) -> tuple[str, ...]:
    """Absolute names of what a module imports at run time, also inside functions; not for type checking only."""
    return tuple(_found_imports(path))


def _found_imports(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            if module == "agentmesh":
                yield from (f"agentmesh.{alias.name}" for alias in node.names)


def _layer(module: str) -> int | None:
    """Number of the layer a module of ours is in; None for other libraries."""
    parts = module.split(".")
    if parts[0] != "agentmesh" or len(parts) == 1:
        return None
    for number, names in enumerate([*CORE, *OUTER]):
        if parts[1] in names:
            return number
    return None


def _module(relative: str) -> str:
    name = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    return name if name.startswith("agentmesh") else f"agentmesh.{name}"


@pytest.mark.parametrize(("relative", "path"), list(_sources()), ids=lambda value: str(value))
def test_imports_point_inwards(relative: str, path: Path) -> None:
    own = _layer(_module(relative))
    if relative == "agentmesh/__init__.py":
        return  # re-exports
    assert own is not None, f"{relative} is in no layer: add it to CORE or OUTER"
    for imported in _imports(path):
        layer = _layer(imported)
        assert layer is None or layer <= own, f"{relative} imports {imported}, which is further out"


@pytest.mark.parametrize("library", OWNERS)
def test_each_outside_library_has_one_owner(library: str) -> None:
    users = {relative for relative, path in _sources() if library in {name.split(".")[0] for name in _imports(path)}}
    assert users, f"nothing uses {library}"
    strangers = sorted(user for user in users if not user.startswith(OWNERS[library]))
    assert not strangers, f"{library} belongs to {OWNERS[library]}, but is imported by {strangers}"


def test_the_environment_is_read_in_one_place() -> None:
    allowed = (
        "agentmesh/config/",
        "agentmesh/broker.py",
        "tools/",
        "agentmesh/cli/",
        "agentmesh/up/",
        "agentmesh/lifeline.py",
    )
    readers = {
        relative for relative, path in _sources() if not relative.startswith(allowed) and _reads_environment(path)
    }
    assert not readers


def _reads_environment(path: Path) -> bool:
    names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    return bool(names & {"os.environ", "os.getenv"})


def test_all_exceptions_of_the_product_live_in_one_module() -> None:
    for relative, path in _sources():
        if relative == "agentmesh/errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).split(".")[-1] for base in node.bases}
                errors = {base for base in bases if base.endswith("Error") or base in ("Exception", "BaseException")}
                assert not errors, f"{relative}: {node.name} belongs into agentmesh/errors.py"


def test_no_half_done_work_is_left_in_the_sources() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")
    for relative, path in _sources():
        text = path.read_text()
        assert not [word for word in words if word in text], relative


def test_python_is_new_enough() -> None:
    assert sys.version_info >= (3, 11)
