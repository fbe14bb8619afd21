"""The guides' codec: documents with a `schema_version`, checked when they are read and migrated when they are old."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from pydantic import BaseModel

from agentmesh import codec
from agentmesh.errors import DefinitionError, InvalidMessageError

Migration = Callable[[dict[str, Any]], dict[str, Any]]

_LONGEST_PATH = 32


class CodecSerializer:
    """Encodes dicts as JSON documents with a `schema_version`, and decodes them again.

    What it writes is what agents read: one flat document with the fields of the guides.

    Args:
        schema_version: What documents are written as. One of another major number is refused when it is read, unless
            a migration leads from there to here.
    """

    def __init__(self, schema_version: str = codec.SCHEMA_VERSION) -> None:
        self.schema_version = schema_version
        self._migrations: dict[tuple[str, str], tuple[str, Migration]] = {}
        self._models: dict[str, type[BaseModel]] = {}

    def create_envelope(self, message_type: str, data: Any) -> dict[str, Any]:
        """A document that says what it is: `{"schema_version", "message_type", "data"}`."""
        return {"schema_version": self.schema_version, "message_type": message_type, "data": data}

    def encode(self, document: dict[str, Any]) -> bytes:
        """The document as JSON, with a `schema_version` if it has none.

        Raises:
            InvalidMessageError: It is no dict, cannot be JSON, or is not what its registered type says.
        """
        if not isinstance(document, dict):
            raise InvalidMessageError(f"encode takes a dict, not {type(document).__name__}")
        written = document if "schema_version" in document else {**document, "schema_version": self.schema_version}
        self.validate_schema(written)
        try:
            return msgspec.json.encode(written)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidMessageError(f"the document cannot be written as JSON: {error}") from error

    def decode(self, data: bytes) -> dict[str, Any]:
        """The document, migrated to our version if it is of another one that a migration is known for.

        Raises:
            InvalidMessageError: It is no JSON object, of a version that is not supported, or not what its registered
                type says.
        """
        try:
            document = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidMessageError(f"not a document: {error}") from error
        document = self._migrated(document)
        self.validate_schema(document)
        return document

    def register(self, message_type: str, model: type[BaseModel]) -> None:
        """Check documents of this `message_type` (or `task_type`) against a model, when written and when read."""
        self._models[message_type] = model

    def validate_schema(self, document: dict[str, Any]) -> None:
        """Raise InvalidMessageError unless the document is what the model of its type says; names the field."""
        model = self._models.get(str(document.get("message_type") or document.get("task_type") or ""))
        if model is not None:
            content = document.get("data", document)
            codec.decode_body(model, codec.encode_body(content, Any))

    def migration(
        self, from_version: str, to_version: str, *, message_type: str = ""
    ) -> Callable[[Migration], Migration]:
        """Declare how a document of an older version becomes a newer one; `message_type` "" is for those of any type.

        @codec.migration("1.0", "2.0", message_type="text")
        def add_language(document): return {**document, "language": "en"}
        """
        if from_version == to_version:
            raise DefinitionError("migration", f"from {from_version!r} to itself")

        def add(function: Migration) -> Migration:
            self._migrations[message_type, from_version] = (to_version, function)
            return function

        return add

    def _migrated(self, document: dict[str, Any]) -> dict[str, Any]:
        for _ in range(_LONGEST_PATH):
            version = str(document.get("schema_version") or self.schema_version)
            if version == self.schema_version:
                return document
            kind = str(document.get("message_type") or "")
            step = self._migrations.get((kind, version)) or self._migrations.get(("", version))
            if step is None:
                break
            to_version, function = step
            document = {**function(dict(document)), "schema_version": to_version}
        if _major(version) == _major(self.schema_version):
            return document  # a newer minor version only adds fields
        raise InvalidMessageError(f"schema_version {version!r:.40} is not supported (this is {self.schema_version})")


def _major(version: str) -> str:
    return version.split(".")[0]
