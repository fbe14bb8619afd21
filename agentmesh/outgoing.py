"""What everything that is sent has in common: envelopes that say what follows from the message at hand."""

from __future__ import annotations

import msgspec

from agentmesh import codec
from agentmesh.context import covering, current, next_hops
from agentmesh.errors import DefinitionError
from agentmesh.ids import new_id, now
from agentmesh.messages import Message, wire_name
from agentmesh.subjects import Subjects
from agentmesh.tasks import TaskClient
from agentmesh.tasks.layout import use_scheme
from agentmesh.trace import inherit, outside
from agentmesh.tracing import Kind
from agentmesh.transport import Transport


class Outgoing:
    """Who sends, and over what.

    Args:
        transport: The connection, shared.
        subjects: The tenant's subjects.
        identity: The name that receivers see as the sender.
    """

    def __init__(self, transport: Transport, subjects: Subjects, identity: str) -> None:
        self.transport = transport
        self.subjects = subjects
        self.identity = identity
        use_scheme(transport, subjects)
        self.tasks = TaskClient(transport, subjects)

    def _envelope(self, agent: str, message: Message) -> codec.Envelope:
        name = wire_name(type(message))
        if not name:
            raise DefinitionError(type(message).__name__, "subclass it and send an instance of the subclass")
        return self._outline(agent, name, msgspec.Raw(codec.encode_body(message)))

    def _outline(self, agent: str, message_type: str, content: msgspec.Raw) -> codec.Envelope:
        here = current() or outside()
        envelope = codec.Envelope(
            message_id=new_id(),
            message_type=message_type,
            timestamp=now(),
            source_agent_id=self.identity,
            target_agent_id=agent,
            schema_version=codec.SCHEMA_VERSION,
            content=content,
            trace_id=here.trace_id if here else "",
            hops=next_hops(),
            budget=covering(),
        )
        if here is not None and (here.traceparent or here.baggage):
            inherit(envelope, here)
        if self.transport.tracer is not None:
            self.transport.tracer.begin(envelope, envelope.message_id)
        return envelope

    def _headers(self, envelope: codec.Envelope) -> dict[str, str] | None:
        """None unless this process traces: headers cost more than the rest of a message."""
        tracer = self.transport.tracer
        return None if tracer is None else tracer.headers(envelope)

    def _sent(self, envelope: codec.Envelope, kind: Kind = "producer", error: BaseException | None = None) -> None:
        """For those who trace: it was sent, or answered."""
        tracer = self.transport.tracer
        if tracer is not None and envelope.timestamp is not None:
            what = f"{envelope.target_agent_id} {envelope.message_type}".lstrip()
            problem = "" if error is None or isinstance(error, GeneratorExit) else f"{type(error).__name__}: {error}"
            tracer.sent(envelope, what, envelope.timestamp.timestamp(), kind, problem)
