"""The site builds without a warning, holds what the code says, and needs nothing from elsewhere."""

import argparse
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

# Sphinx is imported by the process that builds the site, not by every one that collects tests.
for package in ("sphinx", "myst_parser", "furo", "torch"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[docs,torch]'", allow_module_level=True)

ROOT = Path(__file__).parents[2]
#: what a browser fetches on its own, by element and attribute
FETCHED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `make docs` does, with a proxy that refuses every connection."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html", "-d", str(folder / "doctrees")]
    built = subprocess.run(
        [sys.executable, *words, "docs", str(folder / "html")],
        cwd=ROOT,
        env={**os.environ, **nowhere, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder / "html"


class Seen(HTMLParser):
    """What a page has: anchors, links, and what it makes a browser fetch."""

    def __init__(self, file):
        super().__init__()
        self.anchors, self.links, self.fetched = set(), [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.anchors.add(value)
            if (tag, name) in FETCHED:
                self.fetched.append(value)
            if tag == "a" and name == "href":
                self.links.append(value)


@pytest.fixture(scope="module")
def seen(site):
    return {file: Seen(file) for file in site.rglob("*.html")}


def text_of(file):
    return " ".join(re.sub(r"<[^>]+>", " ", file.read_text(encoding="utf-8")).split())


def test_every_page_of_the_documentation_is_on_the_site(site):
    pages = [file.relative_to(ROOT / "docs").with_suffix(".html") for file in (ROOT / "docs").rglob("*.md")]
    assert pages
    assert [page for page in pages if not (site / page).is_file()] == []


def test_nothing_is_fetched_from_elsewhere(site, seen):
    assert sum(len(page.fetched) for page in seen.values()) > 100
    assert [(file.name, link) for file, page in seen.items() for link in page.fetched if urlsplit(link).netloc] == []
    styles = [file for file in site.rglob("*") if file.suffix in (".css", ".js")]
    assert styles
    elsewhere = re.compile(r"url\(\s*['\"]?(https?:)?//|@import\s+(url\()?['\"]?(https?:)?//|importScripts\(\s*['\"]https?:")
    assert [file.name for file in styles if elsewhere.search(file.read_text(encoding="utf-8"))] == []


def test_every_link_inside_the_site_leads_somewhere(site, seen):
    broken, followed = [], 0
    for file, page in seen.items():
        for link in (*page.links, *page.fetched):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
            followed += 1
            if not target.is_file() or (
                parts.fragment and target.suffix == ".html" and parts.fragment not in seen[target].anchors
            ):
                broken.append(f"{file.relative_to(site)}: {link}")
    assert followed > 500
    assert broken == []


def test_the_command_line_page_has_every_option_of_every_verb(site):
    from relu_deploy.cli.main import create_parser

    text = text_of(site / "reference" / "command-line.html")
    verbs = create_parser()._subparsers._group_actions[0].choices
    # A spelling that is only accepted for scripts that use it is not documented.
    shown = [action for verb in verbs.values() for action in verb._actions if action.help != argparse.SUPPRESS]
    options = [option for action in shown for option in action.option_strings]
    assert len(options) > 80
    assert [option for option in options if option not in text and option not in ("-h", "--help")] == []


def test_the_bundle_page_has_every_field_of_the_schema(site):
    from relu_deploy.storage.manifest import schema

    table = (site / "reference" / "bundle.html").read_text(encoding="utf-8")
    assert [name for name in schema()["properties"] if f'<span class="pre">{name}</span>' not in table] == []
    assert "inputs[].dtype" in text_of(site / "reference" / "bundle.html")


def test_the_python_page_has_every_public_name_with_what_it_says(site):
    import relu_deploy

    text = text_of(site / "reference" / "python.html")
    for name in relu_deploy.__all__:
        if name != "__version__":
            assert f"relu_deploy.{name}" in (site / "reference" / "python.html").read_text(encoding="utf-8"), name
            words = " ".join(getattr(relu_deploy, name).__doc__.strip().splitlines()[0].split()).replace("`", "")
            assert words[:30] in re.sub(r"\s+([.,:)])", r"\1", text), name


def test_the_search_index_knows_the_pages(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert "how-verification-decides" in index
    # The index holds stems: "nois" is that of "noise floor".
    assert '"nois"' in index
