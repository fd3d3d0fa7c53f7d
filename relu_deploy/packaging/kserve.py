"""Manifests for KServe on Kubernetes, and the folder that belongs where they say the model is.

    inference-service.yaml     the model as a service: its format, its storage, its resources
    serving-runtime.yaml       flavour relu-deploy: the server, which is `relu-deploy serve` in an image of this project
    model/                     to be copied to the storage URI: the bundle, or for the other flavours a Triton model repository

Flavours onnxruntime, tensorrt and python are those of target triton, on the runtime kserve-tritonserver that KServe installs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from relu_deploy.backends import capabilities
from relu_deploy.bundle import Bundle
from relu_deploy.errors import UsageError
from relu_deploy.optimization.targets import find_target
from relu_deploy.packaging import triton
from relu_deploy.packaging.output import copy_bundle, write_text
from relu_deploy.packaging.serve_options import served
from relu_deploy.packaging.settings import PackageOptions, Written, model_name
from relu_deploy.packaging.text_format import comment, yaml
from relu_deploy.packaging.triton_config import target_of

__all__ = ["FLAVOURS", "OPTIONS", "write"]

FLAVOURS = ("relu-deploy", *triton.FLAVOURS)
OPTIONS = (*triton.OPTIONS, "storage_uri", "image")
#: what KServe's storage initializer fetches from
SCHEMES = ("gs", "s3", "pvc", "hdfs", "webhdfs", "https", "http", "oci", "hf")
#: where KServe puts the model in the container
MOUNTED = "/mnt/models"
HTTP, METRICS = 8080, 8002
DEFAULT_CPUS = 2
IMAGES = {"onnxruntime-cpu": "relu-deploy:cpu", "onnxruntime-cuda": "relu-deploy:rtx", "tensorrt-rtx": "relu-deploy:rtx"}


def write(bundle: Bundle, settings: PackageOptions, folder: Path) -> Written:
    """Write the manifests and the model into the empty `folder`. Raises UsageError, InputError and Unsupported for what cannot be served so."""
    flavour = settings.flavour or FLAVOURS[0]
    name = _resource_name(model_name(bundle))
    uri = settings.storage_uri or f"pvc://models/{name}"
    _check_uri(uri)
    if flavour == "relu-deploy":
        notes = _own(bundle, settings, folder, name, uri)
    else:
        notes = _triton(bundle, replace(settings, flavour=flavour, storage_uri="", image=""), folder, name, uri, settings.image)
    if not settings.storage_uri:
        notes.append(f"{uri} is a placeholder: give the place of the model with --storage-uri, and copy model/ there")
    return Written(name, flavour, tuple(notes))


def _own(bundle: Bundle, settings: PackageOptions, folder: Path, name: str, uri: str) -> list[str]:
    if settings.accelerator or settings.instances:
        option = "--accelerator" if settings.accelerator else "--instances"
        raise UsageError(
            f"{option} means nothing for flavour relu-deploy", f"leave it out, or take one of {', '.join(FLAVOURS[1:])}"
        )
    backend = _backend(bundle, settings)
    if settings.threads and capabilities(backend).on_gpu:
        raise UsageError("--threads is of a CPU's kernels, and this runs on a GPU", "leave it out")
    image = settings.image or IMAGES.get(backend, "relu-deploy:tensorrt")
    at = copy_bundle(bundle, folder / "bundle")
    top = folder / "bundle" / at.relative_to(folder / "bundle").parts[0]
    if top.is_dir():
        top.rename(folder / "model")
        (folder / "bundle").rmdir()
        path = "/".join((MOUNTED, *at.relative_to(top).parts))
    else:
        (folder / "bundle").rename(folder / "model")
        path = f"{MOUNTED}/{at.name}"
    cpus = settings.threads or DEFAULT_CPUS
    arguments = [
        "serve",
        path,
        "--host",
        "0.0.0.0",
        "--http-port",
        str(HTTP),
        "--grpc-port",
        "-1",
        "--metrics-port",
        str(METRICS),
    ]
    arguments += ["--no-watch", "--backend", backend]
    arguments += [] if capabilities(backend).on_gpu else ["--threads", str(cpus)]
    more, why = served(bundle, backend, settings)
    runtime = f"relu-deploy-{name}"[:63].rstrip("-")
    write_text(
        folder / "serving-runtime.yaml",
        comment([f"How {bundle.title} is served. The image must be where the cluster can pull it from.", *why])
        + yaml(_runtime(runtime, image, [*arguments, *more]))
        + "\n",
    )
    model = {"modelFormat": {"name": "onnx", "version": "1"}, "runtime": runtime}
    _service(bundle, folder, name, uri, model, cpus, gpu=capabilities(backend).on_gpu)
    return (
        []
        if settings.image
        else [f"the image {image} is one that you build (docker/README.md) and push; name yours with --image"]
    )


def _triton(bundle: Bundle, settings: PackageOptions, folder: Path, name: str, uri: str, image: str) -> list[str]:
    written = triton.write(bundle, settings, folder / "model")
    text = (folder / "model" / written.model / "config.pbtxt").read_text(encoding="utf-8")
    model: dict[str, Any] = {"modelFormat": {"name": "triton", "version": "2"}, "runtime": "kserve-tritonserver"}
    model |= {"image": image} if image else {}
    _service(bundle, folder, name, uri, model, settings.threads or DEFAULT_CPUS, gpu="KIND_GPU" in text)
    notes = list(written.notes)
    if not image:
        notes.append(
            "the runtime kserve-tritonserver brings the Triton that was current when KServe was installed: --image names another"
        )
    return notes


def _backend(bundle: Bundle, settings: PackageOptions) -> str:
    """Return the backend that serves the model on the device that was asked for. Raises UsageError where its variant does not fit."""
    made_for = target_of(bundle)
    backend = find_target(made_for).backend if made_for else "onnxruntime-cpu" if settings.device != "gpu" else "onnxruntime-cuda"
    if settings.device and (settings.device == "gpu") != capabilities(backend).on_gpu:
        raise UsageError(f"{bundle.title} was optimized for {made_for}, not for --device {settings.device}", "leave out --device")
    return backend


def _service(bundle: Bundle, folder: Path, name: str, uri: str, model: dict[str, Any], cpus: int, *, gpu: bool) -> None:
    amounts = {"cpu": str(cpus), "memory": _memory(bundle), **({"nvidia.com/gpu": "1"} if gpu else {})}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {"serving.kserve.io/enable-prometheus-scraping": "true"}},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "model": {
                    **model,
                    "protocolVersion": "v2",
                    "storageUri": uri,
                    "resources": {"requests": amounts, "limits": amounts},
                },
            }
        },
    }
    why = (
        f"{bundle.title} as a service. model/ belongs at the storageUri.",
        "Memory: the runtime's own and four times the model's file, a guess to be replaced by what you measure.",
    )
    write_text(folder / "inference-service.yaml", comment(why) + yaml(service) + "\n")


def _memory(bundle: Bundle) -> str:
    mebibytes = 512 + 4 * bundle.onnx.stat().st_size / 2**20
    return f"{-int(-mebibytes // 256) * 256}Mi"


def _runtime(name: str, image: str, arguments: Sequence[str]) -> dict[str, Any]:
    def probe(which: str, **timing: int) -> dict[str, Any]:
        return {"httpGet": {"path": f"/v2/health/{which}", "port": HTTP}, **timing}

    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": name},
        "spec": {
            "annotations": {"prometheus.kserve.io/port": str(METRICS), "prometheus.kserve.io/path": "/metrics"},
            "supportedModelFormats": [{"name": "onnx", "version": "1", "autoSelect": False}],
            "protocolVersions": ["v2"],
            "multiModel": False,
            "containers": [
                {
                    "name": "kserve-container",
                    "image": image,
                    "args": list(arguments),
                    # One port only: Knative takes no second one, and finds the metrics by the annotation.
                    "ports": [{"containerPort": HTTP, "protocol": "TCP"}],
                    "readinessProbe": probe("ready", periodSeconds=5, timeoutSeconds=2, failureThreshold=3),
                    # The server listens once its models are loaded and warm, which has two minutes.
                    "livenessProbe": probe("live", periodSeconds=10, timeoutSeconds=5, failureThreshold=12),
                    "securityContext": {
                        "runAsNonRoot": True,
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }


def _resource_name(name: str) -> str:
    """Return `name` as Kubernetes takes it for a service: small letters, digits and hyphens, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}".rstrip("-"))[:50].rstrip("-")


def _check_uri(uri: str) -> None:
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest or scheme not in SCHEMES or any(letter.isspace() for letter in uri):
        raise UsageError(
            f"--storage-uri {uri!r} is nothing that KServe fetches from", f"it starts with one of {', '.join(SCHEMES)}, then ://"
        )
