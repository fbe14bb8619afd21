"""A streamed answer in protobuf over NATS, token by token.

python examples/ai_integration_service.py     # in another terminal
python examples/streaming_client.py [PROMPT]
"""

import asyncio
import sys

from agentmesh import connect
from agentmesh.agents.llm.client import LLMClient
from agentmesh.errors import AgentMeshError
from agentmesh.proto import inference_request
from agentmesh.runfile import broker_address

SUBJECT = "svc.ai.llm.v1.infer"
PROMPT = "Say: This is a demo response..."


async def main(prompt: str) -> None:
    async with connect(broker_address()) as mesh:
        print("Connected to NATS")
        request = inference_request(prompt, stream=True, meta={"client_id": "example"})
        print(f"Sending streaming request to {SUBJECT}")
        # A chunk that is missing, an answer that stops in the middle and an error are raised, not overlooked.
        async for chunk in LLMClient(mesh, door=SUBJECT).infer_stream(request):
            if not chunk.is_final:
                print(chunk.output_text_delta, end="", flush=True)
                continue
            print("\n\nGeneration complete")
            print(f"Generation ID: {chunk.generation_id}")
            print(f"Finish reason: {chunk.finish_reason}")
            print(f"Total tokens: {chunk.usage.total_tokens}")


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else PROMPT))
    except AgentMeshError as error:
        sys.exit(f"{error}\nStart the service first: python examples/ai_integration_service.py, or agentmesh up")
    except KeyboardInterrupt:
        sys.exit(130)
