"""One request, one answer, in protobuf over NATS.

    python examples/ai_integration_service.py     # in another terminal
    python examples/ai_integration_client.py

Whatever speaks protobuf and NATS can do this: `agentmesh proto export DIR` writes the `.proto` files.
"""

import asyncio
import sys

from agentmesh.errors import AgentMeshError
from agentmesh.facade import NATSClient
from agentmesh.proto import LLMInferenceResponse, inference_request

SUBJECT = "svc.ai.llm.v1.infer"


async def main() -> None:
    async with NATSClient() as nats_client:
        print("Connected to NATS")
        request = inference_request(
            "Tell me about NATS messaging",
            temperature=0.0,  # is sent: a value of 0 is not the same as none
            max_tokens=100,
            meta={"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "client_id": "example"},
        )
        request.meta.idempotency_key = request.meta.request_id  # asked again with it, the same answer comes back
        print(f"Sending request to {SUBJECT}")
        answer = await nats_client.request(
            subject=SUBJECT,
            payload=request.SerializeToString(),
            timeout=60.0,
            headers={"Content-Type": "application/x-protobuf"},
        )
        response = LLMInferenceResponse.FromString(answer.data)
        print(f"Generation ID: {response.generation_id}")
        print(f"Output: {response.output_text}")
        print(f"Tokens used: {response.usage.total_tokens}")
        print(f"Finish reason: {response.finish_reason}")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except AgentMeshError as error:
        sys.exit(f"{error}\nStart the service first: python examples/ai_integration_service.py, or agentmesh up")
    except KeyboardInterrupt:
        sys.exit(130)
