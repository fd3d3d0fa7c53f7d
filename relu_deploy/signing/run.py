"""Sign a bundle and check its signature, in the format of OpenSSF Model Signing, with a key and without the network.

The signature is the file `model.sig` in the bundle and covers every other file in it. `model_signing verify key` of the OpenSSF
checks it too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_deploy.bundle import Bundle
from relu_deploy.errors import InputError, missing_package
from relu_deploy.records import JsonRecord
from relu_deploy.signing.statement import STATEMENT, test_result_statement
from relu_deploy.storage.files import read_regular, write_atomically
from relu_deploy.storage.folders import temporary_folder

__all__ = ["SIGNATURE", "SignatureReport", "check_signature", "is_signed", "require_signature", "sign_bundle"]

#: name of the signature in a bundle
SIGNATURE = "model.sig"
#: curves that model-signing supports
CURVES = ("secp256r1", "secp384r1", "secp521r1")
#: largest key and signature that are read
MAX_BYTES = 2**24
KEY_HINT = (
    "give an elliptic curve key (P-256, P-384 or P-521) in PEM, as openssl ecparam -genkey -name prime256v1 -noout makes one"
)


@dataclass(frozen=True)
class SignatureReport(JsonRecord):
    """A signature, or the check of one.

    Attributes:
        signed: The signature is there and valid.
        files: The files in the bundle that it covers, or has to cover.
        key: SHA-256 of the public key, as in "openssl pkey -pubin -outform der | sha256sum".
        reason: Why it is not valid, "" otherwise.
        signature: Path of the signature.
    """

    signed: bool
    files: tuple[str, ...]
    key: str
    reason: str
    signature: Path


def is_signed(folder: Path) -> bool:
    """Return whether there is a signature in a bundle's folder, valid or not."""
    return (folder / SIGNATURE).is_file()


def sign_bundle(path: str | os.PathLike[str], key: Path, *, password: str | None = None, force: bool = False) -> SignatureReport:
    """Sign every file of a bundle, and write `model.sig` into it.

    If the bundle has a report of `verify`, its verdict is added as an in-toto test-result statement before it is signed.

    Args:
        path: The bundle.
        key: Private key, elliptic curve, in PEM.
        password: Of the key.
        force: Replace an existing signature.

    Raises:
        InputError: If the bundle is not valid, is signed already, or the key cannot be used.
        BackendUnavailable: If the package model-signing is not installed.
    """
    signing, _, hashing = _import()
    bundle = _folder(path)
    target = bundle.path / SIGNATURE
    if os.path.lexists(target) and not force:
        raise InputError(f"{bundle.path} is signed already", "replace the signature with --force")
    fingerprint = _fingerprint_of_private(key, password)
    if (statement := test_result_statement(bundle)) is not None:
        bundle = bundle.add(STATEMENT, statement)
    config = hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
    # model-signing annotates the password as text, and passes it on to a function that takes bytes.
    secret: Any = None if password is None else password.encode()
    # Outside the bundle, where it is not one of the files to sign.
    with temporary_folder("sign") as folder:
        try:
            signer = signing.Config().use_elliptic_key_signer(private_key=key, password=secret)
            signer.set_hashing_config(config).sign(bundle.path, folder / SIGNATURE)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot sign {bundle.path}: {' '.join(str(error).split())[:300]}", KEY_HINT) from error
        write_atomically(target, (folder / SIGNATURE).read_bytes(), follow=False)
    return SignatureReport(True, tuple(_files(bundle.path)), fingerprint, "", target)


def check_signature(path: str | os.PathLike[str], key: Path) -> SignatureReport:
    """Check the signature of a bundle. An invalid or missing one is a result, not an error.

    Args:
        path: The bundle, whose manifest and hashes are checked as well.
        key: Public key in PEM.

    Raises:
        InputError: If the bundle or the key is not valid.
        BackendUnavailable: If the package model-signing is not installed.
    """
    _, verifying, _ = _import()
    fingerprint = _fingerprint_of_public(key)
    folder = _folder_unopened(path)
    target = folder / SIGNATURE
    files = tuple(_files(folder))

    def report(why: str) -> SignatureReport:
        return SignatureReport(not why, files, fingerprint, why, target)

    if not target.exists():
        _folder(path)
        return report(f"there is no {SIGNATURE} in the bundle")
    read_regular(target, MAX_BYTES)
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, target)
    except Exception as error:  # a damaged signature raises whatever its parsers do
        return report(" ".join(f"{error or type(error).__name__}".split())[:500])
    # The signature covers the files as they are; whether they are a valid bundle is another question.
    _folder(path)
    return report("")


def require_signature(bundle: Bundle, key: Path) -> None:
    """Raise InputError unless a bundle has a valid signature.

    Args:
        bundle: The bundle, or a variant in it.
        key: Public key in PEM.

    Raises:
        InputError: If it is a plain ONNX file, is not signed by the key, or was changed since; or the key cannot be used.
        BackendUnavailable: If the package model-signing is not installed.
    """
    if not bundle.is_folder:
        raise InputError(
            f"{bundle.path} is a plain ONNX file, and a signed bundle is required", "export it to a bundle and sign that"
        )
    report = check_signature(bundle.path, key)
    if not report.signed:
        raise InputError(
            f"{bundle.path} is refused: it is not signed by {key}: {report.reason}",
            "compare it with what was signed; a release is signed with relu-deploy sign",
        )


def _import() -> tuple[Any, Any, Any]:
    try:
        # model-signing imports pyOpenSSL and does not require it.
        import OpenSSL  # noqa: F401
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise missing_package("pyopenssl" if error.name == "OpenSSL" else "model-signing", "sign") from error
    return signing, verifying, hashing


def _folder(path: str | os.PathLike[str]) -> Bundle:
    bundle = Bundle.open(path)
    if not bundle.is_folder:
        raise InputError(f"{bundle.path} is a plain ONNX file, and a bundle is signed", "export it to a bundle first")
    return bundle


def _folder_unopened(path: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle whose files may have been changed."""
    folder = Path(path)
    if not (folder / "manifest.json").is_file():
        return _folder(path).path
    return folder


def _files(folder: Path) -> Sequence[str]:
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file() or file.is_symlink())
    return sorted(name for name in found if name != SIGNATURE)


def _fingerprint_of_private(key: Path, password: str | None) -> str:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_regular(key, MAX_BYTES)
    try:
        return _fingerprint(load_pem_private_key(content, None if password is None else password.encode()).public_key())
    except Exception as error:  # cryptography raises several types for a key that it cannot read
        raise InputError(f"--key {key} cannot be used: {' '.join(str(error).split())[:200]}", KEY_HINT) from error


def _fingerprint_of_public(key: Path) -> str:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = read_regular(key, MAX_BYTES)
    try:
        return _fingerprint(load_pem_public_key(content))
    except Exception as error:
        raise InputError(f"--key {key} cannot be used: {' '.join(str(error).split())[:200]}", KEY_HINT) from error


def _fingerprint(public: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if not isinstance(public, EllipticCurvePublicKey) or public.curve.name not in CURVES:
        raise ValueError("it is not a key of a supported elliptic curve")
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
