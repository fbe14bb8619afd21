"""The pytest plug-in: it is loaded in every pytest run of its environment, so it imports nothing before it is used.

| fixture       | scope    | what                                                                                    |
| ------------- | -------- | --------------------------------------------------------------------------------------- |
| `nats_server` | session  | an embedded broker (`agentmesh.broker.EmbeddedBroker`) with a temporary store             |
| `mesh`        | function | a connected `Mesh` in a tenant of its own, with dispatcher, mover and memory service     |
| `spawn`       | function | `await spawn(AgentClass, ...)`, like `mesh.spawn`; the agents end with the test          |
| `probe`       | function | `await probe("name")`: an address that records what it receives                          |

The asynchronous fixtures need pytest-asyncio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

import pytest

F = TypeVar("F", bound=Callable[..., object])


def async_fixture(function: F) -> F:
    """A fixture that is a coroutine or an asynchronous generator, whatever the mode of pytest-asyncio."""
    try:
        import pytest_asyncio
    except ImportError:
        # Without pytest-asyncio only `nats_server` works; pytest says so where another fixture is used.
        return cast("F", pytest.fixture(function))
    return cast("F", pytest_asyncio.fixture(function))


if TYPE_CHECKING:
    from pathlib import Path

    from agentmesh import AgentRef, Mesh
    from agentmesh.broker import EmbeddedBroker
    from agentmesh.testing.probe import Probe


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """A real nats-server on a free port, for the whole session; without a disk sync per write, for speed."""
    from agentmesh.broker import BrokerOptions, EmbeddedBroker

    broker = EmbeddedBroker(BrokerOptions(store=tmp_path_factory.mktemp("nats-server"), sync_always=False))
    broker.start_sync()
    yield broker
    broker.stop_sync()


@async_fixture
async def mesh(nats_server: EmbeddedBroker, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A mesh of its own: other tests' agents, tasks and records are in other tenants."""
    from agentmesh import connect
    from agentmesh.ids import new_id
    from agentmesh.local import LocalServices

    async with connect(nats_server.url, tenant=f"test-{new_id()}", own_thread=False) as connected:
        services = LocalServices(tmp_path)
        await services.start_services(connected.transport, connected.subjects)
        yield connected
        await services.stop_services()


@async_fixture
async def spawn(mesh: Mesh) -> AsyncIterator[Callable[..., Awaitable[AgentRef]]]:
    """Start agents in the test's process; they are stopped with the test."""
    yield mesh.spawn


@async_fixture
async def probe(mesh: Mesh) -> AsyncIterator[Callable[[str], Awaitable[Probe]]]:
    """Make probes; each takes the address it is given."""
    from agentmesh.testing.probe import Probe

    made: list[Probe] = []

    async def make(name: str = "probe") -> Probe:
        one = Probe(mesh, name)
        await one.start()
        made.append(one)
        return one

    yield make
    for one in made:
        await one.stop()
