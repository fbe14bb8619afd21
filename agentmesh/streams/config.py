"""`Config`: where the broker of a `Publisher` or `Subscriber` is, and how long what they write is kept."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from agentmesh import config, runfile
from agentmesh.errors import ConfigError
from agentmesh.streams.follow import STREAM
from agentmesh.streams.streams import Streams
from agentmesh.subjects import Subjects, token
from agentmesh.transport import Transport, TransportOptions

log = logging.getLogger("agentmesh.streams")

DEFAULT_PREFIX = "ai-stream"

_LOCAL = "nats://127.0.0.1:4222"
_KAFKA_PORT = ":9092"


class Config(BaseModel):
    """Settings of a `Publisher` or `Subscriber`; what is not given comes from `$AGENTMESH_STREAM_<NAME>`.

    Without `servers` the broker is found like everywhere: `$NATS_URL`, a running `agentmesh up` of this folder or one
    above it; else it is looked for at 127.0.0.1:4222. None is started: what a process keeps for itself is no stream.

    Raises:
        ConfigError: A setting is unknown or wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    servers: str | None = Field(default=None, validation_alias=AliasChoices("servers", "bootstrap_servers"))
    """`host:port` or URLs, several separated by commas."""

    tenant: str | None = None
    """Whose conversations; unset: that of the `agentmesh up` that was found, else `default`."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """With `SSL` in it: TLS before anything else is said."""

    sasl_mechanism: str | None = None
    """Taken for the sake of old settings: the broker says how one logs in."""

    sasl_username: str | None = None
    """User name."""

    sasl_password: str | None = Field(default=None, repr=False)
    """Password."""

    auth_token: str | None = Field(default=None, repr=False)
    """Instead: a token."""

    creds: str | None = None
    """Instead: path of a NATS credentials file."""

    tls_ca: str | None = None
    """Path of the certificate authority's certificate; unset: those of the system."""

    tls_cert: str | None = None
    """Path of our certificate."""

    tls_key: str | None = None
    """Path of our certificate's key."""

    topic_prefix: str = Field(
        default=DEFAULT_PREFIX, validation_alias=AliasChoices("topic_prefix", "subject_prefix", "prefix")
    )
    """Keeps the conversations of applications apart: any other than `ai-stream` is put before the conversation's id,
    with a hyphen."""

    num_partitions: int = Field(default=1, ge=1)
    """Not needed, and without effect: a conversation is one subject, and any number of them share a stream."""

    replication_factor: int | None = Field(default=None, ge=1, le=5)
    """Copies of what is stored, if this program makes the stream; unset: 3 in a cluster of three or more, else 1."""

    retention_hours: float = Field(default=168.0, gt=0)
    """How long what this program writes is kept, at most as long as the stream keeps it."""

    compression: bool = True
    """Whether the broker compresses what it has on disk, if the stream is made by this program."""

    def __init__(self, **values: Any) -> None:
        found = config.stream_variables()
        for names in (("servers", "bootstrap_servers"), ("topic_prefix", "subject_prefix", "prefix")):
            if any(name in values for name in names):
                for name in names:
                    found.pop(name, None)
        found = {name: value for name, value in found.items() if name not in values}
        try:
            super().__init__(**{**found, **values})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "Config"
            key = f"AGENTMESH_STREAM_{name.upper()}" if name in found else f"Config({name}=…)"
            raise ConfigError(key, str(first["msg"])) from None

    @field_validator("servers", mode="before")
    @classmethod
    def _one_text(cls, value: Any) -> Any:
        return ",".join(value) if isinstance(value, (list, tuple)) else value

    @property
    def bootstrap_servers(self) -> str | None:
        """`servers`, by its other name."""
        return self.servers

    def nats_config(self) -> dict[str, Any]:
        """What `nats.connect(**config.nats_config())` of nats-py needs, passwords included.

        Raises:
            ConfigError: A certificate cannot be read.
        """
        options = self._options(self._urls()[0])
        found = {"servers": options.servers, "name": options.name, **options.credentials(), **options.tls()}
        return {name: value for name, value in found.items() if value is not None}

    def stream_id(self, conversation_id: str) -> str:
        """The id under which the conversation is stored.

        Raises:
            InvalidNameError: It cannot be part of a subject.
        """
        token("conversation id", conversation_id)
        prefix = self.topic_prefix
        return conversation_id if prefix == DEFAULT_PREFIX else token("conversation id", f"{prefix}-{conversation_id}")

    # ------------------------------------------------------------ connecting
    async def connect(self) -> tuple[Transport, Streams, Subjects]:
        """Connect, and make the stream if there is none.

        Raises:
            BrokerUnavailableError: There is no broker.
            ConfigError: A setting is wrong.
        """
        urls, tenant = self._urls()
        if _KAFKA_PORT in urls:
            log.warning("9092 is where Kafka listens; nats-server does so on 4222")
        subjects = Subjects(self.tenant or tenant or "default")
        transport = await Transport.connect(self._options(urls))
        if self.replication_factor is not None:
            transport.options = replace(transport.options, replicas=min(self.replication_factor, _servers(transport)))

        async def ensure() -> None:
            await self._ensure(transport)

        await self._warn(transport)
        return transport, Streams(transport, subjects, ensure), subjects

    async def ttl(self, transport: Transport) -> float | None:
        """Seconds after which what is written goes, if that is sooner than everything else in the stream."""
        await self._ensure(transport)
        info = await transport.stream_info(STREAM)
        age = float(info.config.get("max_age", 0)) / 1e9 if info is not None else 0.0
        wanted = self.retention_hours * 3600.0
        return wanted if age == 0.0 or wanted < age else None

    def _urls(self) -> tuple[str, str | None]:
        """The broker's addresses, and the tenant that comes with them."""
        if self.servers:
            return self.servers, None
        found = config.broker_url()
        if found:
            return found, None
        running = runfile.find()
        return (running.url, running.tenant) if running is not None else (_LOCAL, None)

    def _options(self, urls: str) -> TransportOptions:
        servers = [url.strip() for url in urls.split(",") if url.strip()]
        if "SSL" in self.security_protocol:
            servers = [f"tls://{url.partition('://')[2] or url}" for url in servers]
        return TransportOptions(
            url=servers,
            name="agentmesh-stream",
            user=self.sasl_username,
            password=self.sasl_password,
            token=self.auth_token,
            creds=self.creds,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
        )

    async def _ensure(self, transport: Transport) -> None:
        from agentmesh.tasks.layout import SPECS, ensure  # they use this package

        spec = next(spec for spec in SPECS if spec.name == STREAM)
        await ensure(transport, replace(spec, compression="s2" if self.compression else "none"))

    async def _warn(self, transport: Transport) -> None:
        """Say in the log what was asked for and is not so."""
        await self._ensure(transport)
        info = await transport.stream_info(STREAM)
        if info is None:
            return
        copies, age = int(info.config.get("num_replicas", 1)), float(info.config.get("max_age", 0)) / 1e9
        if self.replication_factor is not None and self.replication_factor != copies:
            log.warning(
                "replication_factor=%d, but there are %d copies on %d servers",
                *(self.replication_factor, copies, _servers(transport)),
            )
        if 0 < age < self.retention_hours * 3600.0 and "retention_hours" in self.model_fields_set:
            log.warning(
                "retention_hours=%g, but the stream keeps everything for %g hours only: set [streams] max_age",
                *(self.retention_hours, age / 3600.0),
            )
        if "compression" in self.model_fields_set and self.compression != (info.config.get("compression") == "s2"):
            log.warning("compression=%s, but the stream is not: set [streams] compression", self.compression)


def _servers(transport: Transport) -> int:
    """Servers that a stream can have copies on."""
    return max(1, len(transport.connection.server_info.get("connect_urls") or ())) if transport.clustered else 1
