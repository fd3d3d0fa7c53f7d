"""The protobuf messages of the inference and health protocols: `*.proto`, and `*.binpb`, which `make proto` compiles from them.

The messages live in a descriptor pool of their own. protobuf's default pool takes each name once a process, and other
packages, for instance tritonclient.grpc, bring the same names.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from relu_deploy.errors import missing_package

__all__ = ["SERVICE", "messages"]

SERVICE = "inference.GRPCInferenceService"


@cache
def messages(name: str = "inference") -> Any:
    """Return the message classes and enum values of a file by name, and as DESCRIPTOR the descriptor of the file.

    Args:
        name: Of the file, without its suffix.

    Raises:
        BackendUnavailable: If protobuf is not installed.
    """
    try:
        from google.protobuf.descriptor_pb2 import FileDescriptorSet
        from google.protobuf.descriptor_pool import DescriptorPool
        from google.protobuf.message_factory import GetMessageClass
    except ImportError as error:
        raise missing_package(error.name or "protobuf", "serve") from error
    (file,) = FileDescriptorSet.FromString(Path(__file__).with_name(f"{name}.binpb").read_bytes()).file
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    descriptor = pool.FindFileByName(file.name)
    classes = {name: GetMessageClass(each) for name, each in descriptor.message_types_by_name.items()}
    enums = {value.name: value.number for each in descriptor.enum_types_by_name.values() for value in each.values}
    return SimpleNamespace(DESCRIPTOR=descriptor, **classes, **enums)
