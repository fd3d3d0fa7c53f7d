"""`serve --require-signature`: unsigned and changed bundles are refused, at the start and when they are reloaded."""

import asyncio
import os
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="model-signing is not installed: pip install -e '.[sign]'")
pytest.importorskip("OpenSSL", reason="pyopenssl is not installed: pip install -e '.[sign]'")

from keys import write_keys

from relu_deploy.errors import InputError
from relu_deploy.serving.loading import ModelOptions
from relu_deploy.serving.models import Models
from relu_deploy.signing.run import sign_bundle


@pytest.fixture
def keys(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_keys("ours")
    write_keys("other")


def add(path, key):
    async def scenario():
        models = Models(ModelOptions(threads=1, signature_key=Path(key)))
        try:
            await models.add(path)
        finally:
            await models.close()

    asyncio.run(scenario())


def test_a_bundle_is_served_only_with_a_valid_signature_of_the_key(keys, digits_copy):
    with pytest.raises(InputError, match=r"refused.*no model\.sig"):
        add(digits_copy.path, "ours.pub")
    sign_bundle(digits_copy.path, Path("ours.pem"))
    add(digits_copy.path, "ours.pub")
    with pytest.raises(InputError, match="refused"):
        add(digits_copy.path, "other.pub")
    with pytest.raises(InputError, match="plain ONNX file"):
        add(digits_copy.path / "model.onnx", "ours.pub")


def test_a_file_that_is_added_to_a_signed_bundle_is_refused(keys, digits_copy):
    sign_bundle(digits_copy.path, Path("ours.pem"))
    digits_copy.add("reports/note.txt", "added later")
    with pytest.raises(InputError, match="refused"):
        add(digits_copy.path, "ours.pub")


def test_a_changed_bundle_is_not_reloaded_until_it_is_signed_again_and_the_old_model_stays(keys, digits_copy, monkeypatch):
    from relu_deploy.serving import models as module

    monkeypatch.setattr(module, "RETRY_SECONDS", (0.0, 0.0))
    sign_bundle(digits_copy.path, Path("ours.pem"))

    async def scenario():
        models = Models(ModelOptions(threads=1, signature_key=Path("ours.pub")))
        try:
            first = await models.add(digits_copy.path)
            digits_copy.add("reports/note.txt", "added later")
            os.utime(digits_copy.path / "manifest.json", ns=(1, 1))
            refused = await models.reload_changed()
            assert len(refused) == 1
            assert "the old version stays in use" in refused[0]
            assert models.get("digits") is first
            sign_bundle(digits_copy.path, Path("ours.pem"), force=True)
            assert await models.reload_changed() == ["digits: reloaded"]
            assert models.get("digits") is not first
        finally:
            await models.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("key", "says"), [("missing.pub", "missing.pub"), ("ours.pub", "no model.sig")])
def test_the_server_does_not_start_with_an_unsigned_bundle_or_an_unusable_key(command, keys, digits_copy, key, says):
    pytest.importorskip("uvicorn", reason="the server's packages are not installed: pip install -e '.[serve]'")
    made = command(
        "serve", "digits.rdb", "--require-signature", key, "--http-port", "0", "--grpc-port", "-1", "--metrics-port", "-1"
    )
    assert made.code == 2
    assert says in made.stderr
