"""A client of `svc.ai.llm.v1.infer` that has only nats-py, protobuf and stubs of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from typing import Any

import ai_integration_pb2 as ai  # type: ignore[import-not-found]
import common_pb2 as common  # type: ignore[import-not-found]
import nats
from google.protobuf.wrappers_pb2 import BoolValue, DoubleValue, UInt32Value

SUBJECT = "svc.ai.llm.v1.infer"


async def main(url: str, prompt: str) -> dict[str, Any]:
    nc = await nats.connect(url)
    request = ai.LLMInferenceRequest(
        meta=common.Meta(request_id="req-1", trace_id="trace-1", idempotency_key="key-1", labels={"a": "b"}),
        prompt=prompt,
        params=ai.GenerationParameters(temperature=DoubleValue(value=0.0), max_tokens=UInt32Value(value=100)),
    )
    reply = await nc.request(SUBJECT, request.SerializeToString(), timeout=20)
    response = ai.LLMInferenceResponse()
    response.ParseFromString(reply.data)

    inbox = nc.new_inbox()
    subscription = await nc.subscribe(inbox)
    streaming = ai.LLMInferenceRequest(prompt=prompt, params=ai.GenerationParameters(stream=BoolValue(value=True)))
    await nc.publish(SUBJECT, streaming.SerializeToString(), reply=inbox)
    chunks: list[Any] = []
    while not chunks or not chunks[-1].is_final:
        message = await subscription.next_msg(timeout=20)
        chunks.append(ai.LLMStreamChunk.FromString(message.data))

    refused = ai.LLMInferenceResponse.FromString((await nc.request(SUBJECT, b"", timeout=20)).data)
    await nc.close()
    said = hashlib.sha256(ai.DESCRIPTOR.serialized_pb + common.DESCRIPTOR.serialized_pb).hexdigest()
    meta = response.meta
    return {
        "agentmesh": "agentmesh" in sys.modules,
        "text": response.output_text,
        "finish": response.finish_reason,
        "total_tokens": response.usage.total_tokens,
        "meta": {
            "request_id": meta.request_id,
            "trace_id": meta.trace_id,
            "idempotency_key": meta.idempotency_key,
            "labels": dict(meta.labels),
        },
        "streamed": "".join(chunk.output_text_delta for chunk in chunks),
        "indexes": [chunk.index for chunk in chunks],
        "finish_streamed": chunks[-1].finish_reason,
        "total_streamed": chunks[-1].usage.total_tokens,
        "error": [common.Error.Code.Name(refused.error.code), refused.error.message],
        "fingerprint": said[:16],
        "fingerprint_of_the_answer": (reply.headers or {}).get("Schema-Fingerprint"),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
