"""The test kit: fixtures for pytest (`plugin`) and the `Probe`, an address that records what it receives.

    async def test_the_greeter_tells_the_auditor(mesh, spawn, probe):
        auditor = await probe("auditor")
        greeter = await spawn(Greeter)

        await greeter.ask(Greet(name="Ada"))

        assert (await auditor.expect(Greeted)).name == "Ada"

Everything is real: a nats-server from the wheel, started once per session, and a tenant of its own for each test.
"""

from agentmesh.testing.probe import Probe, Received

__all__ = ["Probe", "Received"]
