"""Doors to the LLM gateway for clients that speak no agentmesh: one behaviour, several dialects.

| subject                    | dialect                                                                    |
| -------------------------- | -------------------------------------------------------------------------- |
| `svc.ai.llm.v1.infer[.T]`  | `inference`: `ai_integration.v1` as protobuf, JSON or msgpack               |
| `ai.gateway.requests.T`    | `requests`: the JSON of queue workers; one answer, chunks, or a durable job |

Where to look: `door` how a message is taken and answered, `desk` how an answer is had (deadline, idempotency,
cancelling), `documents` what is allowed in a request. `docs/doors.md` is the page.
"""

from agentmesh.agents.llm.doors.doors import Doors

__all__ = ["Doors"]
