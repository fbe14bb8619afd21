"""A conversation on a cluster of three, in which servers are killed."""

from __future__ import annotations

import asyncio

import pytest

from agentmesh import Mesh, connect
from agentmesh.chaos import Cluster
from agentmesh.transport import TransportOptions

LIMIT = 90.0


async def read(mesh: Mesh, chat: str) -> list[str]:
    return [chunk.content async for chunk in mesh.streams.read(chat, to_end=True)]


@pytest.mark.slow
@pytest.mark.seed("D27")
async def test_f2_servers_of_a_cluster_killed_one_after_the_other_change_nothing_of_the_text(chat: str) -> None:
    async with Cluster() as cluster, asyncio.timeout(LIMIT):
        options = TransportOptions(url=cluster.urls, replicas=3, connect_timeout=30.0)
        async with connect(cluster.urls[0], transport=options) as mesh, connect(cluster.urls[1]) as other:
            reading = asyncio.create_task(read(other, chat))
            async with mesh.streams.run(chat) as run:
                for number in range(300):
                    await run.send(str(number))
                    if number % 10 == 0:
                        await run.flush()
                    if number % 70 == 60:  # somebody else speaks in between, and a server dies
                        async with other.streams.run(chat, role="user") as aside:
                            await aside.finish("aside")
                        server = cluster.servers[number // 70 % 3]
                        server.kill9()
                        await asyncio.sleep(0.3)
                        await server.start()
                await run.finish()
            told = await reading
            again = await read(mesh, chat)

    assert told == again
    assert [word for word in told if word != "aside"] == [*map(str, range(300)), ""]
    assert told.count("aside") == 4
