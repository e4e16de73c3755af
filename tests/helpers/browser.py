"""Drives a real Chromium without a window. `tests/run.sh` installs it; `open_browser` reports what is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

DEBIAN = {"chromium": "chromium", "chromium-driver": "chromedriver"}  # For each package the program that it installs.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class UnavailableError(Exception):
    """The error if this machine has no browser; the text says why."""


def missing_packages() -> list[str]:
    """Returns the packages of `DEBIAN` whose program is missing."""
    return [package for package, program in DEBIAN.items() if not shutil.which(program)]


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Opens a browser, and removes it and its profile at the end of the context.

    Yields:
        A Selenium driver.

    Raises:
        UnavailableError: The browser or Selenium is missing.
    """
    if importlib.util.find_spec("selenium") is None:
        raise UnavailableError("selenium is not installed")
    if missing_packages():
        raise UnavailableError(f"not installed: Debian's {' '.join(missing_packages())}")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    profile = tempfile.mkdtemp(prefix="plsc-browser-")
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    try:
        driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def set_window(driver: Any, width: int, height: int) -> None:
    """Sets the size of the window; below 500 pixels it emulates a phone, which does not scale a wide page down."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requests_of(driver: Any) -> list[str]:
    """Returns the addresses that the page requested since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
