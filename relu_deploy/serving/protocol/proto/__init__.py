"""The protocol's protobuf messages and gRPC stubs: `inference.proto`, and what `make proto` generates from it.

Importing them registers the protocol's names with protobuf, which takes them once a process, whoever brings them. So they
are imported when a server is started, not before.
"""

from __future__ import annotations

from typing import Any

from relu_deploy.errors import BackendUnavailable, UsageError, missing_package

__all__ = ["stubs"]


def stubs() -> tuple[Any, Any]:
    """Return the modules of the messages and of the service.

    Raises UsageError when another package has brought the protocol's names, BackendUnavailable when gRPC is not installed
    or too old.
    """
    try:
        from relu_deploy.serving.protocol.proto import inference_pb2, inference_pb2_grpc
    except ImportError as error:
        raise missing_package(error.name or "grpcio", "serve") from error
    except TypeError as error:
        raise UsageError(
            f"another package has brought the protocol's gRPC messages into this process: {error}",
            "serve in a process that does not import tritonclient.grpc or the like, or without gRPC: --grpc-port -1",
        ) from error
    except Exception as error:  # the generated modules compare versions, each with an exception of its own
        raise BackendUnavailable(
            f"gRPC is too old here: {error}", "pip install --upgrade 'relu-deploy[serve]', or serve without it: --grpc-port -1"
        ) from error
    return inference_pb2, inference_pb2_grpc
