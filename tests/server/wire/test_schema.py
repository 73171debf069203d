from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from tinker.proto import tinker_public_pb2

from cyclora_server.wire import schema

# The SDK's file also describes sampling parameters, which no request of it uses.
UNUSED = {"SamplingParams", "StopStrings", "StopTokens"}


def sdk_file() -> FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto()
    tinker_public_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def fields_of(message: DescriptorProto) -> list[tuple[object, ...]]:
    """Everything about a message's fields but the package they are declared in."""
    return sorted(
        (
            field.number,
            field.name,
            field.type,
            field.label,
            field.type_name.split(".", 2)[-1],
            field.proto3_optional,
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "",
        )
        for field in message.field
    )


def test_the_table_describes_the_same_messages_as_the_sdk() -> None:
    ours = {message.name for message in schema.build_file().message_type}

    assert ours == {message.name for message in sdk_file().message_type} - UNUSED


@pytest.mark.parametrize("name", [message.name for message in schema.build_file().message_type])
def test_every_message_equals_the_sdks_field_by_field(name: str) -> None:
    ours = next(each for each in schema.build_file().message_type if each.name == name)
    theirs = next(each for each in sdk_file().message_type if each.name == name)

    assert fields_of(ours) == fields_of(theirs)
    assert [(entry.name, fields_of(entry)) for entry in ours.nested_type] == [
        (entry.name, fields_of(entry)) for entry in theirs.nested_type
    ]
    assert all(entry.options.map_entry for entry in ours.nested_type)


def test_enums_have_the_sdks_names_and_numbers() -> None:
    def values(file: FileDescriptorProto) -> dict[str, list[tuple[str, int]]]:
        return {each.name: [(v.name, v.number) for v in each.value] for each in file.enum_type}

    assert values(schema.build_file()) == values(sdk_file())
