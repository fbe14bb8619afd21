"""`agentmesh version`."""

from __future__ import annotations

import sys

from agentmesh.cli.base import Commands, Session

commands = Commands()


@commands.command("version", example="agentmesh version\nagentmesh version --json", panel="Project")
def version(session: Session) -> None:
    """Print the versions of agentmesh, Python, the NATS client and the broker that would be started."""
    from importlib.metadata import version as installed

    from agentmesh.broker import find_server, server_version
    from agentmesh.errors import BrokerError
    from agentmesh.version import __version__

    try:
        broker = server_version(find_server())
    except BrokerError as error:
        broker = f"none ({error})"
    facts = {
        "agentmesh": __version__,
        "python": sys.version.split()[0],
        "nats-py": installed("nats-py"),
        "pydantic": installed("pydantic"),
        "nats-server": broker,
    }
    if session.out.json:
        session.out.document(facts)
    else:
        session.out.fields(facts.items())
