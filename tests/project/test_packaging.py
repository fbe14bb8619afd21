"""What is built is what is here: packages, links, version, and an installation that works."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINKS = {"agents": "agentmesh.agents", "tools": "agentmesh.tools", "memory_store": "agentmesh.memory_store"}


def _packages() -> set[str]:
    found = set()
    for folder in ("agentmesh", *LINKS):
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            if "templates" in parts or parts[:2] in {("agentmesh", link) for link in LINKS}:
                continue
            name = ".".join(parts)
            found.add(name if parts[0] == "agentmesh" else f"agentmesh.{name}")
    return found


def test_every_package_is_listed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == _packages()


@pytest.mark.parametrize("link", LINKS)
def test_the_links_of_the_checkout_point_to_the_real_folders(link: str) -> None:
    path = ROOT / "agentmesh" / link
    assert path.is_symlink()
    assert path.readlink() == Path("..") / link


def test_the_version_is_the_same_everywhere() -> None:
    from agentmesh import __version__

    assert PROJECT["project"]["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_nothing_tells_anybody_to_install_the_placeholder_of_the_same_name() -> None:
    texts = [
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "agentmesh").rglob("*.py"),
    ]
    for path in texts:
        for line in path.read_text().splitlines():
            words = line.replace("'", " ").replace('"', " ").replace("`", " ").split()
            for first, second in itertools.pairwise(words):
                assert not (first == "install" and second.split("[")[0] == "agentmesh"), f"{path.name}: {line}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel and the source archive, built from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    return out


def test_the_wheel_has_every_module_and_no_foreign_top_level(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"agentmesh", f"agentmesh_nats-{PROJECT['project']['version']}.dist-info"}
    for package in _packages():
        assert f"{package.replace('.', '/')}/__init__.py" in names
    assert "agentmesh/py.typed" in names
    for data in (ROOT / "agentmesh" / "proto").glob("*.p*"):
        assert data.relative_to(ROOT).as_posix() in names
    for data in (ROOT / "agents" / "review").rglob("*"):
        if data.is_file() and data.suffix in {".css", ".js", ".html"}:
            assert f"agentmesh/{data.relative_to(ROOT).as_posix()}" in names


def test_the_source_archive_builds_the_same_wheel_content(built: Path, tmp_path: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--wheel",
            "--outdir",
            str(tmp_path / "again"),
            str(unpacked),
        ],
        check=True,
        capture_output=True,
    )
    (again,) = (tmp_path / "again").glob("*.whl")
    (wheel,) = built.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_modules_import_from_the_installed_wheel(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel)],
        check=True,
    )
    modules = ", ".join(sorted(_packages()))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {modules}; print(agentmesh.__file__)"
    shown = subprocess.run(
        [sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path
    ).stdout
    assert shown.strip().startswith(str(tmp_path))


@pytest.mark.seed("D20")
def test_the_one_command_of_the_readme_installs_what_tests_examples_and_benchmarks_import() -> None:
    from importlib.metadata import packages_distributions

    (command,) = re.findall(r"<!-- test-command -->\n(.*)\n", (ROOT / "README.md").read_text())
    assert command == "pip install -e '.[dev]' && python -m pytest -q -n auto --dist loadfile"
    assert "test-command" in (ROOT / ".ci" / "run").read_text()  # as it stands there, in an environment of its own

    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *itertools.chain.from_iterable(extras.values())]
    declared = {re.split(r"[\[<>=;~ ]", one)[0].lower().replace("_", "-") for one in wanted} | {"rich"}  # typer's
    known, strangers = packages_distributions(), {}
    for folder in ("tests", "examples", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for top in set(re.findall(r"^\s*(?:import|from) (\w+)", path.read_text(), re.MULTILINE)):
                made_by = {name.lower().replace("_", "-") for name in known.get(top, ())}
                if made_by and "agentmesh-nats" not in made_by and not made_by & declared:
                    strangers[top] = path.name
    assert strangers == {}


def test_importing_agentmesh_does_not_import_what_only_some_programs_need() -> None:
    heavy = [
        "rich",
        "typer",
        "aiosqlite",
        "cloudpickle",
        "watchfiles",
        "nats.micro",
        "agentmesh.cli",
        "sqlite3",
        "pytest",
    ]
    code = f"import agentmesh, sys; print([m for m in {heavy!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert shown.strip() == "[]"


@pytest.fixture(scope="module")
def bare(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with the wheel and what it requires, and nothing else."""
    home = tmp_path_factory.mktemp("bare")
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    install = ("-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    subprocess.run([home / "bin" / "python", *install], check=True)
    return home / "bin"


_EVERY_MODULE = """
import importlib, pkgutil, sys
import agentmesh
from agentmesh.errors import MissingExtraError

# Imported by one other module each, which first asks for the library and names its extra.
GATED = {"agentmesh.otel", "agentmesh.proto.making", "agentmesh.proto.plain"}
asked, failed, imported = set(), [], 0
for module in pkgutil.walk_packages(agentmesh.__path__, "agentmesh."):
    if module.name.endswith(("__main__", "_pb2")) or module.name in GATED:
        continue
    if module.name.startswith("agentmesh.testing"):
        continue
    try:
        importlib.import_module(module.name)
        imported += 1
    except MissingExtraError as error:
        asked.add(error.extra)
    except ImportError as error:
        failed.append(f"{module.name}: {error}")
for name in ("Meta", "LLMInferenceRequest", "inference_request"):
    try:
        getattr(importlib.import_module("agentmesh.proto"), name)
    except MissingExtraError as error:
        asked.add(error.extra)
print(imported, sorted(asked), failed)
sys.exit(bool(failed))
"""


@pytest.mark.slow
@pytest.mark.seed("A2")
def test_every_module_imports_with_the_required_packages_only_or_names_the_extra(bare: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [bare / "python", "-I", "-W", "error", "-c", _EVERY_MODULE],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert int(ran.stdout.split()[0]) > 150
    assert "['proto']" in ran.stdout


@pytest.mark.slow
@pytest.mark.seed("A1")
def test_a_stranger_gets_a_first_reply_without_docker_or_a_broker(bare: Path, tmp_path: Path) -> None:
    """As in the README: a project, `up`, `ask`; then the same with a broker that is already there."""

    def run(*arguments: str, cwd: Path, **more: str) -> str:
        environment = {"PATH": f"{bare}:/usr/bin:/bin", "HOME": str(tmp_path), **more}
        ran = subprocess.run(
            [bare / "agentmesh", *arguments], check=False, capture_output=True, text=True, cwd=cwd, env=environment
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    from agentmesh.broker import BrokerOptions, EmbeddedBroker

    run("init", "hello", cwd=tmp_path)
    project = tmp_path / "hello"
    up = ("up", "--detach", "--no-http")
    run(*up, "--port", "0", cwd=project)
    try:
        assert "hi" in run("ask", "greeter", "hi", cwd=project)
        run("check", "--strict", cwd=project)
    finally:
        run("down", cwd=project)
    with EmbeddedBroker(BrokerOptions(sync_always=False)) as broker:
        run(*up, cwd=project, NATS_URL=broker.url)
        try:
            assert "hi" in run("ask", "greeter", "hi", cwd=project, NATS_URL=broker.url)
        finally:
            run("down", cwd=project)
