"""The served page in a real browser: drawn on, given pictures, wide and narrow, light and dark, and by keyboard alone."""

import base64
import io
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("selenium", reason="selenium is not installed (pip install 'relu-deploy[dev]')")
pytest.importorskip("uvicorn", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")
pytest.importorskip("python_multipart", reason="the server's libraries are not installed (pip install 'relu-deploy[serve]')")

from pictures import encoded, gradient
from running import Running
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

SHIPPED = Path(__file__).parents[2] / "models"
BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="there is no chromium with its chromedriver (apt-get install chromium chromium-driver)"
)
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"

#: how ten digits are written, as points in 0..1 joined by lines; a second stroke where the pen is lifted
WRITTEN = {
    0: [[(0.5, 0.1), (0.3, 0.2), (0.22, 0.5), (0.3, 0.8), (0.5, 0.9), (0.7, 0.8), (0.78, 0.5), (0.7, 0.2), (0.5, 0.1)]],
    1: [[(0.55, 0.1), (0.5, 0.5), (0.45, 0.9)]],
    2: [
        [(0.25, 0.3), (0.35, 0.14), (0.55, 0.1), (0.7, 0.22), (0.66, 0.42), (0.45, 0.65), (0.22, 0.88), (0.5, 0.86), (0.8, 0.88)]
    ],
    3: [
        [(0.25, 0.16), (0.5, 0.1), (0.7, 0.2), (0.66, 0.38), (0.45, 0.48), (0.68, 0.56), (0.75, 0.72), (0.6, 0.88), (0.25, 0.86)]
    ],
    4: [[(0.3, 0.1), (0.24, 0.35), (0.22, 0.52), (0.5, 0.54), (0.78, 0.5)], [(0.7, 0.12), (0.66, 0.5), (0.62, 0.9)]],
    5: [[(0.72, 0.12), (0.34, 0.13), (0.3, 0.45), (0.55, 0.42), (0.72, 0.55), (0.7, 0.78), (0.5, 0.9), (0.25, 0.86)]],
    6: [[(0.62, 0.1), (0.4, 0.3), (0.28, 0.6), (0.34, 0.84), (0.52, 0.9), (0.68, 0.78), (0.66, 0.62), (0.5, 0.55), (0.3, 0.66)]],
    7: [[(0.25, 0.15), (0.5, 0.14), (0.76, 0.13), (0.62, 0.42), (0.5, 0.7), (0.44, 0.9)]],
    8: [
        [
            (0.64, 0.2),
            (0.48, 0.1),
            (0.34, 0.2),
            (0.4, 0.38),
            (0.6, 0.55),
            (0.68, 0.74),
            (0.5, 0.9),
            (0.32, 0.76),
            (0.4, 0.56),
            (0.64, 0.2),
        ]
    ],
    9: [[(0.68, 0.25), (0.5, 0.12), (0.32, 0.24), (0.34, 0.42), (0.52, 0.48), (0.68, 0.3), (0.66, 0.6), (0.58, 0.9)]],
}


@pytest.fixture(scope="module")
def server(digits_bundle, tmp_path_factory):
    from bundles import exported

    drawn = [exported(name).path for name in ("digit_detector", "digit_segmenter")]
    with Running(digits_bundle.path, *drawn, digits_bundle.onnx, "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = BROWSER
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page in the browser. width: of the window. complaints: what the browser's console message."""

    def __init__(self, browser, port, width=1400, dark=False):
        self.browser = browser
        browser.get_log("browser")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        browser.get(f"http://127.0.0.1:{port}/")
        self.until(lambda: self("about").text)

    def __call__(self, name):
        return self.browser.find_element(By.ID, name)

    def every(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition):
        return WebDriverWait(self.browser, 20, 0.05).until(lambda _: condition())

    @property
    def verdict(self):
        return self("verdict").text

    def choose(self, model):
        Select(self("models")).select_by_value(model)

    def way(self, name):
        self.browser.execute_script(f"document.querySelector('[name=way][value={name}]').click()")

    def give(self, file):
        self("file").send_keys(str(file))

    def draw(self, strokes, size=1.0, corner=(0.0, 0.0)):
        pad, actions = self("pad"), ActionChains(self.browser, duration=5)
        wide = pad.size["width"]
        for stroke in strokes:
            for index, point in enumerate(stroke):
                x, y = (int((place * size + start - 0.5) * wide) for place, start in zip(point, corner, strict=True))
                actions.move_to_element_with_offset(pad, x, y)
                if index == 0:
                    actions.click_and_hold()
            actions.release()
        actions.perform()

    def settled(self):
        """Wait until neither the answer nor the Relus change any more."""
        before = None
        while (now := (self.verdict, self("status").text)) != before or not self.every("#strips li"):
            before = now
            time.sleep(0.3)

    @property
    def complaints(self):
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def page(browser, server):
    return Page(browser, server.port)


def test_a_drawn_digit_is_named_with_bars_timing_and_relus(page):
    page.draw(WRITTEN[7])
    page.until(lambda: page.verdict.startswith("7, "))
    page.settled()
    assert [one.text for one in page.every("#answer .name")] == list("0123456789")
    shares = [float(one.text.strip("<>%")) for one in page.every("#answer .number")]
    assert sum(shares) == pytest.approx(100, abs=1)
    widths = [one.size["width"] for one in page.every("#answer i")]
    assert np.argmax(widths) == np.argmax(shares) == 7
    assert {"model", "queue", "decoding", "round trip"} <= {one.text for one in page.every("#timing dt")}
    assert len(page.every("#strips canvas")) == 6
    assert "of 368 channels fired" in page("status").text
    assert page.complaints == []


@pytest.mark.slow
def test_every_digit_that_is_drawn_is_named_wherever_and_however_small_it_is(page):
    named = {}
    for digit, strokes in WRITTEN.items():
        for size, corner in ((1.0, (0, 0)), (0.4, (0.55, 0.05))):
            page("clear").click()
            page.draw(strokes, size, corner)
            page.until(lambda: page.verdict)
            page.settled()
            named[digit, size] = int(page.verdict[0])
    wrong = {key: found for key, found in named.items() if key[0] != found}
    assert wrong == {}


def test_what_the_model_is_given_is_made_like_mnist(page):
    page.draw(WRITTEN[4], 0.3, (0.1, 0.6))
    page.settled()
    script = "return [...document.getElementById('fed').getContext('2d').getImageData(0, 0, 28, 28).data]"
    given = np.array(page.browser.execute_script(script)).reshape(28, 28, 4)[..., 0].astype(float)
    rows, columns = np.nonzero(given > 20)
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    assert 19 <= longer <= 21
    center = [(given.sum(axis) * (np.arange(28) + 0.5)).sum() / given.sum() for axis in (0, 1)]
    np.testing.assert_allclose(center, 14, atol=0.3)
    with np.load(SHIPPED / "digits" / "test.npz") as archive:
        ink = (archive["x"] > 128).mean((1, 2, 3))
    assert ink.min() < (given > 128).mean() < ink.max()
    # Anti-aliased: edges are neither ink nor ground.
    assert ((given > 30) & (given < 225)).sum() > 20


def test_a_digit_can_be_drawn_undone_and_cleared_by_keyboard_alone(page):
    page.browser.execute_script("document.getElementById('models').focus()")
    keys = ActionChains(page.browser)
    for _ in range(6):
        keys.send_keys(Keys.TAB).perform()
        if page.browser.switch_to.active_element.get_attribute("id") == "pad":
            break
    keys.send_keys(" ", *[Keys.ARROW_DOWN] * 15, " ").perform()
    page.until(lambda: page.verdict.startswith("1, "))
    keys.send_keys(Keys.BACKSPACE).perform()
    page.until(lambda: not page.every("#answer li"))
    keys.send_keys(" ", Keys.ARROW_UP, " ").perform()
    page.until(lambda: page.every("#answer li"))
    keys.send_keys(Keys.ESCAPE).perform()
    page.until(lambda: not page.every("#answer li"))


def test_boxes_are_drawn_on_the_picture_and_follow_the_slider(page, server, tmp_path):
    with np.load(SHIPPED / "digit_detector" / "test.npz") as archive:
        scene = Image.fromarray(archive["x"][3, ..., 0]).resize((256, 128))
    scene.save(tmp_path / "scene.png")
    answer = server.ask("POST", "/v2/models/digit_detector/predict", encoded(scene, "PNG"), Content_Type="image/png")[1]
    page.choose("digit_detector")
    page.way("file")
    page.give(tmp_path / "scene.png")
    page.until(lambda: page.every("#answer li"))
    expected = [one for one in answer["detections"] if one["score"] >= 0.5]
    assert len(page.every("#answer li")) == len(expected) > 1
    # The upper edge of the best box, which is drawn last, is in a color where the scene is grey.
    box = expected[0]["box"]
    x, y = (box[0] + box[2]) / 2 / 256, box[3] / 128
    script = """
        const canvas = document.getElementById("shown"), [x, y] = arguments;
        return [...canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data]"""
    assert np.ptp(page.until(lambda: page.browser.execute_script(script, x, y))[:3]) > 60
    page.browser.execute_script("const s = arguments[0]; s.value = 0.93; s.dispatchEvent(new Event('input'))", page("threshold"))
    assert len(page.every("#answer li")) == sum(one["score"] >= 0.93 for one in answer["detections"]) < len(expected)


@pytest.mark.parametrize("width", [390, 1400])
def test_a_mask_lies_over_the_picture_with_a_legend_of_its_classes(browser, server, tmp_path, width):
    with np.load(SHIPPED / "digit_segmenter" / "test.npz") as archive:
        scene = Image.fromarray(archive["x"][1, ..., 0]).resize((256, 128))
    scene.save(tmp_path / "scene.png")
    answer = server.ask("POST", "/v2/models/digit_segmenter/predict", encoded(scene, "PNG"), Content_Type="image/png")[1]
    mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["mask"]["data"]))))
    page = Page(browser, server.port, width)
    page.choose("digit_segmenter")
    page.way("file")
    page.give(tmp_path / "scene.png")
    page.until(lambda: page.every("#answer li"))
    assert [one.text for one in page.every("#answer .name")] == [one["label"] for one in answer["classes"]]
    assert page.verdict == ", ".join(one["label"] for one in answer["classes"] if not one["background"])
    found = next(one for one in answer["classes"] if not one["background"])
    colors = [one.value_of_css_property("background-color") for one in page.every("#answer .swatch")]
    expected = np.array(list(bytes.fromhex(found["color"][1:])))
    assert f"rgba({', '.join(map(str, expected))}, 1)" in colors
    assert len(set(colors)) == len(answer["classes"]) > 2
    # A pixel of the class that is found most, and one of the ground, as the canvas shows them.
    script = """
        const canvas = document.getElementById("shown"), [x, y] = arguments;
        return [...canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data]"""

    def shown(index):
        y, x = np.argwhere(mask == index)[(mask == index).sum() // 2]
        return np.array(browser.execute_script(script, (x + 0.5) / 256, (y + 0.5) / 128)[:3]), int(np.asarray(scene)[y, x])

    def covered(share):
        page.browser.execute_script(
            "const s = arguments[0]; s.value = arguments[1]; s.dispatchEvent(new Event('input'))", page("opacity"), share
        )
        return shown(found["index"])[0]

    ground, grey = shown(0)
    assert np.ptp(ground) <= 2
    assert abs(int(ground[0]) - grey) <= 3
    assert np.abs(covered(1) - expected).max() <= 3
    assert np.ptp(covered(0)) <= 2
    grey = shown(found["index"])[1]
    assert np.abs(covered(0.5) - (expected + grey) / 2).max() <= 4
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # That the canvas is read several times is this test's own doing.
    assert [message for message in page.complaints if "willReadFrequently" not in message] == []


@pytest.mark.parametrize("model", ["digit_detector", "digit_segmenter"])
def test_a_scene_can_be_drawn_for_a_detector_and_a_segmenter(page, model):
    page.choose(model)
    page.draw(WRITTEN[3], 0.4, (0.05, 0.05))
    page.draw(WRITTEN[7], 0.4, (0.55, 0.5))
    page.settled()
    found = {one.text for one in page.every("#answer .name")}
    assert {"3", "7"} <= found


def test_what_goes_wrong_is_said(page, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    page.way("file")
    page.give(tmp_path / "notes.txt")
    page.until(lambda: "not a JPEG, PNG, WebP or BMP picture" in page("error").text)
    gradient().save(tmp_path / "fine.png")
    page.give(tmp_path / "fine.png")
    page.until(lambda: page.verdict)
    assert not page("error").is_displayed()
    page.choose("model")
    page.until(lambda: "no 'preprocess'" in page("error").text)
    assert not page("file").is_enabled()
    page.choose("digits")
    page.until(lambda: page.verdict)
    assert not page("error").is_displayed()


def test_an_answer_that_comes_too_late_is_not_shown(page, tmp_path):
    page.draw(WRITTEN[2])
    page("clear").click()
    time.sleep(1)
    assert page.verdict == ""
    assert page.every("#answer li") == page.every("#strips li") == []


def test_a_server_that_has_gone_is_said_to_have_gone(browser, digits_bundle):
    with Running(digits_bundle.path, "--threads", "1") as running:
        page = Page(browser, running.port)
        page.draw(WRITTEN[1])
        page.settled()
        running.stop()
        page.draw(WRITTEN[7])
        page.until(lambda: "does not answer" in page("error").text)


def contrast(one, other):
    """Return the contrast of two CSS colors, WCAG 2's definition."""

    def luminance(color):
        parts = np.array([float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def fits_and_can_be_read(page, width):
    """Assert that nothing is cut off and that all that can be read has a contrast of at least 4.5."""
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= width
    for one in page.every("h1, h2, p, li span, button, dt, dd, #verdict, #pill, #monitor :is(span, code, caption, th, td)"):
        if not (one.text and one.is_displayed()):
            continue
        box = one.rect
        assert box["x"] >= 0, one.text
        assert box["x"] + box["width"] <= width, one.text
        script = """
            let at = arguments[0], color = getComputedStyle(at).color;
            while (at && getComputedStyle(at).backgroundColor === "rgba(0, 0, 0, 0)") at = at.parentElement;
            return [color, getComputedStyle(at).backgroundColor]"""
        assert contrast(*page.browser.execute_script(script, one)) >= 4.5, one.text


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_fits_and_can_be_read(browser, server, width, dark):
    page = Page(browser, server.port, width, dark)
    page.draw(WRITTEN[3])
    page.settled()
    fits_and_can_be_read(page, width)
    narrow = page("answer").rect["y"] > page("pad").rect["y"] + page("pad").rect["height"]
    assert narrow == (width < 860)


def test_a_picture_that_is_too_large_gets_the_servers_own_sentence(browser, digits_bundle, tmp_path):
    Image.fromarray(np.zeros((1000, 1100, 3), np.uint8)).save(tmp_path / "large.bmp")
    assert (tmp_path / "large.bmp").stat().st_size > 3 * 2**20
    gradient().save(tmp_path / "fine.png")
    with Running(digits_bundle.path, "--threads", "1", "--max-body", "1") as running:
        page = Page(browser, running.port)
        page.way("file")
        for _ in range(3):
            page.give(tmp_path / "large.bmp")
            page.until(lambda: "exceeds the limit of 1048576" in page("error").text)
            assert page("error").text.endswith("(413)")
            page.give(tmp_path / "fine.png")
            page.until(lambda: page.verdict)
            assert not page("error").is_displayed()
