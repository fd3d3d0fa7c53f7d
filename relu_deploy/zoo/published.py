"""The weights that torchvision publishes for the architectures that the zoo has in common with it.

    server    https://download.pytorch.org/models/
    name      <model>-<first digits of the file's SHA-256>.pth

The files are those of torchvision's first weights of each model (IMAGENET1K_V1, COCO_V1, COCO_WITH_VOC_LABELS_V1), which were
trained with the preprocessing of the zoo's recipes. A file is checked against the digits in its name.
"""

from __future__ import annotations

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urljoin, urlsplit

from relu_deploy.errors import InputError, UsageError
from relu_deploy.paths import cache_folder
from relu_deploy.storage.files import atomic_file, reason, sha256

__all__ = ["FILES", "published_url", "published_weights"]

SERVER = "https://download.pytorch.org/models/"
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "vgg16": "vgg16-397923af.pth",
    "vgg16_bn": "vgg16_bn-6c64b313.pth",
    "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    "squeezenet1_1": "squeezenet1_1-b8a52dc0.pth",
    "ssd300_vgg16": "ssd300_vgg16_coco-b556d3b4.pth",
    "fcos_resnet50_fpn": "fcos_resnet50_fpn_coco-99b0c9b7.pth",
    "retinanet_resnet50_fpn": "retinanet_resnet50_fpn_coco-eeacb38b.pth",
    "fcn_resnet50": "fcn_resnet50_coco-1167a1af.pth",
    "deeplabv3_resnet50": "deeplabv3_resnet50_coco-cd0a2569.pth",
}
#: the digits in a file's name
DIGITS = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
SUFFIXES = (".pth", ".pt", ".safetensors")
#: seconds without data after which a server counts as unreachable, and the largest file
TIMEOUT, MAX_BYTES = 30.0, 2**31
CHUNK = 2**20


def published_url(name: str) -> str | None:
    """Return the public URL of the weights of the architecture `name`, None if there are none."""
    return SERVER + FILES[name] if name in FILES else None


def published_weights(name: str, mirror: str | None = None) -> Path:
    """Return the file with the published weights, from the cache or downloaded into it.

    Args:
        name: Name of an architecture.
        mirror: URL of a folder that has the file, or of the file itself; None for the public server. The SHA-256 of a file
            whose name has no digits is compared with the published ones.

    Raises:
        UsageError: If the architecture has no published weights, or the mirror is no URL.
        InputError: If the file cannot be downloaded, or has another SHA-256.
    """
    if name not in FILES:
        raise UsageError(
            f"there are no published weights for {name}", f"give a file with --weights; published: {', '.join(sorted(FILES))}"
        )
    url = _url(name, mirror)
    given = PurePosixPath(urlsplit(url).path).name
    file = given if DIGITS.search(given) else FILES[name]
    digits = DIGITS.search(file).group(1)  # type: ignore[union-attr]
    target = cache_folder("weights") / file
    damaged = ""
    for cached in (target, _torch_cache() / file):
        if cached.is_file():
            if sha256(cached).startswith(digits):
                return cached
            damaged = f"; {cached} is there, but its SHA-256 does not start with {digits}"
    _download(url, target, digits, damaged)
    return target


def _url(name: str, mirror: str | None) -> str:
    if mirror is None:
        return SERVER + FILES[name]
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.scheme == "file"):
        raise UsageError(f"--weights-url {mirror} is not a URL", "for instance --weights-url https://mirror.example/models/")
    if PurePosixPath(parts.path).suffix in SUFFIXES:
        return mirror
    return urljoin(mirror if mirror.endswith("/") else f"{mirror}/", FILES[name])


def _torch_cache() -> Path:
    """Return the folder in which torch.hub keeps the same files."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torch"
    return Path(home) / "hub" / "checkpoints"


def _download(url: str, target: Path, digits: str, damaged: str) -> None:
    """Download `url` to `target`, which is there whole or not at all."""
    import urllib.request

    try:
        digest, size = hashlib.sha256(), 0
        with atomic_file(target) as stream, urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if size > MAX_BYTES:
                    raise InputError(f"{url} has more than {MAX_BYTES} bytes", "check --weights-url")
            if not digest.hexdigest().startswith(digits):
                raise InputError(
                    f"{url} gave {size} bytes with SHA-256 {digest.hexdigest()[:16]}…, which does not start with {digits}",
                    "the file is damaged or another one: try again, or name a mirror with --weights-url",
                )
    except (OSError, HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None)
        why = reason(cause) if isinstance(cause, Exception) else str(cause or "") or reason(error)
        code = f"HTTP {error.code} " if hasattr(error, "code") else ""
        raise InputError(
            f"cannot download {url}: {code}{why or type(error).__name__}{damaged}",
            f"download it elsewhere and put it at {target}, or name a mirror with --weights-url",
        ) from error
