"""Manifests for KServe on Kubernetes, and the model for their storage URI.

    inference-service.yaml     the service: format, storage and resources of the model
    serving-runtime.yaml       flavor relu-deploy: the server, `relu-deploy serve` in an image of this project
    model/                     to be copied to the storage URI: the bundle, or for other flavors a Triton model repository

The flavors onnxruntime, tensorrt and python are those of target triton, on the runtime kserve-tritonserver of KServe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from relu_deploy.backends import DEFAULT, capabilities
from relu_deploy.bundle import Bundle
from relu_deploy.errors import UsageError
from relu_deploy.optimization.targets import find_target
from relu_deploy.packaging import triton
from relu_deploy.packaging.options import DeployedModel, PackageOptions, model_name
from relu_deploy.packaging.output import copy_bundle, write_text
from relu_deploy.packaging.serve_options import serve_options
from relu_deploy.packaging.text_format import comment, yaml
from relu_deploy.packaging.triton_config import target_of

__all__ = ["FLAVORS", "OPTIONS", "write"]

FLAVORS = ("relu-deploy", *triton.FLAVORS)
OPTIONS = (*triton.OPTIONS, "storage_uri", "image")
#: URI schemes that KServe's storage initializer supports
SCHEMES = ("gs", "s3", "pvc", "hdfs", "webhdfs", "https", "http", "oci", "hf")
#: where KServe mounts the model in the container
MOUNTED = "/mnt/models"
HTTP, METRICS = 8080, 8002
DEFAULT_CPUS = 2
IMAGES = {"onnxruntime-cpu": "relu-deploy:cpu", "onnxruntime-cuda": "relu-deploy:rtx", "tensorrt-rtx": "relu-deploy:rtx"}


def write(bundle: Bundle, options: PackageOptions, folder: Path) -> DeployedModel:
    """Write the manifests and the model.

    Args:
        bundle: The model.
        options: How it is served.
        folder: An empty folder.

    Raises:
        UsageError: If the options do not fit the model or each other.
        InputError: If a file of the model is missing.
        Unsupported: If the flavor cannot run the model.
    """
    flavor = options.flavor or FLAVORS[0]
    name = _resource_name(model_name(bundle))
    uri = options.storage_uri or f"pvc://models/{name}"
    _check_uri(uri)
    if flavor == "relu-deploy":
        notes = _write_server(bundle, options, folder, name, uri)
    else:
        notes = _write_triton(bundle, replace(options, flavor=flavor, storage_uri="", image=""), folder, name, uri, options.image)
    if not options.storage_uri:
        notes.append(f"{uri} is a placeholder: name the model's storage with --storage-uri, and copy model/ there")
    return DeployedModel(name, flavor, tuple(notes))


def _write_server(bundle: Bundle, options: PackageOptions, folder: Path, name: str, uri: str) -> list[str]:
    if options.accelerator or options.instances:
        option = "--accelerator" if options.accelerator else "--instances"
        raise UsageError(
            f"{option} means nothing for flavor relu-deploy", f"leave it out, or take one of {', '.join(FLAVORS[1:])}"
        )
    backend = _backend(bundle, options)
    if options.threads and capabilities(backend).on_gpu:
        raise UsageError("--threads applies to a CPU, and this runs on a GPU", "leave it out")
    image = options.image or IMAGES.get(backend, "relu-deploy:tensorrt" if capabilities(backend).on_gpu else "relu-deploy:cpu")
    at = copy_bundle(bundle, folder / "bundle")
    top = folder / "bundle" / at.relative_to(folder / "bundle").parts[0]
    if top.is_dir():
        top.rename(folder / "model")
        (folder / "bundle").rmdir()
        path = "/".join((MOUNTED, *at.relative_to(top).parts))
    else:
        (folder / "bundle").rename(folder / "model")
        path = f"{MOUNTED}/{at.name}"
    cpus = options.threads or DEFAULT_CPUS
    arguments = [
        "serve",
        path,
        "--host",
        "0.0.0.0",
        # The cluster's gateway decides which names lead here.
        "--allowed-host",
        "*",
        "--http-port",
        str(HTTP),
        "--grpc-port",
        "-1",
        "--metrics-port",
        str(METRICS),
    ]
    arguments += ["--no-watch", "--backend", backend]
    # Threads that are stored in the variant apply unless others are named.
    cpu_threads = options.threads or bundle.runtime[1].get("threads") or cpus
    arguments += [] if capabilities(backend).on_gpu else ["--threads", str(cpu_threads)]
    batching, reasons = serve_options(bundle, backend, options)
    runtime = f"relu-deploy-{name}"[:63].rstrip("-")
    write_text(
        folder / "serving-runtime.yaml",
        comment([f"How {bundle.title} is served. The image must be where the cluster can pull it from.", *reasons])
        + yaml(_runtime(runtime, image, [*arguments, *batching]))
        + "\n",
    )
    model = {"modelFormat": {"name": "onnx", "version": "1"}, "runtime": runtime}
    _write_service(bundle, folder, name, uri, model, cpus, gpu=capabilities(backend).on_gpu)
    notes = [] if options.image else [f"build the image {image} (docker/README.md) and push it; name yours with --image"]
    if (extra := capabilities(backend).extra) not in ("", "cpu") and not options.image:
        notes.append(f"the image needs the extra {extra}: build it with --build-arg EXTRAS='cpu serve {extra}'")
    return notes


def _write_triton(bundle: Bundle, options: PackageOptions, folder: Path, name: str, uri: str, image: str) -> list[str]:
    deployed = triton.write(bundle, options, folder / "model")
    text = (folder / "model" / deployed.name / "config.pbtxt").read_text(encoding="utf-8")
    model: dict[str, Any] = {"modelFormat": {"name": "triton", "version": "2"}, "runtime": "kserve-tritonserver"}
    model |= {"image": image} if image else {}
    _write_service(bundle, folder, name, uri, model, options.threads or DEFAULT_CPUS, gpu="KIND_GPU" in text)
    notes = list(deployed.notes)
    if not image:
        notes.append(
            "the runtime kserve-tritonserver brings the Triton that was current when KServe was installed: --image names another"
        )
    return notes


def _backend(bundle: Bundle, options: PackageOptions) -> str:
    """Return the backend that serves the model. Raises UsageError if the variant does not run on the requested device."""
    made_for = target_of(bundle)
    backend = bundle.runtime[0] or (
        find_target(made_for).backend if made_for else DEFAULT if options.device != "gpu" else "onnxruntime-cuda"
    )
    if options.device and (options.device == "gpu") != capabilities(backend).on_gpu:
        raise UsageError(f"{bundle.title} was optimized for {made_for}, not for --device {options.device}", "leave out --device")
    return backend


def _write_service(bundle: Bundle, folder: Path, name: str, uri: str, model: dict[str, Any], cpus: int, *, gpu: bool) -> None:
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
    header = (
        f"{bundle.title} as a service. model/ belongs at the storageUri.",
        "Memory: 512 MiB and four times the size of the model, an estimate; replace it by a measurement.",
    )
    write_text(folder / "inference-service.yaml", comment(header) + yaml(service) + "\n")


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
                    # Knative accepts one port only; the annotation above names the one of the metrics.
                    "ports": [{"containerPort": HTTP, "protocol": "TCP"}],
                    "readinessProbe": probe("ready", periodSeconds=5, timeoutSeconds=2, failureThreshold=3),
                    # The server listens once its models are loaded and warmed up, for which it has two minutes.
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
    """Return `name` as a valid name of a Kubernetes service: lower-case letters, digits and hyphens, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"model-{plain}".rstrip("-"))[:50].rstrip("-")


def _check_uri(uri: str) -> None:
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest or scheme not in SCHEMES or any(letter.isspace() for letter in uri):
        raise UsageError(
            f"--storage-uri {uri!r} is not a URI that KServe supports", f"start it with one of {', '.join(SCHEMES)} and ://"
        )
