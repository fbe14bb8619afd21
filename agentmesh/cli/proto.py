"""`agentmesh proto`: the protobuf files of the model door, for other languages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agentmesh.cli.base import Commands, Session
from agentmesh.errors import UsageError

commands = Commands()
PANEL = "Project"

proto = commands.group("proto", help="The protobuf files of the model door.", panel=PANEL)


@proto.command("ls", example="agentmesh proto ls\nagentmesh proto ls --json")
def ls(session: Session) -> None:
    """List the files, their packages and messages, and the fingerprint of them all."""
    from agentmesh.proto.files import FILES, FINGERPRINT, outline

    found = [(name, *outline(name)) for name in FILES]
    if session.out.json:
        entries = [{"file": name, "package": package, "messages": messages} for name, package, messages in found]
        session.out.document({"fingerprint": FINGERPRINT, "files": entries})
        return
    rows = [(name, package, ", ".join(messages)) for name, package, messages in found]
    session.out.table(["FILE", "PACKAGE", "MESSAGES"], rows, empty="")
    session.out.note(f"fingerprint {FINGERPRINT}")


@proto.command("export", example="agentmesh proto export proto/")
def export(
    session: Session,
    directory: Annotated[Path, typer.Argument(help="Where to; it is made if it is not there.")],
) -> None:
    """Write the files, to make code from them in any language: `protoc -I DIR --python_out=… DIR/*.proto`."""
    from agentmesh.proto.files import export

    try:
        written = export(directory)
    except OSError as error:
        raise UsageError(f"cannot write into {directory}: {error.strerror or error}") from error
    if session.out.json:
        session.out.document([str(path) for path in written])
    else:
        for path in written:
            session.out.answer(str(path))
