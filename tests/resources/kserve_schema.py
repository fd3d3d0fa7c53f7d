"""Write a JSON Schema of KServe's InferenceService and ServingRuntime: tests/resources/kserve.schema.json.gz.

    python -m venv kserve && kserve/bin/pip install --no-deps kserve==0.21.0 kubernetes==33.1.0 six urllib3 python-dateutil
    kserve/bin/python tests/resources/kserve_schema.py

The classes of the two Python packages were generated from KServe's and Kubernetes' OpenAPI documents: each says its
fields, their types, and which have to be there. No field beyond these is allowed, which is stricter than a cluster.
"""

import gzip
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
import types
from pathlib import Path

SIMPLE = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
    "datetime": {"type": "string"},
    "V1Time": {"type": "string"},
    "ResourceQuantity": {"type": "string", "pattern": r"^[0-9.]+(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"},
    "Quantity": {"type": "string"},
    "KnativeURL": {},
    "JSONRawMessage": {},
    "K8sIoApiAppsV1DeploymentStrategy": {"$ref": "#/$defs/V1DeploymentStrategy"},
}
ROOTS = {
    "InferenceService": ("V1beta1InferenceService", "serving.kserve.io/v1beta1"),
    "ServingRuntime": ("V1alpha1ServingRuntime", "serving.kserve.io/v1alpha1"),
}


def classes():
    """Return every model class of both packages by name. Their own import pulls in a server, so only the models are loaded."""
    everything = {}
    for package in ("kubernetes.client.models", "kserve.models"):
        parts = package.split(".")
        folder = importlib.util.find_spec(parts[0]).submodule_search_locations[0]
        for depth in range(1, len(parts) + 1):
            stand_in = types.ModuleType(".".join(parts[:depth]))
            stand_in.__path__ = [str(Path(folder, *parts[1:depth]))]
            sys.modules[stand_in.__name__] = stand_in
        for module in pkgutil.iter_modules(sys.modules[package].__path__, f"{package}."):
            for name, one in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if hasattr(one, "openapi_types"):
                    everything[name] = one
    return everything


def schema_of(type_name, known, defs):
    if match := re.fullmatch(r"list\[(.*)\]", type_name):
        return {"type": "array", "items": schema_of(match[1], known, defs)}
    if match := re.fullmatch(r"dict\(str, (.*)\)", type_name):
        return {"type": "object", "additionalProperties": schema_of(match[1], known, defs)}
    if type_name in SIMPLE:
        reference = SIMPLE[type_name].get("$ref", "").rsplit("/", 1)[-1]
        return schema_of(reference, known, defs) if reference else SIMPLE[type_name]
    if type_name not in known:
        print(f"left open: {type_name}")
        return {}
    if type_name not in defs:
        one = known[type_name]
        defs[type_name] = {}
        required = re.findall(r"client_side_validation and (\w+) is None", inspect.getsource(one))
        defs[type_name].update(
            type="object",
            properties={one.attribute_map[name]: schema_of(kind, known, defs) for name, kind in one.openapi_types.items()},
            required=sorted({one.attribute_map[name] for name in required}),
            additionalProperties=False,
        )
    return {"$ref": f"#/$defs/{type_name}"}


if __name__ == "__main__":
    known, defs = classes(), {}
    roots = {kind: schema_of(root, known, defs)["$ref"] for kind, (root, _) in ROOTS.items()}
    for kind, (root, version) in ROOTS.items():
        defs[root]["properties"] |= {"kind": {"const": kind}, "apiVersion": {"const": version}}
        defs[root]["required"] = ["apiVersion", "kind", "metadata", "spec"]
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Generated from the Python packages kserve and kubernetes, which are Apache-2.0.",
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(roots)}},
        "allOf": [{"if": {"properties": {"kind": {"const": kind}}}, "then": {"$ref": ref}} for kind, ref in roots.items()],
        "$defs": defs,
    }
    text = json.dumps(whole, separators=(",", ":"), sort_keys=True).encode()
    target = Path(__file__).with_name("kserve.schema.json.gz")
    target.write_bytes(gzip.compress(text, mtime=0))
    print(f"{target.name}: {len(defs)} definitions, {len(text)} bytes, {target.stat().st_size} compressed")
