"""A report in a real browser."""

import io

import pytest
from browser import UnavailableError, open_browser, requests_of, set_window
from PIL import Image
from run_folders import make_run

from plsc.report import make_report


@pytest.fixture(scope="module")
def driver():
    try:
        context = open_browser()
        driver = context.__enter__()
    except UnavailableError as problem:
        pytest.skip(f"no browser here: {problem}")
    yield driver
    context.__exit__(None, None, None)


def test_a_page_fits_a_phone_and_a_screen_and_fetches_nothing(driver, tmp_path):
    runs = [make_run(tmp_path / f"{'x' * 60}, {number}", lr=number) for number in (1, 2)]
    page = tmp_path / "report.html"
    make_report(runs, page)
    requests_of(driver)
    for width in (360, 1280):
        set_window(driver, width, 900)
        driver.get(page.as_uri())
        driver.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
        wide = driver.execute_script("return Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
        assert wide <= width == driver.execute_script("return window.innerWidth")
        loaded = "return [...document.images].every(one => one.complete && one.naturalWidth > 0)"
        assert driver.execute_script(loaded)
        drawn = "return [...document.querySelectorAll('figure > svg')].map(one => one.getBoundingClientRect().height)"
        heights = driver.execute_script(drawn)
        assert len(heights) == 9 and min(heights) > 150
        assert driver.get_log("browser") == []
        assert {one for one in requests_of(driver) if not one.startswith("data:")} == {page.as_uri()}
        for scroll in (0, 900):
            driver.execute_script(f"window.scrollTo(0, {scroll})")
            with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as screenshot:
                assert len(screenshot.convert("RGB").getcolors(1_000_000)) > 50, "not blank"


def test_a_page_is_dark_at_night(driver, tmp_path):
    make_report([make_run(tmp_path / "run", tests=0)], tmp_path / "report.html")
    brightness = []
    for scheme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        driver.get((tmp_path / "report.html").as_uri())
        with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as screenshot:
            brightness.append(screenshot.convert("L").getpixel((2, 2)))
        ink = "return getComputedStyle(document.querySelector('figure > svg text')).fill"
        brightness.append(int(driver.execute_script(ink).split("(")[1].split(",")[0]))
    light, ink_on_light, dark, ink_on_dark = brightness
    assert light > 200 > 90 > ink_on_light and dark < 60 < 200 < ink_on_dark
