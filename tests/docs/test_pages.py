"""Every example in the documentation runs as it is written, and what it shows is what comes."""

import re

import pytest
from doc_pages import ROOT, page_at, pages
from doc_runs import PATIENCE, Wrong, can_run, run_page

PAGES = [page_at(path) for path in pages()]


def name_of(page):
    return str(page.path.relative_to(ROOT))


def test_every_example_is_run_or_says_why_not():
    assert [problem for page in PAGES for problem in page.problems] == []


def test_the_readme_and_the_tutorials_have_examples_that_run():
    runnable = [name_of(page) for page in PAGES if page.is_run]
    assert "README.md" in runnable
    tutorials = [name_of(page) for page in PAGES if page.path.parent.name == "tutorials"]
    assert tutorials
    assert set(tutorials) <= set(runnable)


def test_every_link_to_a_file_of_the_repository_leads_to_one():
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s#]+)", page.path.read_text(encoding="utf-8"))]
    inside = [(page, link) for page, link in links if "://" not in link]
    assert len(inside) > 50
    assert [f"{name_of(page)}: {link}" for page, link in inside if not (page.path.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.parametrize("page", [page for page in PAGES if page.is_run], ids=name_of)
def test_a_page_runs_as_it_is_written(page, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")
    if why := can_run():
        pytest.skip(why)
    what = ""
    try:
        run_page(page, tmp_path)
    except Wrong as wrong:
        what = str(wrong)
    if what:
        pytest.fail(what, pytrace=False)
