"""The protobuf messages of the Tinker wire format, built at run time from one table.

A table rather than generated code: it is short enough to be compared with the protocol by eye, and
a test compares it with the SDK's own descriptor field by field. The descriptors live in a pool of
their own, so that a process which also imports the SDK does not see two definitions of one file.

Grammar of a line: ``number name: [repeated|optional|map|oneof=NAME] type``. Map keys are strings.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

_PACKAGE = "cyclora_wire"

_ENUMS = {
    "StopReason": ("STOP_REASON_STOP", "STOP_REASON_LENGTH"),
    "DType": (
        "DTYPE_UNSPECIFIED",
        "DTYPE_FLOAT32",
        "DTYPE_INT64",
        "DTYPE_INT32",
        "DTYPE_BFLOAT16",
    ),
}

_MESSAGES = """
ForwardBackwardRequest
  1 model_id: string
  2 seq_id: int32
  3 data: repeated Datum
  4 loss_fn: string
  5 loss_fn_config: map double
  6 forward_only: bool
  7 loss_fn_config_v2: map LossConfigValue
LossConfigValue
  1 number: oneof=value double
  2 text: oneof=value string
Datum
  1 model_input: repeated Chunk
  2 loss_fn_inputs: map Tensor
  3 model_input_spans: repeated ProvenanceSpan
  4 loss_fn_input_spans: repeated ProvenanceSpan
Chunk
  1 encoded_text: oneof=chunk EncodedTextChunk
  2 image: oneof=chunk ImageChunk
  3 dmel: oneof=chunk DmelChunk
EncodedTextChunk
  1 tokens: bytes
ImageChunk
  1 data: bytes
  2 format: string
  3 expected_tokens: optional int32
  4 override_dimensions: optional ImageDimensions
ImageDimensions
  1 width: uint32
  2 height: uint32
DmelChunk
  1 dmel: bytes
ProvenanceSpan
  1 prompt_tokens: oneof=span PromptProvenanceSpan
  2 sampled_tokens: oneof=span SampledProvenanceSpan
PromptProvenanceSpan
  1 sequence_id: string
  2 offset: int64
  3 length: int64
SampledProvenanceSpan
  1 sequence_id: string
  2 offset: int64
  3 length: int64
Tensor
  1 dense: oneof=encoding bytes
  2 sparse_csr: oneof=encoding SparseCsr
  3 dtype: DType
  4 shape: repeated int64
SparseCsr
  1 values: bytes
  2 crow_indices: bytes
  3 col_indices: bytes
ForwardBackwardOutput
  1 loss_fn_output_type: string
  2 loss_fn_outputs: repeated ArrayRecord
  3 metrics: map double
ArrayRecord
  1 type_tag: string
  2 fields: map BatchedTensor
  3 num_datums: int64
BatchedTensor
  1 data: bytes
  2 offsets: bytes
  3 dtype: DType
  4 trailing_shape: repeated int64
SampleResponse
  1 sequences: repeated SampledSequence
  2 prompt_logprobs: optional bytes
  3 topk_prompt_logprobs: optional TopkLogprobs
  4 prompt_cache_hit_tokens: int32
  5 target_prompt_logprobs: optional Tensor
  6 prompt_alt_tokens: optional PromptAltTokens
SampledSequence
  1 stop_reason: StopReason
  2 tokens: bytes
  3 logprobs: optional bytes
  4 topk_sampled_logprobs: optional TopkLogprobs
TopkLogprobs
  1 token_ids: bytes
  2 logprobs: bytes
  3 k: uint32
  4 length: uint32
PromptAltTokens
  1 tokens: Tensor
  2 logprobs: Tensor
"""

_FIELD = re.compile(r"  (\d+) (\w+): (?:(repeated|optional|map|oneof=\w+) )?(\w+)")
_SCALARS = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "string": FieldDescriptorProto.TYPE_STRING,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
}


def build_file() -> descriptor_pb2.FileDescriptorProto:
    """The table as a file descriptor."""
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    message = DescriptorProto()
    optional_fields: list[tuple[DescriptorProto, FieldDescriptorProto]] = []
    for line in _MESSAGES.strip().splitlines():
        if not line.startswith(" "):
            message = file.message_type.add(name=line)
            continue
        match = _FIELD.fullmatch(line)
        assert match, f"schema line {line!r} does not parse"
        number, name, rule, type_name = match.groups()
        field = message.field.add(name=name, number=int(number))
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
        if rule == "map":
            type_name = _add_map_entry(message, name, type_name)
        if rule in ("map", "repeated"):
            field.label = FieldDescriptorProto.LABEL_REPEATED
        elif rule == "optional":
            optional_fields.append((message, field))
        elif rule:
            field.oneof_index = _oneof(message, rule.removeprefix("oneof="))
        _set_type(field, type_name)
    # Protobuf wants the oneofs that stand for proto3 "optional" after all real ones.
    for message, field in optional_fields:
        field.proto3_optional = True
        field.oneof_index = _oneof(message, f"_{field.name}")
    return file


def _set_type(field: FieldDescriptorProto, type_name: str) -> None:
    if type_name in _SCALARS:
        field.type = _SCALARS[type_name]
        return
    is_enum = type_name in _ENUMS
    field.type = FieldDescriptorProto.TYPE_ENUM if is_enum else FieldDescriptorProto.TYPE_MESSAGE
    field.type_name = f".{_PACKAGE}.{type_name}"


def _add_map_entry(message: DescriptorProto, field_name: str, value_type: str) -> str:
    """A map is a repeated message with a key and a value; returns that message's name."""
    name = "".join(part.capitalize() for part in field_name.split("_")) + "Entry"
    entry = message.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, (part, part_type) in enumerate((("key", "string"), ("value", value_type)), 1):
        field = entry.field.add(name=part, number=number)
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
        _set_type(field, part_type)
    return f"{message.name}.{name}"


def _oneof(message: DescriptorProto, name: str) -> int:
    names = [oneof.name for oneof in message.oneof_decl]
    if name not in names:
        message.oneof_decl.add(name=name)
        names.append(name)
    return names.index(name)


_pool = descriptor_pool.DescriptorPool()
_pool.Add(build_file())


def _message(name: str) -> Any:
    """The class of a message; ``Any``, because its attributes exist at run time only."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ForwardBackwardRequest: Any = _message("ForwardBackwardRequest")
ForwardBackwardOutput: Any = _message("ForwardBackwardOutput")
SampleResponse: Any = _message("SampleResponse")

DTYPE_FLOAT32 = 1
DTYPE_INT64 = 2
DTYPE_INT32 = 3
STOP_REASON_STOP = 0
STOP_REASON_LENGTH = 1
