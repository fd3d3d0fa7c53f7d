"""The Relu monitor on the served page, in a real browser: an alarm that is really raised, and why there is nothing to see."""

import io
import shutil
import time

import numpy as np
import pytest

pytest.importorskip("selenium", reason="selenium is not installed (pip install 'relu-deploy[dev]')")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install 'relu-deploy[cpu]')")

from PIL import Image
from running import until
from test_page import SHIPPED, Page, Running, browser, fits_and_can_be_read, pytestmark  # noqa: F401  # browser is a fixture

from relu_deploy.bundle import Bundle

MEASURES = "return ['pad', 'relus'].map(name => document.getElementById(name).getBoundingClientRect().top)"


@pytest.fixture(scope="module")
def counted(digits_bundle, tmp_path_factory):
    return with_census(digits_bundle.path, tmp_path_factory.mktemp("counted"))


def with_census(path, folder):
    """Return the path of a copy of the digit classifier, in `folder`, with a census of 800 shipped digits; the other 200, uint8."""
    from relu_deploy.activations.census import census

    shutil.copytree(path, folder / "digits.rdb")
    with np.load(SHIPPED / "digits" / "test.npz") as archive:
        digits = archive["x"]
    np.savez(folder / "known.npz", x=digits[:800])
    bundle = Bundle.open(folder / "digits.rdb")
    bundle.add("reports/baseline.npz", census(bundle, folder / "known.npz", threads=1).baseline.to_bytes())
    return bundle.path, digits[800:, ..., 0]


@pytest.fixture
def server(counted):
    with Running(counted[0], "--threads", "1", "--monitor-share", "1") as running:
        yield running


def send(server, pictures):
    """Send each picture to be looked at, never more than the monitor can keep, and return its state at the end."""

    def state():
        return server.ask("GET", "/v2/models/digits/monitor")[1]

    for start in range(0, len(pictures), 16):
        part = pictures[start : start + 16]
        expected = state()["samples"] + len(part)
        for picture in part:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            assert server.ask("POST", "/v2/models/digits/predict", file.getvalue(), Content_Type="image/png")[0] == 200
        until(lambda expected=expected: state()["samples"] >= expected)
    return state()


def written(score):
    return f"score {score:.1f}".replace("-", "−")


def test_an_alarm_that_is_raised_is_shown_in_words_and_ends_and_disturbs_nothing(browser, server, counted):  # noqa: F811
    _, fresh = counted
    page = Page(browser, server.port)
    page.until(lambda: page("state").text == "… Watching: 0 of the 16 samples that it takes to judge")
    assert page("looks").text == "looks at all of what arrives (--monitor-share)"
    assert page("score").text == "no score yet"
    browser.execute_script("document.getElementById('clear').focus()")
    places, spoken = browser.execute_script(MEASURES), page("alarm").get_attribute("textContent")
    assert spoken == ""

    send(server, fresh[:5])
    page.until(lambda: page("pill").text == "… drift: 5 of 16 samples")
    answer = send(server, fresh[5:100])
    assert not answer["drift"]["alarm"]
    page.until(lambda: page("state").text == "✓ Watching: what arrives looks to the Relus like the census")
    page.until(lambda: page("score").text == written(answer["drift"]["score"]))
    assert page("mark").text == "alarm above 3.09"
    assert "1 window in 1,000 raises the alarm by chance" in page("chance").text
    assert page("alarm").get_attribute("textContent") == ""

    answer = send(server, 255 - fresh[:64])
    assert answer["drift"]["alarm"]
    page.until(lambda: page("pill").text == "▲ DRIFT ALARM")
    page.until(lambda: page("score").text == written(answer["drift"]["score"]))
    assert page("state").text.startswith("▲ DRIFT ALARM: what arrives does not look")
    assert page("alarm").get_attribute("textContent") == "Drift alarm of digits"
    assert page("gauge").get_attribute("aria-valuenow") == f"{2 * answer['drift']['threshold']:.2f}"
    facts = dict(zip([one.text for one in page.every("#counts dt")], [one.text for one in page.every("#counts dd")], strict=True))
    assert (facts["window"], facts["alarms"]) == ("64 of 64 samples", "1")
    assert int(facts["unusual"].split()[0]) == answer["unusual"] >= 50
    assert int(facts["excursions"].split()[0]) == sum(one["excursions"] for one in answer["relus"])
    rows = [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in page.every("#rows tr")]
    by_name = {one["node"].removesuffix("/Relu"): one for one in answer["relus"]}
    assert len(rows) == 4
    for name, _, now, census, score in rows:
        one = by_name[name]
        assert score == f"▲ {one['drift_score']:.1f}"
        assert (now, census) == (f"{one['firing_rate']:.1%}", f"{1 - one['census_sparsity']:.1%}")

    # Neither the focus nor anything on the page has moved, and the browser had nothing to say.
    assert browser.switch_to.active_element.get_attribute("id") == "clear"
    assert browser.execute_script(MEASURES) == places
    assert page.complaints == []

    answer = send(server, fresh[100:200])
    assert not answer["drift"]["alarm"]
    page.until(lambda: page("pill").text == "✓ no drift")
    assert page("alarm").get_attribute("textContent") == "The drift alarm of digits is over"


def test_an_alarm_fits_and_can_be_read_wide_and_narrow_light_and_dark(browser, server, counted):  # noqa: F811
    assert send(server, 255 - counted[1][:64])["drift"]["alarm"]
    for width in (390, 1400):
        for dark in (False, True):
            page = Page(browser, server.port, width, dark)
            page.until(lambda page=page: page("pill").text == "▲ DRIFT ALARM")
            assert len(page.every("#rows tr")) == 4
            fits_and_can_be_read(page, width)


def test_the_page_does_not_ask_while_nobody_looks(browser, server):  # noqa: F811
    page = Page(browser, server.port)

    def payload():
        return browser.execute_script(
            "return performance.getEntriesByType('resource').filter(one => one.name.endsWith('/monitor')).length"
        )

    def looked_at(seen):
        script = "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true}); document.dispatchEvent(new Event('visibilitychange'))"
        browser.execute_script(script, not seen)

    page.until(lambda: payload() >= 2)
    looked_at(False)
    time.sleep(0.3)
    before = payload()
    time.sleep(4)
    assert payload() == before
    looked_at(True)
    page.until(lambda: payload() > before)


def test_without_a_census_the_page_says_so_and_which_command_makes_one(browser, digits_bundle):  # noqa: F811
    with Running(digits_bundle.path, digits_bundle.onnx, "--threads", "1") as running:
        page = Page(browser, running.port)
        page.until(lambda: page("state").text == "○ Not watched")
        assert page("pill").text == "○ drift is not watched"
        assert "has no census to compare with" in page("why").text
        assert page.every("#why code")[0].text == f"relu-deploy census {digits_bundle.path} --data D"
        assert not page("seen").is_displayed()
        page.choose("model")
        page.until(lambda: "is not a bundle" in page("why").text)
        assert [one.text.split()[1] for one in page.every("#why code")] == ["export", "census"]
        assert page.complaints == []


def test_a_census_that_is_made_while_the_server_runs_is_taken_up(browser, counted, digits_copy):  # noqa: F811
    with Running(digits_copy.path, "--threads", "1") as running:
        page = Page(browser, running.port)
        page.until(lambda: page("state").text == "○ Not watched")
        digits_copy = digits_copy.add("reports/baseline.npz", (counted[0] / "reports" / "baseline.npz").read_bytes())
        page.until(lambda: page("state").text.startswith("… Watching"))
        assert page("looks").text == "looks at 1.0% of what arrives (--monitor-share)"


def test_a_server_that_was_told_not_to_watch_says_so(browser, counted):  # noqa: F811
    with Running(counted[0], "--threads", "1", "--monitor-share", "0") as running:
        page = Page(browser, running.port)
        page.until(lambda: page("state").text == "○ Not watched")
        assert page("why").text == "The server was started with --monitor-share 0."
        assert page.complaints == []
