"""Keep what the served page looks like: a digit drawn on it while the Relu monitor sees nothing strange, and an alarm.

python tests/e2e/screenshot_page.py digits.rdb docs/images/serve_page.png docs/images/monitor_alarm.png

The census is of 800 of the shipped digits; the other 200 are what arrives, and inverted for the alarm.
"""

import base64
import sys
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from test_monitor_page import send, with_census
from test_page import BROWSER, DRIVER, FLAGS, WRITTEN, Page, Running


def kept(browser, target, clip):
    time.sleep(0.5)  # bars move to where they belong
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": {**clip, "scale": 1}})
    Path(target).write_bytes(base64.b64decode(shot["data"]))


def main(bundle, target, alarm):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    with tempfile.TemporaryDirectory() as folder:
        path, fresh = with_census(Path(bundle), Path(folder))
        for flag in (*FLAGS.split(), "--hide-scrollbars", f"--user-data-dir={folder}/browser"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        with Running(path, "--monitor-share", "1") as running:
            browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
            try:
                page = Page(browser, running.port, width=1100)
                page.draw(WRITTEN[5])
                page.settled()
                send(running, fresh)
                page.until(lambda: page("pill").text == "✓ no drift")
                size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
                kept(browser, target, {"x": 0, "y": 0, "width": size["width"], "height": size["height"]})
                send(running, 255 - fresh[:64])
                page.until(lambda: page("pill").text == "▲ DRIFT ALARM")
                kept(browser, alarm, page("monitor").rect)
            finally:
                browser.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
