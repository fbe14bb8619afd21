"""The protobuf contract: what it says, what is shipped, and that the code beside it was made from it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentmesh import proto
from agentmesh.cli.app import app
from agentmesh.errors import InvalidMessageError, MissingExtraError
from agentmesh.proto import ai_integration_pb2, common_pb2
from agentmesh.proto.generate import generate
from tests.doors.contract import CODES, FIELDS, ROLES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.seed("A3", "A4")
def test_messages_have_the_names_numbers_and_types_of_the_contract() -> None:
    found = {
        message.full_name: [
            (field.number, field.name, _kind(field), field.containing_oneof.name if field.containing_oneof else "")
            for field in message.fields
        ]
        for module in (common_pb2, ai_integration_pb2)
        for message in module.DESCRIPTOR.message_types_by_name.values()
    }

    assert found == FIELDS
    assert proto.Error.Code.keys() == CODES
    assert proto.ChatMessage.Role.keys() == ROLES
    assert [proto.Error.Code.Value(code) for code in CODES] == list(range(14))


def _kind(field: object) -> str:
    from google.protobuf.descriptor import FieldDescriptor

    assert isinstance(field, FieldDescriptor)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return "map<string, string>"
    scalars = {FieldDescriptor.TYPE_STRING: "string", FieldDescriptor.TYPE_UINT32: "uint32"}
    scalars[FieldDescriptor.TYPE_BOOL] = "bool"
    name = scalars.get(field.type) or (field.message_type or field.enum_type).full_name
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
    return f"repeated {name}" if repeated else name


@pytest.mark.seed("A3")
def test_the_code_in_the_package_is_what_the_files_say(tmp_path: Path) -> None:
    made = generate(tmp_path)

    assert {path.name for path in made} == {p.name for p in (ROOT / "agentmesh" / "proto").glob("*_pb2.py*")}
    for path in made:
        if path.suffix == ".py":
            ours = (ROOT / "agentmesh" / "proto" / path.name).read_text()
            assert _descriptor(path.read_text()) == _descriptor(ours), (
                f"run: python -m agentmesh.proto.generate ({path})"
            )


def _descriptor(source: str) -> str:
    (line,) = [line for line in source.splitlines() if "AddSerializedFile" in line]
    return line.partition("AddSerializedFile")[2]


@pytest.mark.seed("A36")
def test_the_fingerprint_is_that_of_the_messages() -> None:
    said = ai_integration_pb2.DESCRIPTOR.serialized_pb + common_pb2.DESCRIPTOR.serialized_pb

    assert hashlib.sha256(said).hexdigest().startswith(proto.FINGERPRINT)


@pytest.mark.seed("A3")
def test_the_command_exports_and_lists_the_files(tmp_path: Path) -> None:
    exported = CliRunner().invoke(app, ["proto", "export", str(tmp_path / "protos")])
    listed = CliRunner().invoke(app, ["proto", "ls", "--json"])

    assert exported.exit_code == 0, exported.output
    for name in proto.FILES:
        assert (tmp_path / "protos" / name).read_text() == (ROOT / "agentmesh" / "proto" / name).read_text()
    document = json.loads(listed.stdout)
    assert document["fingerprint"] == proto.FINGERPRINT
    assert [entry["package"] for entry in document["files"]] == ["common.v1", "ai_integration.v1"]
    assert "LLMStreamChunk" in document["files"][1]["messages"]


@pytest.mark.seed("A2")
def test_without_protobuf_the_files_are_there_and_the_messages_name_the_extra() -> None:
    code = (
        "import sys; sys.modules['google.protobuf'] = None\n"
        "from agentmesh import proto\n"
        "from agentmesh.errors import MissingExtraError\n"
        "assert proto.FINGERPRINT and len(proto.FILES) == 2\n"
        "try:\n    proto.LLMInferenceRequest\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert str(MissingExtraError("protobuf", "proto")) in said
    assert "agentmesh-nats[proto]" in said


@pytest.mark.seed("A4", "A6")
def test_a_request_is_made_from_plain_values_and_zero_is_not_unset() -> None:
    request = proto.inference_request("Hi", model="m", temperature=0.0, top_p=None, stream=True, stop=["\n"])

    assert request.prompt == "Hi"
    assert request.params.HasField("temperature")
    assert request.params.temperature.value == 0.0
    assert not request.params.HasField("top_p")
    assert request.params.stream.value is True
    assert request.meta.request_id
    assert request.meta.timestamp.seconds
    assert proto.from_json(proto.LLMInferenceRequest, proto.to_json(request)) == request


@pytest.mark.seed("A4")
def test_a_request_that_cannot_be_made_says_why() -> None:
    with pytest.raises(InvalidMessageError, match="no parameter 'temprature'"):
        proto.inference_request("Hi", temprature=0.5)
    with pytest.raises(InvalidMessageError, match="role 'robot'"):
        proto.inference_request(messages=[("robot", "Hi")])
    with pytest.raises(InvalidMessageError, match="modle"):
        proto.from_json(proto.LLMInferenceRequest, '{"modle": "x"}')
