"""Takes the picture in docs/report.md: python tools/report_picture.py PAGE PICTURE, with Debian's chromium and playwright."""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

page, picture = map(Path, sys.argv[1:])
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    tab = browser.new_page(viewport={"width": 1240, "height": 1110})
    tab.goto(page.resolve().as_uri())
    tab.locator("#images button").nth(1).click()
    tab.locator("#slider").fill("4")
    tab.locator("h2").first.click()  # nothing has the focus
    tab.evaluate("scrollTo(0, 380)")
    shot = tab.screenshot()
    browser.close()
Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(picture, optimize=True)
