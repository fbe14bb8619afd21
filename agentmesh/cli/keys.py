"""`agentmesh keys`: tokens for the HTTP gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from agentmesh.cli.base import Commands, Session

commands = Commands()
keys = commands.group("keys", help="Make tokens for the HTTP gateway.", panel="Project")


@keys.command("new", example="agentmesh keys new\nagentmesh keys new --name mobile --tenant acme")
def new(
    session: Session,
    name: Annotated[str, typer.Option("--name", help="Of the key, in the settings.")] = "",
) -> None:
    """Print a new token, and its digest for the settings.

    The token is for the caller, and shown only here: `Authorization: Bearer TOKEN`. The digest may stand in mesh.toml.
    """
    from agentmesh.gateway.keys import MARK, digest, new_token

    tenant = session.options.tenant
    for kind, value in (("key", name), ("tenant", tenant)):
        if value:
            session.check(kind, value)
    token = new_token()
    stored = f"{MARK}{digest(token)}"
    if session.out.json:
        session.out.document({"token": token, "digest": stored})
        return
    session.out.answer(token)
    table = f"[http.keys.{name}]" if name else "[http]"
    owner = f'\ntenant = "{tenant}"' if tenant else ""
    session.out.note(f'\nthe token is shown only this once; in mesh.toml:\n\n{table}\ntoken = "{stored}"{owner}')
