"""Draw a digit on the served page and keep what it looks like.

python tests/e2e/screenshot_page.py digits.rdb docs/images/serve_page.png
"""

import base64
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from test_page import BROWSER, DRIVER, FLAGS, WRITTEN, Page, Running


def main(bundle, target):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    with tempfile.TemporaryDirectory() as profile, Running(bundle) as running:
        for flag in (*FLAGS.split(), "--hide-scrollbars", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            page = Page(browser, running.port, width=1100)
            page.draw(WRITTEN[5])
            page.settled()
            size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
            Path(target).write_bytes(base64.b64decode(shot["data"]))
        finally:
            browser.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
