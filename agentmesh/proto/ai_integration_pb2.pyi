from agentmesh.proto import common_pb2 as _common_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import wrappers_pb2 as _wrappers_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChatMessage(_message.Message):
    __slots__ = ("role", "content", "name")
    class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ROLE_UNSPECIFIED: _ClassVar[ChatMessage.Role]
        SYSTEM: _ClassVar[ChatMessage.Role]
        USER: _ClassVar[ChatMessage.Role]
        ASSISTANT: _ClassVar[ChatMessage.Role]
        TOOL: _ClassVar[ChatMessage.Role]
    ROLE_UNSPECIFIED: ChatMessage.Role
    SYSTEM: ChatMessage.Role
    USER: ChatMessage.Role
    ASSISTANT: ChatMessage.Role
    TOOL: ChatMessage.Role
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    role: ChatMessage.Role
    content: str
    name: str
    def __init__(self, role: _Optional[_Union[ChatMessage.Role, str]] = ..., content: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ChatMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class GenerationParameters(_message.Message):
    __slots__ = ("temperature", "top_p", "max_tokens", "top_k", "presence_penalty", "frequency_penalty", "stop", "stream")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    temperature: _wrappers_pb2.DoubleValue
    top_p: _wrappers_pb2.DoubleValue
    max_tokens: _wrappers_pb2.UInt32Value
    top_k: _wrappers_pb2.UInt32Value
    presence_penalty: _wrappers_pb2.DoubleValue
    frequency_penalty: _wrappers_pb2.DoubleValue
    stop: _containers.RepeatedScalarFieldContainer[str]
    stream: _wrappers_pb2.BoolValue
    def __init__(self, temperature: _Optional[_Union[_wrappers_pb2.DoubleValue, _Mapping]] = ..., top_p: _Optional[_Union[_wrappers_pb2.DoubleValue, _Mapping]] = ..., max_tokens: _Optional[_Union[_wrappers_pb2.UInt32Value, _Mapping]] = ..., top_k: _Optional[_Union[_wrappers_pb2.UInt32Value, _Mapping]] = ..., presence_penalty: _Optional[_Union[_wrappers_pb2.DoubleValue, _Mapping]] = ..., frequency_penalty: _Optional[_Union[_wrappers_pb2.DoubleValue, _Mapping]] = ..., stop: _Optional[_Iterable[str]] = ..., stream: _Optional[_Union[_wrappers_pb2.BoolValue, _Mapping]] = ...) -> None: ...

class LLMInferenceRequest(_message.Message):
    __slots__ = ("meta", "model_id", "prompt", "chat_messages", "params", "context")
    META_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHAT_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    meta: _common_pb2.Meta
    model_id: str
    prompt: str
    chat_messages: ChatMessages
    params: GenerationParameters
    context: _struct_pb2.Struct
    def __init__(self, meta: _Optional[_Union[_common_pb2.Meta, _Mapping]] = ..., model_id: _Optional[str] = ..., prompt: _Optional[str] = ..., chat_messages: _Optional[_Union[ChatMessages, _Mapping]] = ..., params: _Optional[_Union[GenerationParameters, _Mapping]] = ..., context: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class LLMInferenceResponse(_message.Message):
    __slots__ = ("meta", "generation_id", "output_text", "chat_messages", "finish_reason", "usage", "error")
    META_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    meta: _common_pb2.Meta
    generation_id: str
    output_text: str
    chat_messages: ChatMessages
    finish_reason: str
    usage: _common_pb2.TokenUsage
    error: _common_pb2.Error
    def __init__(self, meta: _Optional[_Union[_common_pb2.Meta, _Mapping]] = ..., generation_id: _Optional[str] = ..., output_text: _Optional[str] = ..., chat_messages: _Optional[_Union[ChatMessages, _Mapping]] = ..., finish_reason: _Optional[str] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ...) -> None: ...

class LLMStreamChunk(_message.Message):
    __slots__ = ("meta", "generation_id", "index", "is_final", "output_text_delta", "message_delta", "finish_reason", "usage", "error")
    META_FIELD_NUMBER: _ClassVar[int]
    GENERATION_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    IS_FINAL_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TEXT_DELTA_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    meta: _common_pb2.Meta
    generation_id: str
    index: int
    is_final: bool
    output_text_delta: str
    message_delta: ChatMessage
    finish_reason: str
    usage: _common_pb2.TokenUsage
    error: _common_pb2.Error
    def __init__(self, meta: _Optional[_Union[_common_pb2.Meta, _Mapping]] = ..., generation_id: _Optional[str] = ..., index: _Optional[int] = ..., is_final: bool = ..., output_text_delta: _Optional[str] = ..., message_delta: _Optional[_Union[ChatMessage, _Mapping]] = ..., finish_reason: _Optional[str] = ..., usage: _Optional[_Union[_common_pb2.TokenUsage, _Mapping]] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ...) -> None: ...
