"""An inference service: protobuf requests on `svc.ai.llm.v1.infer`, load-balanced by a queue group.

    python examples/ai_integration_service.py            # answers "Response to: …"
    python examples/ai_integration_service.py --offline  # answers by the offline model of agentmesh

It needs nothing but Python: without `$NATS_URL`, and without an `agentmesh up` in this folder, it starts a broker on
port 4222, where the clients beside it look. Start it twice and the two share the work. The gateway it runs decodes
requests, answers each exactly once, also those that cannot be read, and streams to whoever asks for a stream.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator

from agentmesh import connect
from agentmesh.agents.llm import LLMGateway, LLMPart, ModelBackend, ModelCall
from agentmesh.agents.llm.backends.offline import count_tokens, tokenize
from agentmesh.local import broker_here

SAY = "Say: "


class DemoModel:
    """Says what it is told to say, or what it was told; where a real model would be called."""

    name = "demo"

    async def generate(self, call: ModelCall) -> AsyncIterator[LLMPart]:
        prompt = call.messages[-1].content
        text = prompt.removeprefix(SAY) if prompt.startswith(SAY) else f"Response to: {prompt}"
        tokens = tokenize(text)
        allowed = tokens if call.params.max_tokens is None else tokens[: call.params.max_tokens]
        for token in allowed:
            yield LLMPart(type="text", content=token)
            await asyncio.sleep(0.01)  # a model takes its time
        usage = {
            "prompt_tokens": sum(count_tokens(message.content) for message in call.messages),
            "completion_tokens": len(allowed),
        }
        yield LLMPart(type="finish", data={"finish_reason": "stop" if allowed == tokens else "length", "usage": usage})

    async def close(self) -> None:
        pass


async def main(offline: bool) -> None:
    models: dict[str, ModelBackend] = {} if offline else {"default": DemoModel()}
    async with broker_here() as url, connect(url) as mesh:
        await mesh.spawn(LLMGateway, models=models, name="ai-integration")
        print("AI Integration Service started")
        print(f"Listening on {mesh.subjects.infer()} with queue group {mesh.subjects.infer_group()}", flush=True)
        await asyncio.Event().wait()  # until Ctrl-C


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="An inference service on svc.ai.llm.v1.infer.")
    arguments.add_argument("--offline", action="store_true", help="answer by the offline model of agentmesh")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(arguments.parse_args().offline))
