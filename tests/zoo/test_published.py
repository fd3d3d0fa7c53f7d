"""Weights by name: the table is torchvision's, a file is checked, cached whole or not at all, and without a network it says what to do."""

import hashlib
import http.server
import threading
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'relu-deploy[torch]'")

from torchvision_import import torchvision  # noqa: E402

from relu_deploy.errors import InputError, UsageError  # noqa: E402
from relu_deploy.preprocessing.presets import load_preprocess  # noqa: E402
from relu_deploy.tensors import TensorSpec  # noqa: E402
from relu_deploy.zoo import published  # noqa: E402
from relu_deploy.zoo.published import FILES, published_url, published_weights  # noqa: E402
from relu_deploy.zoo.recipes import ARCHITECTURES, build  # noqa: E402


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    return tmp_path / "cache" / "relu_deploy" / "weights"


@pytest.fixture
def server(tmp_path):
    """A server of the folder `served`; `requests` are the paths that were requested, `answer` replaces the answer's content."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        requests, cut = [], None

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            self.requests.append(self.path)
            if self.cut is None:
                super().do_GET()
                return
            content = (folder / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: self.cut])

        def log_message(self, *_):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    Handler.folder, Handler.url = folder, f"http://127.0.0.1:{listening.server_port}/"
    yield Handler
    listening.shutdown()
    listening.server_close()
    thread.join()


def write_weights(folder, name="squeezenet1_1", seed=1):
    """Save random weights under a name with the digits of their own SHA-256, and return the file."""
    file = folder / "new.pth"
    torch.save(build(name, seed=seed).state_dict(), file)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    return file.rename(folder / f"{name}-{digits}.pth")


def test_the_table_has_a_file_of_torchvisions_own_for_every_architecture_it_has():
    models = torchvision().models
    for entry in ARCHITECTURES:
        urls = [weights.url for weights in models.get_model_weights(entry.name)]
        assert published_url(entry.name) in urls
    assert set(FILES) == {entry.name for entry in ARCHITECTURES}
    assert published_url("digits") is None


def test_the_preprocessing_of_the_recipes_is_that_of_the_published_weights():
    models = torchvision().models
    for entry in ARCHITECTURES:
        if entry.task != "classification":
            continue
        weights = next(one for one in models.get_model_weights(entry.name) if one.url == published_url(entry.name))
        preset = weights.transforms()
        steps = load_preprocess(entry.preprocess).fitted(TensorSpec("x", "float32", ("N", *entry.shape)))
        assert (preset.resize_size, preset.crop_size * 2) == ([steps.resize.size], list(steps.crop.size))
        assert (tuple(preset.mean), tuple(preset.std)) == (steps.mean, steps.std)


def test_published_weights_are_exported_from_a_mirror_and_the_second_time_from_the_cache(command, cache, server, monkeypatch):
    file = write_weights(server.folder)
    monkeypatch.setitem(FILES, "squeezenet1_1", file.name)
    arguments = ("export", "squeezenet1_1", "--weights", "published", "--quiet")
    made = command(*arguments, "--weights-url", server.url, "-o", "one.rdb", "--json", "-")
    assert made.code == 0, made.stderr
    assert made.json["untrained"] is False
    assert [entry.name for entry in cache.iterdir()] == [file.name]
    assert (cache / file.name).read_bytes() == file.read_bytes()
    assert server.requests == [f"/{file.name}"]
    module = build("squeezenet1_1", "published")
    expected = torch.load(file, weights_only=True)
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())
    assert len(server.requests) == 1


def test_a_mirror_may_name_the_file_itself(cache, server):
    file = write_weights(server.folder)
    assert published_weights("squeezenet1_1", server.url + file.name).read_bytes() == file.read_bytes()
    # Without digits in its name it is compared with the published ones.
    file.rename(server.folder / "mine.pth")
    with pytest.raises(InputError, match="does not start with b8a52dc0"):
        published_weights("squeezenet1_1", server.url + "mine.pth")


@pytest.mark.parametrize("fault", ["other content", "cut off", "missing"])
def test_a_file_that_is_not_the_published_one_is_refused_and_nothing_is_left(cache, server, fault):
    name = FILES["squeezenet1_1"]
    if fault != "missing":
        (server.folder / name).write_bytes(b"x" * 1000)
    server.cut = 10 if fault == "cut off" else None
    with pytest.raises(InputError) as raised:
        published_weights("squeezenet1_1", server.url)
    assert server.url + name in raised.value.message
    assert "HTTP 404" in raised.value.message or fault != "missing"
    assert raised.value.hint
    assert not list(cache.iterdir())


def test_a_damaged_file_in_the_cache_is_downloaded_again(cache, server, monkeypatch):
    file = write_weights(server.folder)
    monkeypatch.setitem(FILES, "squeezenet1_1", file.name)
    cache.mkdir(parents=True)
    (cache / file.name).write_bytes(b"half")
    assert published_weights("squeezenet1_1", server.url).read_bytes() == file.read_bytes()


def test_without_a_network_it_says_the_url_and_where_to_put_the_file(command, cache, monkeypatch):
    monkeypatch.setattr(published, "SERVER", "http://127.0.0.1:9/models/")
    made = command("export", "resnet50", "--weights", "published", "-o", "r.rdb", "--quiet")
    assert made.code == 2
    assert "http://127.0.0.1:9/models/resnet50-0676ba61.pth" in made.stderr
    assert f"put it at {cache / 'resnet50-0676ba61.pth'}" in made.stderr
    assert not Path("r.rdb").exists()


def test_the_cache_of_torch_hub_is_used_too(cache, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = write_weights(folder)
    monkeypatch.setitem(FILES, "squeezenet1_1", file.name)
    monkeypatch.setattr(published, "SERVER", "http://127.0.0.1:9/models/")
    assert published_weights("squeezenet1_1") == file


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("digits", "--weights", "published"), "no published weights for digits"),
        (("resnet5", "--weights", "published"), "no zoo model called"),
        (("torchvision.models:resnet50", "--weights", "published"), "is a callable"),
        (("resnet50", "--weights-url", "http://127.0.0.1:9/"), "goes with --weights published"),
        (("resnet50", "--weights", "published", "--weights-url", "mirror"), "is not a URL"),
    ],
)
def test_what_has_no_published_weights_is_exit_2(command, cache, arguments, says):
    made = command("export", *arguments, "-o", "r.rdb", "--quiet")
    assert made.code == 2
    assert says in made.stderr
    assert "\nhint: " in made.stderr


def test_zoo_shows_which_models_have_published_weights(command):
    models = {model["name"]: model for model in command("zoo", "--json", "-").json["models"]}
    assert models["resnet50"]["published"] == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert models["digits"]["published"] is None
    assert "published" in command("zoo").stdout
    with pytest.raises(UsageError, match="no published weights"):
        published_weights("text_cnn")
