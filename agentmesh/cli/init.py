"""`agentmesh init`: a small project that starts, answers and passes its own test."""

from __future__ import annotations

import keyword
import re
import shlex
import sys
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentmesh.cli.base import Commands, Session
from agentmesh.errors import UsageError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

commands = Commands()

TEMPLATE = "hello"
_SUFFIX = ".tmpl"  # so that no tool takes the templates for code of ours


@commands.command("init", example="agentmesh init hello\nagentmesh init .", panel="Start")
def init(
    session: Session,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where; made if it is not there.")] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="Name of the package; else made from DIR.")] = None,
) -> None:
    """Make a new project: two agents, a tool, a test and mesh.toml. Nothing that exists is overwritten."""
    package = name or package_name(directory)
    check_package(package)
    written = write_project(directory, package)
    out = session.out
    if out.json:
        out.document({"directory": str(directory), "package": package, "files": [str(path) for path in written]})
        return
    out.answer(out.style(f"{directory.absolute().name}/", "bold"))
    for line in _tree(written):
        out.answer(line)
    out.note(f"\nnext:\n{_next_commands(directory)}")


def package_name(directory: Path) -> str:
    """The name of the package for a project in `directory`.

    Raises:
        UsageError: The directory's name does not give one.
    """
    wanted = directory.absolute().name
    name = re.sub(r"\W+", "_", wanted.lower(), flags=re.ASCII).strip("_")
    if not name or name[0].isdigit():
        raise UsageError(f"no package name can be made from {wanted!r}; give one: --name my_agents")
    return name


def check_package(name: str) -> None:
    """Refuse what cannot be imported, or would hide another package.

    Raises:
        UsageError: Says why.
    """
    if re.fullmatch(r"[a-z_][a-z0-9_]{0,63}", name) is None:
        problem = "use lower-case letters, digits and '_', starting with a letter"
    elif keyword.iskeyword(name):
        problem = "it is a word of the language"
    elif name in sys.stdlib_module_names or name in ("agentmesh", "tests"):
        problem = "it would hide a module of that name"
    else:
        return
    raise UsageError(f"{name!r} cannot be the package's name: {problem}; choose another: --name my_agents")


def write_project(directory: Path, package: str) -> list[Path]:
    """Write the template; returns the files, relative to `directory`.

    Raises:
        UsageError: One of the files exists already; nothing was written.
    """
    contents = {Path(name.replace("PACKAGE", package)): text for name, text in _template()}
    existing = [str(path) for path in contents if (directory / path).exists()]
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file")
    if existing:
        raise UsageError(
            f"{directory} already has {', '.join(existing)}; nothing was written. Choose another directory"
        )
    for path, text in contents.items():
        target = directory / path
        filled = text.replace("{{package}}", package).replace("{{name}}", package.replace("_", "-"))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(filled, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {target}: {error.strerror}; choose another directory") from None
    return sorted(contents)


def _template() -> list[tuple[str, str]]:
    root = files("agentmesh.cli") / "templates" / TEMPLATE
    return [(path.removesuffix(_SUFFIX), text) for path, text in _walk(root, "")]


def _walk(folder: Traversable, path: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _walk(entry, f"{path}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            found.append((path + entry.name, entry.read_text(encoding="utf-8")))
    return found


def _tree(paths: list[Path]) -> list[str]:
    """The files as an indented tree, folders first named."""
    lines: list[str] = []
    seen: set[Path] = set()
    for path in sorted(paths, key=lambda path: (len(path.parts) == 1, path)):
        for folder in reversed(path.parents[:-1]):
            if folder not in seen:
                seen.add(folder)
                lines.append(f"{'  ' * len(folder.parts)}{folder.name}/")
        lines.append(f"{'  ' * len(path.parts)}{path.name}")
    return lines


def _next_commands(directory: Path) -> str:
    enter = "" if directory.absolute() == Path.cwd() else f"cd {shlex.quote(str(directory))} && "
    commands = (
        f"{enter}agentmesh up",
        'agentmesh ask greeter "hi"                       # in another terminal',
        "pip install pytest pytest-asyncio && pytest      # its own tests",
    )
    return "\n".join(f"  {command}" for command in commands)
