"""`sign` and `check`: the signature covers every file of a bundle, and OpenSSF's own tool agrees."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Importing them takes most of a second, in every process that collects tests.
if missing := [name for name in ("model_signing", "OpenSSL") if find_spec(name) is None]:
    pytest.skip(f"{missing[0]} is not installed: pip install -e '.[sign]'", allow_module_level=True)

from cryptography.hazmat.primitives.asymmetric import ed25519
from keys import write_keys


@pytest.fixture
def signed(command, digits_copy):
    """The command, in a folder with a signed bundle and two pairs of keys: ours and another."""
    write_keys("ours")
    write_keys("other")
    assert command("sign", "digits.rdb", "--key", "ours.pem").code == 0
    return command


def test_a_signed_bundle_passes_its_check_and_any_verb_opens_it(signed):
    made = signed("check", "digits.rdb", "--key", "ours.pub", "--json", "-")
    assert made.code == 0, made.stderr
    assert made.json["signed"] is True
    assert made.json["files"] == ["manifest.json", "model.onnx", "source.pt2"]
    assert signed("inspect", "digits.rdb").code == 0


def test_the_key_is_named_by_the_hash_of_its_public_half(command, digits_copy):
    public = write_keys("k")
    made = command("sign", "digits.rdb", "--key", "k.pem", "--json", "-")
    assert made.json["key"] == hashlib.sha256(public).hexdigest()
    assert command("check", "digits.rdb", "--key", "k.pub", "--json", "-").json["key"] == made.json["key"]


def test_openssfs_own_tool_verifies_the_signature_and_signs_what_check_accepts(signed):
    def tool(*words):
        return subprocess.run([sys.executable, "-m", "model_signing", *words], capture_output=True, text=True, check=False)

    arguments = ("key", "digits.rdb", "--signature", "digits.rdb/model.sig")
    verified = tool("verify", *arguments, "--public_key", "ours.pub")
    assert verified.returncode == 0, verified.stderr
    assert tool("verify", *arguments, "--public_key", "other.pub").returncode != 0
    Path("digits.rdb/model.sig").unlink()
    made = tool("sign", *arguments, "--private_key", "other.pem")
    assert made.returncode == 0, made.stderr
    assert signed("check", "digits.rdb", "--key", "other.pub").code == 0


@pytest.mark.parametrize("name", ["model.onnx", "source.pt2", "manifest.json"])
def test_one_changed_byte_of_any_file_is_refused(signed, name):
    file = Path("digits.rdb") / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    made = signed("check", "digits.rdb", "--key", "ours.pub", "--json", "-")
    assert made.code == 1
    assert made.json["signed"] is False
    assert name in made.json["reason"]


@pytest.mark.parametrize("change", ["added", "removed", "linked"])
def test_a_file_that_is_added_removed_or_replaced_by_a_link_is_refused(signed, change):
    folder = Path("digits.rdb")
    if change == "added":
        (folder / "variants").mkdir()
        (folder / "variants" / "extra.onnx").write_bytes(b"x")
    elif change == "removed":
        (folder / "source.pt2").unlink()
    else:
        Path("elsewhere").write_bytes((folder / "source.pt2").read_bytes())
        (folder / "source.pt2").unlink()
        (folder / "source.pt2").symlink_to(Path("elsewhere").resolve())
    assert signed("check", "digits.rdb", "--key", "ours.pub").code == 1


def test_another_key_no_signature_and_a_damaged_one_are_not_signed(signed):
    made = signed("check", "digits.rdb", "--key", "other.pub")
    assert made.code == 1
    assert "not signed by this key" in made.stdout
    signature = Path("digits.rdb/model.sig")
    whole = signature.read_bytes()
    for content in (b"", b"{}", whole[: len(whole) // 2], b"\xff" * 99, b"[" * 100_000):
        signature.write_bytes(content)
        assert signed("check", "digits.rdb", "--key", "ours.pub").code == 1
    signature.unlink()
    made = signed("check", "digits.rdb", "--key", "ours.pub")
    assert made.code == 1
    assert "there is no model.sig" in made.stdout


def test_a_signature_is_replaced_only_with_force_and_verbs_say_that_it_is_stale(signed):
    made = signed("sign", "digits.rdb", "--key", "ours.pem")
    assert made.code == 2
    assert "signed already" in made.stderr
    made = signed("verify", "digits.rdb", "--against", "reference", "--quiet")
    assert made.code == 0
    assert "note: the signature of digits.rdb does not cover what was added" in made.stderr
    assert signed("check", "digits.rdb", "--key", "ours.pub").code == 1
    assert signed("sign", "digits.rdb", "--key", "ours.pem", "--force").code == 0
    assert signed("check", "digits.rdb", "--key", "ours.pub").code == 0


def test_optimize_says_that_the_signature_does_not_cover_its_variant(signed):
    made = signed("optimize", "digits.rdb", "--precision", "fp32", "--data", "digits", "--eval-samples", "8", "--quiet")
    assert made.code == 0, made.stderr
    assert "note: the signature of digits.rdb does not cover what was added" in made.stderr


def test_the_verdict_is_signed_as_an_in_toto_statement(command, digits_copy):
    write_keys("k")
    assert command("verify", "digits.rdb", "--against", "reference", "--quiet").code == 0
    made = command("sign", "digits.rdb", "--key", "k.pem", "--json", "-")
    assert "reports/verify.intoto.json" in made.json["files"]
    statement = json.loads(Path("digits.rdb/reports/verify.intoto.json").read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    digest = hashlib.sha256(Path("digits.rdb/model.onnx").read_bytes()).hexdigest()
    assert statement["subject"] == [{"name": "model.onnx", "digest": {"sha256": digest}}]
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert statement["predicate"]["result"] == "PASSED"
    assert statement["predicate"]["passedTests"] == ["relu-deploy verify onnxruntime-cpu"]
    assert command("check", "digits.rdb", "--key", "k.pub").code == 0


def test_a_key_with_a_password_needs_it(command, digits_copy):
    write_keys("k", b"secret")
    Path("right").write_text("secret\n")
    Path("wrong").write_text("other")
    for options in ((), ("--password-file", "wrong")):
        made = command("sign", "digits.rdb", "--key", "k.pem", *options)
        assert made.code == 2
        assert "k.pem cannot be used" in made.stderr
    assert command("sign", "digits.rdb", "--key", "k.pem", "--password-file", "right").code == 0


@pytest.mark.parametrize("verb", ["sign", "check"])
@pytest.mark.parametrize("key", ["missing.pem", "text.pem", "ed.pem"])
def test_what_is_not_such_a_key_is_bad_input_and_leaves_the_bundle_alone(command, digits_copy, verb, key):
    write_keys("ed", key=ed25519.Ed25519PrivateKey.generate())
    Path("text.pem").write_text("no key")
    made = command(verb, "digits.rdb", "--key", key)
    assert made.code == 2, made.stdout
    assert key in made.stderr
    assert "\nhint: " in made.stderr
    assert sorted(file.name for file in Path("digits.rdb").iterdir()) == ["manifest.json", "model.onnx", "source.pt2"]


def test_a_plain_graph_is_not_signed(command, digits_copy):
    write_keys("k")
    made = command("sign", "digits.rdb/model.onnx", "--key", "k.pem")
    assert made.code == 2
    assert "a bundle is signed" in made.stderr


def test_a_signature_that_is_a_link_is_refused_and_what_it_points_to_stays(command, digits_copy):
    write_keys("k")
    Path("victim").write_text("precious")
    (digits_copy.path / "model.sig").symlink_to(Path("victim").resolve())
    assert "signed already" in command("sign", "digits.rdb", "--key", "k.pem").stderr
    made = command("sign", "digits.rdb", "--key", "k.pem", "--force")
    assert (made.code, "it is a symlink" in made.stderr) == (2, True)
    assert Path("victim").read_text() == "precious"
