"""The pages in a real browser: what a reader sees and does, with nothing assumed about how it is made."""

import base64
import gzip
import json
import shutil
from urllib.parse import unquote

import pytest
from closed_form_results import manifest_of

from stability.report import comparison, publish

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (it comes with the dev extra)")
axe = pytest.importorskip("axe_selenium_python", reason="axe-selenium-python is not installed (see the dev extra)")
from selenium.webdriver.chrome.service import Service  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="no browser: `apt-get install chromium chromium-driver`, or any with its driver",
    ),
    # Selenium leaves its sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
WIDTHS = (360, 768, 1280)


@pytest.fixture(scope="module")
def pages(closed_form, closed_form_report, tmp_path_factory):
    """The page of a study, the ledger that links to it, and the study beside itself."""
    page = closed_form_report["html"]
    run_dir = tmp_path_factory.mktemp("run")
    shutil.copytree(page.parent, run_dir / "report")
    (run_dir / "manifest.json").write_text(json.dumps(manifest_of("test")))
    beside = run_dir / "comparison.html"
    beside.write_text(comparison.page(comparison.compare(closed_form, closed_form)))
    return {"report": page, "comparison": beside, "ledger": publish([run_dir], run_dir / "reports")}


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def look(browser, path, width=1280, scheme="light", script=True):
    """Open a page as a reader with this screen and this taste does."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get(path.as_uri())


def asked(browser, script, *arguments):
    return browser.execute_script(script, *arguments)


@pytest.mark.parametrize("which", ["report", "ledger", "comparison"])
def test_nothing_is_requested_and_the_console_stays_silent(browser, pages, which):
    browser.get_log("performance")
    browser.get_log("browser")
    look(browser, pages[which])
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert requests == [pages[which].as_uri()]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["report", "ledger", "comparison"])
def test_no_page_is_wider_than_its_screen(browser, pages, which, width):
    look(browser, pages[which], width)
    assert asked(browser, "return innerWidth") == width
    assert asked(browser, "return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["report", "ledger", "comparison"])
def test_no_serious_barrier_is_found_by_axe(browser, pages, which, scheme):
    look(browser, pages[which], scheme=scheme)
    checker = axe.Axe(browser)
    checker.inject()
    found = checker.run()
    assert len(found["passes"]) > 15
    serious = [
        (rule["id"], [node["html"][:120] for node in rule["nodes"][:3]])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_a_dark_page_flips_its_figures(browser, pages):
    painted = (
        "const text = [...document.querySelectorAll('.plot svg text')].map(e => getComputedStyle(e).fill);"
        "return [getComputedStyle(document.body).backgroundColor, [...new Set(text)]]"
    )

    def brightness(colour):
        return sum(int(part) for part in colour.strip("rgb()").split(",")) / 3

    seen = {}
    for scheme in ("light", "dark"):
        look(browser, pages["report"], scheme=scheme)
        paper, inks = asked(browser, painted)
        seen[scheme] = brightness(paper), [brightness(ink) for ink in inks]
    assert seen["light"][0] > 240 > max(seen["light"][1]) + 60
    assert seen["dark"][0] < 40 < min(seen["dark"][1]) - 60


def test_every_link_of_the_contents_brings_its_section_to_the_top(browser, pages):
    look(browser, pages["report"])
    links = asked(browser, "return [...document.querySelectorAll('.contents a')].map(a => a.getAttribute('href'))")
    assert len(links) > 6
    for link in links:
        top, below = asked(
            browser,
            "document.querySelector(`.contents a[href='${arguments[0]}']`).click();"
            "const top = document.querySelector(arguments[0]).getBoundingClientRect().top;"
            "return [top, document.documentElement.scrollHeight - scrollY - innerHeight]",
            link,
        )
        assert 0 <= top < 60 or (below <= 1 and 0 <= top < 900), link


def column(browser, place):
    return asked(
        browser,
        "return [...document.querySelectorAll('#cells tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[arguments[0]].dataset.value)",
        place,
    )


def test_the_cells_are_sorted_by_number_and_turned_round(browser, pages):
    look(browser, pages["report"])
    heads = asked(
        browser, "return [...document.querySelectorAll('#cells thead th')].map(h => h.innerText.split('\\n')[0])"
    )
    place = heads.index("Recall@1")
    before = [float(value) for value in column(browser, place)]
    press = "document.querySelectorAll('#cells thead th')[arguments[0]].querySelector('button').click()"
    assert before != sorted(before)
    asked(browser, press, place)
    assert [float(value) for value in column(browser, place)] == sorted(before)
    asked(browser, press, place)
    assert [float(value) for value in column(browser, place)] == sorted(before, reverse=True)


def test_the_cells_are_filtered_by_words_and_come_back(browser, pages):
    look(browser, pages["report"])
    whole = column(browser, 0)
    field = browser.find_element("css selector", "#cells .filter")
    field.send_keys("siglip-log-b 16")
    kept = column(browser, 0)
    assert set(kept) == {"siglip-log-b"}
    assert 0 < len(kept) < whole.count("siglip-log-b")
    field.clear()
    field.send_keys(" ")
    assert column(browser, 0) == whole


def test_a_figure_enlarges_on_a_click_and_returns_by_escape(browser, pages):
    look(browser, pages["report"])
    plot = browser.find_element("css selector", "figure .plot")
    small = plot.size["width"]
    plot.click()
    assert asked(browser, "return document.querySelector('dialog').open")
    assert asked(browser, "return document.querySelector('dialog .plot').getBoundingClientRect().width") > small
    browser.switch_to.active_element.send_keys("\ue00c")
    assert not asked(browser, "return document.querySelector('dialog').open")
    assert asked(browser, "return document.querySelectorAll('figure .plot svg').length") == asked(
        browser, "return document.querySelectorAll('figure').length"
    )


def test_every_figure_has_its_data_as_a_file(browser, pages):
    look(browser, pages["report"])
    links = asked(
        browser,
        "return [...document.querySelectorAll('figure')].map(f => [f.querySelector('a[download]')?.download,"
        " f.querySelector('a[download]')?.href])",
    )
    for name, target in links:
        content = target.split(",", 1)[1]
        if name.endswith(".csv.gz"):
            text = gzip.decompress(base64.b64decode(content)).decode()
        else:
            assert name.endswith(".csv")
            text = unquote(content)
        head, first = text.splitlines()[:2]
        assert len(head.split(",")) == len(first.split(",")) > 1


def test_a_phone_shows_cards_that_name_every_number(browser, pages):
    look(browser, pages["report"], width=360)
    shown = asked(
        browser,
        "const cell = document.querySelector('#cells tbody td');"
        "return [getComputedStyle(cell).display, getComputedStyle(cell, '::before').content]",
    )
    assert shown == ["flex", '"Batch"']
    look(browser, pages["report"], width=1280)
    assert asked(browser, "return getComputedStyle(document.querySelector('#cells tbody td')).display") == "table-cell"


def test_a_page_without_script_holds_every_row_and_no_dead_control(browser, pages):
    look(browser, pages["report"])
    rows = len(column(browser, 0))
    look(browser, pages["report"], script=False)
    assert len(column(browser, 0)) == rows
    assert asked(browser, "return document.querySelectorAll('button, input').length") == 0
    assert asked(browser, "return document.querySelectorAll('.plot')[0].getBoundingClientRect().height") > 100
