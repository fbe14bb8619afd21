"""The code of the integration guides runs: as it is written there, or done right where it cannot work as written.

What was changed, and why, is in docs/guides.md.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from agentmesh import Agent as MeshAgent
from agentmesh import Event, Mesh, Task, handler
from agentmesh.errors import DefinitionError, NoRespondersError, QueueFullError, RemoteError
from agentmesh.facade import CodecSerializer, Incoming, NATSClient
from tests.harness import eventually

TIMEOUT = 20.0
logger = logging.getLogger("guides")


# ------------------------------------------------------------ agent to agent


class Agent:
    """As in the guide; `time` has a zone, and the client and the codec are given."""

    def __init__(self, agent_id: str, tenant_id: str, nats_client: NATSClient) -> None:
        self.agent_id = agent_id
        self.tenant_id = tenant_id
        self.nats_client = nats_client
        self.codec = CodecSerializer()
        self.received: list[dict[str, Any]] = []

    async def send_message(self, target_agent_id: str, content: str) -> None:
        """Send message to another agent via NATS."""
        message_envelope = self.codec.encode(
            {
                "message_id": str(uuid.uuid4()),
                "source_agent_id": self.agent_id,
                "target_agent_id": target_agent_id,
                "content": content,
                "message_type": "text",
                "timestamp": datetime.now(UTC).isoformat(),
                "schema_version": "1.0",
            }
        )
        await self.nats_client.publish(
            subject=f"ai.agent.message.{self.tenant_id}",
            payload=message_envelope,
            headers={"target_agent_id": target_agent_id, "source_agent_id": self.agent_id},
        )

    async def handle_message(self, message_data: dict[str, Any]) -> None:
        self.received.append(message_data)

    async def setup_message_subscription(self) -> None:
        """Subscribe to receive messages."""

        async def message_handler(msg: Incoming) -> None:
            message_data = self.codec.decode(msg.data)
            if message_data["target_agent_id"] == self.agent_id:
                await self.handle_message(message_data)

        await self.nats_client.subscribe(
            subject=f"ai.agent.message.{self.tenant_id}", callback=message_handler, queue=f"agent.{self.agent_id}"
        )


@pytest.mark.seed("C3", "B49")
async def test_agents_of_the_guide_send_messages_to_each_other(nats_client: NATSClient, tenant_id: str) -> None:
    ada, ben = Agent("ada", tenant_id, nats_client), Agent("ben", tenant_id, nats_client)
    for agent in (ada, ben):
        await agent.setup_message_subscription()

    await ada.send_message("ben", "hello")

    await eventually(lambda: ben.received, TIMEOUT)
    assert ben.received[0]["content"] == "hello"
    assert ben.received[0]["source_agent_id"] == "ada"
    assert ada.received == []


class Text(Event):
    text: str


class Reader(MeshAgent):
    def __init__(self, read: asyncio.Queue[tuple[str, str]]) -> None:
        self.read = read

    @handler
    async def text(self, event: Text) -> None:
        self.read.put_nowait((self.name, event.text))


async def test_done_right_the_address_is_in_the_subject_and_one_agent_gets_it(mesh: Mesh) -> None:
    read: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    for name in ("reader-1", "reader-2"):
        await mesh.spawn(Reader, read, name=name)

    await mesh.nats.publish(
        subject=mesh.subjects.mailbox("reader-2"),
        payload=CodecSerializer().encode({"message_type": "Text", "content": {"text": "hello"}}),
        headers={"source_agent_id": "ada"},
    )
    await mesh.nats.publish(subject=mesh.subjects.mailbox("reader-2"), payload="just text")

    async with asyncio.timeout(TIMEOUT):
        assert [await read.get(), await read.get()] == [("reader-2", "hello"), ("reader-2", "just text")]
    assert read.empty()


# ------------------------------------------------------------ tasks


@dataclass
class AgentTask:
    task_id: str
    agent_id: str
    task_type: str
    parameters: dict[str, Any]
    priority: str = "normal"


async def distribute_task(nats_client: NATSClient, tenant_id: str, task: AgentTask) -> None:
    """As in the guide."""
    task_envelope = CodecSerializer().encode(
        {
            "task_id": task.task_id,
            "agent_id": task.agent_id,
            "task_type": task.task_type,
            "parameters": task.parameters,
            "priority": task.priority,
            "timestamp": datetime.now(UTC).isoformat(),
            "schema_version": "1.0",
        }
    )
    await nats_client.publish(subject=f"ai.agent.tasks.{tenant_id}", payload=task_envelope)


@pytest.mark.seed("B50")
async def test_a_task_is_stored_and_brought_again_until_a_worker_of_the_guide_has_done_it(
    nats_client: NATSClient, tenant_id: str, mesh: Mesh
) -> None:
    task = AgentTask("sum-1", "workers", "Sum", {"numbers": [1, 2, 3]})
    await distribute_task(nats_client, tenant_id, task)  # nobody is there yet: a plain publish would be lost
    attempts: list[int] = []

    async def task_handler(msg: Incoming) -> int:
        attempts.append(msg.attempt)
        if len(attempts) == 1:
            raise RuntimeError("the worker fails in the middle")
        return sum(CodecSerializer().decode(msg.data)["parameters"]["numbers"])

    await nats_client.subscribe(subject=f"ai.agent.tasks.{tenant_id}", callback=task_handler, queue="agent.workers")

    async with _tasks_of(mesh, tenant_id) as client:
        assert await client.job("sum-1").result(timeout=TIMEOUT) == 6
    assert attempts == [1, 2]


def _tasks_of(mesh: Mesh, tenant_id: str) -> Any:
    from agentmesh import connect

    return connect(mesh.url, tenant=tenant_id, own_thread=False)


@pytest.mark.seed("C3")
async def test_where_a_mesh_dispatches_a_worker_serves_the_queue_of_an_agent(mesh: Mesh) -> None:
    tenant = mesh.subjects.tenant
    with pytest.raises(DefinitionError, match="dispatcher"):
        await mesh.nats.subscribe(subject=f"ai.agent.tasks.{tenant}", callback=print, queue="agent.workers")

    async def task_handler(msg: Incoming) -> str:
        return f"done by hand: {CodecSerializer().decode(msg.data)['task_type']}"

    await mesh.nats.subscribe(
        subject=f"ai.agent.tasks.{tenant}.workers.*", callback=task_handler, queue="agent.workers"
    )
    await distribute_task(mesh.nats, tenant, AgentTask("t-1", "workers", "Anything", {}, priority="high"))

    assert await mesh.job("t-1").result(timeout=TIMEOUT) == "done by hand: Anything"


async def test_a_task_that_was_cancelled_is_not_begun(nats_client: NATSClient, tenant_id: str, mesh: Mesh) -> None:
    await distribute_task(nats_client, tenant_id, AgentTask("gone", "workers", "Sum", {}))
    await distribute_task(nats_client, tenant_id, AgentTask("here", "workers", "Sum", {}))
    async with _tasks_of(mesh, tenant_id) as client:
        await client.job("gone").cancel()
        done: list[str] = []

        async def task_handler(msg: Incoming) -> None:
            done.append(CodecSerializer().decode(msg.data)["task_id"])

        await nats_client.subscribe(
            subject=f"ai.agent.tasks.{tenant_id}", callback=task_handler, queue="agent.workers", concurrency=1
        )
        await client.job("here").result(timeout=TIMEOUT)
    assert done == ["here"]


class Sum(Task[int]):
    numbers: list[int]


class Adder(MeshAgent):
    @handler
    async def sum(self, task: Sum) -> int:
        return sum(task.numbers)


async def test_done_right_the_worker_is_an_agent_that_takes_the_type(mesh: Mesh) -> None:
    await mesh.spawn(Adder)

    await distribute_task(mesh.nats, mesh.subjects.tenant, AgentTask("t-2", "adder", "Sum", {"numbers": [4, 5]}))

    assert await mesh.job("t-2", Sum).result(timeout=TIMEOUT) == 9


# ------------------------------------------------------------ gateway


@dataclass
class LLMAnswer:
    text: str
    total_tokens: int
    cost: float


async def make_llm_call(request_data: dict[str, Any]) -> LLMAnswer:
    words = f"Response to: {request_data['prompt']}"
    return LLMAnswer(words, len(words.split()), 0.0)


async def gateway_worker(nats_client: NATSClient, codec: CodecSerializer, tenant_id: str) -> None:
    """As in the guide, but it answers whoever asked instead of publishing to everybody."""

    async def process_request(msg: Incoming) -> None:
        request_data = codec.decode(msg.data)
        response = await make_llm_call(request_data)
        response_envelope = codec.encode(
            {
                "request_id": request_data["request_id"],
                "response": response.text,
                "tokens": response.total_tokens,
                "cost": response.cost,
                "schema_version": "1.0",
            }
        )
        await msg.respond(response_envelope, headers={"request_id": request_data["request_id"]})

    await nats_client.subscribe(
        subject=f"ai.gateway.requests.{tenant_id}",
        callback=process_request,
        queue="gateway.workers",  # Load balancing
    )


async def generate_async(
    nats_client: NATSClient, codec: CodecSerializer, prompt: str, model: str, tenant_id: str
) -> dict[str, Any]:
    """As in the guide, but with one request, whose answer is the answer."""
    request_id = str(uuid.uuid4())
    request_envelope = codec.encode(
        {
            "request_id": request_id,
            "prompt": prompt,
            "model": model,
            "tenant_id": tenant_id,
            "timestamp": datetime.now(UTC).isoformat(),
            "schema_version": "1.0",
        }
    )
    response = await nats_client.request(
        subject=f"ai.gateway.requests.{tenant_id}",
        payload=request_envelope,
        timeout=60.0,
        headers={"request_id": request_id, "model": model, "priority": "normal"},
    )
    assert response.headers["request_id"] == request_id
    return codec.decode(response.data)


@pytest.mark.seed("B31", "C3", "C4")
async def test_generate_async_is_one_request_with_one_answer(
    nats_client: NATSClient, codec: CodecSerializer, tenant_id: str
) -> None:
    for _ in range(2):
        await gateway_worker(nats_client, codec, tenant_id)

    answers = await asyncio.gather(
        *(generate_async(nats_client, codec, f"question {number}", "any", tenant_id) for number in range(20))
    )

    assert [answer["response"] for answer in answers] == [f"Response to: question {number}" for number in range(20)]
    assert {answer["tokens"] for answer in answers} == {4}


@pytest.mark.seed("B31")
async def test_as_the_guide_writes_it_the_request_finds_nobody_at_once(
    nats_client: NATSClient, codec: CodecSerializer, tenant_id: str
) -> None:
    await gateway_worker(nats_client, codec, tenant_id)

    with pytest.raises(NoRespondersError):
        await nats_client.request(subject=f"ai.gateway.responses.{tenant_id}", payload=b"{}", timeout=60.0)


async def test_a_failing_model_is_an_answer_too(
    nats_client: NATSClient, codec: CodecSerializer, tenant_id: str
) -> None:
    await gateway_worker(nats_client, codec, tenant_id)

    with pytest.raises(RemoteError, match="KeyError"):
        await nats_client.request(
            subject=f"ai.gateway.requests.{tenant_id}", payload=codec.encode({"model": "any"}), timeout=TIMEOUT
        )


# ------------------------------------------------------------ RAG


@dataclass
class Document:
    document_id: str
    content: str
    metadata: dict[str, str] = field(default_factory=dict)


@pytest.mark.seed("B36", "B38")
async def test_documents_are_ingested_and_queried_by_one_request_each(
    nats_client: NATSClient, codec: CodecSerializer, tenant_id: str
) -> None:
    """The guide sends the document twice, the second time to where nobody answers; here its status is the answer."""
    stored: dict[str, str] = {}

    async def ingest(msg: Incoming) -> None:
        document = codec.decode(msg.data)
        stored[document["document_id"]] = document["content"]
        await msg.respond(codec.encode({"document_id": document["document_id"], "status": "ingested"}))

    async def answer(msg: Incoming) -> None:
        query = codec.decode(msg.data)
        found = [name for name, content in stored.items() if query["query"] in content]
        await msg.respond(codec.encode({"query_id": query["query_id"], "results": found}))

    await nats_client.subscribe(subject=f"ai.rag.ingest.{tenant_id}", callback=ingest, queue="rag.workers")
    await nats_client.subscribe(subject=f"ai.rag.queries.{tenant_id}", callback=answer, queue="rag.workers")

    async def ingest_document_async(document: Document) -> dict[str, Any]:
        document_envelope = codec.encode(
            {
                "document_id": document.document_id,
                "content": document.content,
                "metadata": document.metadata,
                "tenant_id": tenant_id,
                "timestamp": datetime.now(UTC).isoformat(),
                "schema_version": "1.0",
            }
        )
        status = await nats_client.request(
            subject=f"ai.rag.ingest.{tenant_id}", payload=document_envelope, timeout=300.0
        )
        return codec.decode(status.data)

    async def query_async(query: str) -> dict[str, Any]:
        query_envelope = codec.encode(
            {
                "query_id": str(uuid.uuid4()),
                "query": query,
                "tenant_id": tenant_id,
                "timestamp": datetime.now(UTC).isoformat(),
                "schema_version": "1.0",
            }
        )
        result_envelope = await nats_client.request(
            subject=f"ai.rag.queries.{tenant_id}", payload=query_envelope, timeout=30.0
        )
        return codec.decode(result_envelope.data)

    assert (await ingest_document_async(Document("d1", "subjects and streams")))["status"] == "ingested"
    await ingest_document_async(Document("d2", "queue groups"))
    assert (await query_async("streams"))["results"] == ["d1"]


# ------------------------------------------------------------ LLMOps


@dataclass
class LLMOperation:
    operation_id: str
    tenant_id: str
    operation_type: str = "generate"
    model: str = "any"
    prompt_tokens: int = 3
    completion_tokens: int = 4
    total_tokens: int = 7
    cost_usd: float = 0.25
    latency_ms: float = 12.5
    status: str = "ok"
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))


async def test_an_operation_is_logged_durably_by_the_publish_of_the_guide(
    nats_client: NATSClient, codec: CodecSerializer, tenant_id: str, mesh: Mesh
) -> None:
    seen: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    await nats_client.subscribe(
        subject=f"ai.llmops.operations.{tenant_id}", callback=lambda msg: seen.put_nowait(codec.decode(msg.data))
    )

    async def log_operation(operation: LLMOperation) -> None:
        operation_envelope = codec.encode(
            {
                "operation_id": operation.operation_id,
                "operation_type": operation.operation_type,
                "model": operation.model,
                "tokens": {
                    "prompt": operation.prompt_tokens,
                    "completion": operation.completion_tokens,
                    "total": operation.total_tokens,
                },
                "cost": operation.cost_usd,
                "latency_ms": operation.latency_ms,
                "status": operation.status,
                "tenant_id": operation.tenant_id,
                "timestamp": operation.timestamp.isoformat(),
                "schema_version": "1.0",
            }
        )
        await nats_client.publish(subject=f"ai.llmops.operations.{operation.tenant_id}", payload=operation_envelope)

    await log_operation(LLMOperation("op-1", tenant_id))

    async with asyncio.timeout(TIMEOUT):
        logged = await seen.get()
    assert logged["operation_id"] == "op-1"
    assert logged["tokens"] == {"prompt": 3, "completion": 4, "total": 7}
    stored = await mesh.transport.messages("OPERATIONS", f"ai.llmops.operations.{tenant_id}")
    assert [codec.decode(message.data)["operation_id"] for message in stored] == ["op-1"]


# ------------------------------------------------------------ error handling, customisation


async def test_the_error_handling_of_the_guide_runs(nats_client: NATSClient, caplog: pytest.LogCaptureFixture) -> None:
    async def publish_with_backpressure(subject: str, payload: bytes) -> None:
        try:
            await nats_client.publish(subject=subject, payload=payload)
        except QueueFullError:
            await asyncio.sleep(0.1)
            await nats_client.publish(subject=subject, payload=payload)

    async def request_with_timeout(subject: str, payload: bytes, timeout: float) -> Incoming:
        try:
            return await asyncio.wait_for(nats_client.request(subject=subject, payload=payload), timeout=timeout)
        except TimeoutError:
            logger.warning(f"Request timeout for subject: {subject}")
            raise

    await publish_with_backpressure("guides.news", b"news")
    await nats_client.subscribe(subject="guides.never", callback=lambda msg: None)
    with pytest.raises(asyncio.TimeoutError):
        await request_with_timeout("guides.never", b"", 0.05)
    assert "Request timeout for subject: guides.never" in caplog.text


@pytest.mark.seed("B49", "B50")
async def test_custom_queue_groups_and_headers_pass_through(nats_client: NATSClient, tenant_id: str) -> None:
    got: asyncio.Queue[Incoming] = asyncio.Queue()
    for _ in range(3):
        await nats_client.subscribe(
            subject=f"ai.agent.message.{tenant_id}", callback=got.put_nowait, queue="custom.worker.group"
        )
    headers = {"priority": "high", "retry_count": "0", "custom_header": "value", "X-Trace-ID": "t 1: ä"}

    for _ in range(9):
        await nats_client.publish(subject=f"ai.agent.message.{tenant_id}", payload=b"encoded", headers=headers)
    await nats_client.publish(subject=f"ai.agent.message.{tenant_id}", payload=b"last")

    messages: list[Incoming] = []
    async with asyncio.timeout(TIMEOUT):
        while len(messages) < 10:
            messages.append(await got.get())
    assert got.empty()  # each went to one of the three
    assert [message.headers for message in messages if message.data == b"encoded"] == [headers] * 9
    assert {message.attempt for message in messages} == {1}
