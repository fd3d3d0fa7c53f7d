"""The served page with a model that takes texts, in a real browser."""

import pytest

pytest.importorskip("selenium", reason="selenium is not installed (pip install 'relu-deploy[dev]')")
pytest.importorskip("torch", reason="torch is not installed (pip install 'relu-deploy[torch]')")

from test_page import Page, Running, browser, contrast, pytestmark  # noqa: F401  # the browser is a fixture, the mark skips


@pytest.fixture(scope="module")
def server(digits_bundle, tmp_path_factory):
    from bundles import exported

    language = exported("language_id")
    with Running(language.path, digits_bundle.path, "--threads", "1") as running:
        yield running


def write(page, text):
    page("text").clear()
    page("text").send_keys(text)


def shown(page):
    return {name for name in ("by-text", "by-file", "by-hand") if page(name).is_displayed()}


def test_a_text_that_is_written_is_named_with_bars_and_relus(browser, server):  # noqa: F811
    page = Page(browser, server.port)
    page.choose("language_id")
    page.until(lambda: page("about").text.startswith("classification · text of up to 64 bytes"))
    assert page("given").text == "Text"
    assert shown(page) == {"by-text"}
    write(page, "wo ist der Schlüssel")
    page.until(lambda: page.verdict.startswith("German, "))
    page.settled()
    assert page("room").text == "21 of 64 bytes of UTF-8"
    assert page.every("#answer .best .name")[0].text == "German"
    assert len(page.every("#answer li")) == 5
    assert "20 characters" in [one.text for one in page.every("#timing dd")]
    assert len(page.every("#strips canvas")) == 5
    assert "of 768 channels fired, in 5 Relus" in page("status").text
    page("text").send_keys(" x" * 30)
    page.until(lambda: "has 81 bytes of UTF-8, and 'text' takes 64" in page("error").text)
    assert page.verdict == ""
    write(page, " ")
    page.until(lambda: not page("error").is_displayed())
    assert page.every("#answer li") == page.every("#strips li") == []
    # The browser says of the one refused request that it was refused, and nothing else.
    assert all("400 (Bad Request)" in complaint for complaint in page.complaints)


def test_pictures_are_back_when_a_model_that_takes_them_is_chosen(browser, server):  # noqa: F811
    page = Page(browser, server.port)
    page.choose("language_id")
    write(page, "dove sono le chiavi")
    page.until(lambda: page.verdict.startswith("Italian, "))
    page.choose("digits")
    page.until(lambda: page("given").text == "Picture")
    assert shown(page) == {"by-file"}
    page.way("draw")
    assert shown(page) == {"by-hand"}
    page.draw([[(0.55, 0.1), (0.5, 0.5), (0.45, 0.9)]])
    page.until(lambda: page.verdict.startswith("1, "))
    page.choose("language_id")
    # What was written is still there, and is answered again.
    page.until(lambda: page.verdict.startswith("Italian, "))
    assert page.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_text_field_fits_and_can_be_read(browser, server, width, dark):  # noqa: F811
    page = Page(browser, server.port, width, dark)
    page.choose("language_id")
    write(page, "nie rozumiem")
    page.settled()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    for name in ("text", "room"):
        box = page(name).rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        script = """
            let at = arguments[0], color = getComputedStyle(at).color;
            while (at && getComputedStyle(at).backgroundColor === "rgba(0, 0, 0, 0)") at = at.parentElement;
            return [color, getComputedStyle(at).backgroundColor]"""
        assert contrast(*browser.execute_script(script, page(name))) >= 4.5
