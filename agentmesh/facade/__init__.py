"""Plain publish, subscribe and request, with the keywords of the integration guides.

    async with NATSClient() as nats_client:
        await nats_client.subscribe(subject="ai.gateway.requests.acme", callback=answer, queue="gateway.workers")
        reply = await nats_client.request(subject="ai.gateway.requests.acme", payload=encoded, timeout=60.0)

`mesh.nats` is the same on the connection of a mesh. It is the low level, for code that thinks in subjects and bytes;
the verbs of a mesh (tell, ask, submit) know types, deadlines and who is there. docs/guides.md maps one to the other.

What it does that the client library does not:

* A callback that raises ends nothing, and a request gets its error as the answer. Callbacks of one subscription run
  side by side, up to `concurrency`.
* `timeout=60` is sixty seconds. Errors are also the built-in `ConnectionError` and `TimeoutError`.
* What goes to a stream of agentmesh is stored when `publish` returns, and a worker's message is acknowledged after the
  work.

Where to look: `client` the object itself, `subscriptions` those that pass by, `working` those from a stream, `message`
what a callback gets, `compression`, `serializer` the guides' codec.
"""

from agentmesh.facade.client import NATSClient
from agentmesh.facade.message import Incoming
from agentmesh.facade.serializer import CodecSerializer
from agentmesh.facade.subscriptions import FacadeSubscription

__all__ = ["CodecSerializer", "FacadeSubscription", "Incoming", "NATSClient"]
