"""The report in a real browser, at a phone's width, light and dark, and on a desk."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from browser import BROWSERS, find_browser, look_at
from made_evaluations import page as evaluated
from made_runs import make_evaluation, write_run
from PIL import Image

from dexcore.data import build_store
from dexcore.report import build_report
from dexcore.report.store_page import report_store

PHONE, DESK = 390, 1440


@pytest.fixture(scope="module")
def browser():
    found = find_browser()
    if found is None:
        reason = f"no browser here: none of {', '.join(BROWSERS)} is installed"
        pytest.fail(f"CI is set, and {reason}") if os.environ.get("CI") else pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    rng = np.random.default_rng(0)
    gates = [rng.dirichlet(np.ones(count), 8) for count in (8, 8, 3)]
    name = "a-long-name-of-a-run-without-any-place-to-break-it-and-so-on-and-on"  # must not widen the page
    untrained = make_evaluation(gates=gates, squared_error=np.full(8, 25.0))  # the widest numbers of step 0
    folder = write_run(
        tmp_path_factory.mktemp("runs") / name,
        make_evaluation(gates=gates),
        load=(8, 8, 3),
        moments=(0, 3, 6),
        step0=untrained,
    )
    build_report(folder)
    return folder / "report.html"


@pytest.fixture(scope="module")
def looks(browser, report, tmp_path_factory):
    return {dark: look_at(browser, report, tmp_path_factory.mktemp("profile"), PHONE, dark) for dark in (False, True)}


@pytest.mark.parametrize("dark", [False, True])
def test_nothing_goes_wrong_on_a_phone(looks, report, dark):
    seen = looks[dark]
    assert seen.width == PHONE
    assert seen.scroll_width <= PHONE
    assert seen.pictures == len(list((report.parent / "report").glob("*.png"))) > 10
    assert seen.missing == []
    assert seen.narrow == []
    assert seen.console == []
    assert seen.requests == []
    assert seen.smallest_text >= 13


def test_nothing_goes_wrong_on_a_desk(browser, report, tmp_path):
    seen = look_at(browser, report, tmp_path / "profile", DESK)
    assert seen.width == DESK
    assert seen.scroll_width <= DESK
    assert seen.missing == seen.console == seen.requests == []


def test_the_page_follows_the_readers_choice_of_light_and_dark(looks):
    assert looks[False].background == "rgb(255, 255, 255)"
    assert max(int(part) for part in looks[True].background[4:-1].split(",")) < 50


@pytest.mark.slow
def test_the_page_of_a_store_fits_a_phone(browser, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    long = "a-long-name-of-a-folder-without-any-place-to-break-it-and-so-on-and-on"
    scans = tmp_path / long / "films"
    scans.mkdir(parents=True)
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 80 + 40 * number), np.uint8)
        Image.fromarray(pixels).save(scans / f"{long}{number}.png")
        Image.fromarray(pixels).save(scans / f"{long}{number}again.bmp")
    with ThreadPoolExecutor(1) as executor:
        build_store(tmp_path / long, tmp_path / "store", modality="X-ray", executor=executor)
    for dark in (False, True):
        seen = look_at(browser, report_store(tmp_path / "store"), tmp_path / f"profile{dark}", PHONE, dark)
        assert seen.scroll_width <= PHONE
        assert seen.pictures == 4 + 3 * 2
        assert seen.missing == seen.console == seen.requests == []
        assert seen.smallest_text >= 13


def test_a_page_with_faults_is_found_out(browser, tmp_path):
    page = tmp_path / "faulty.html"
    page.write_text(
        "<!DOCTYPE html><html><body style='margin:0'><p style='font-size:9px'>small</p>"
        "<img alt='gone' src='data:image/png;base64,AAAA'><img alt='asked' src='elsewhere.png'>"
        "<div style='width:600px'>wide</div><script>console.error('a fault')</script></body></html>",
        encoding="utf-8",
    )
    seen = look_at(browser, page, tmp_path / "profile", PHONE)
    assert seen.scroll_width == 600
    assert seen.missing == ["gone", "asked"]
    assert seen.requests == ["/elsewhere.png"]
    assert any("a fault" in line for line in seen.console)
    assert seen.smallest_text == 9


@pytest.mark.slow
def test_the_page_of_an_evaluation_fits_a_phone_and_a_desk(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(evaluated().html(), encoding="utf-8")
    for width, dark in ((PHONE, True), (DESK, False)):
        seen = look_at(browser, page, tmp_path / f"profile{width}", width, dark)
        assert seen.width == width
        assert seen.scroll_width <= width
        assert seen.pictures > 15
        assert seen.missing == seen.console == seen.requests == []
        assert seen.smallest_text >= 13
