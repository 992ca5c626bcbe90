"""The server's page in a real Chromium, used as a person would: a real run answers."""

from __future__ import annotations

import base64
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fieldmark import endpoints, service
from fieldmark.formats import CODES
from fieldmark.run import Run
from served import GREEN, GREY, RED, Server, photo

PLACES = {
    **{"upper left": "左上", "upper middle": "上方", "upper right": "右上"},
    **{"middle left": "左侧", "middle": "中间", "middle right": "右侧"},
    **{"lower left": "左下", "lower middle": "下方", "lower right": "右下"},
}
WIDTHS = (360, 768, 1400)
SERVE = "import sys; from fieldmark.serve import serve; serve(sys.argv[1], port=0)"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the model of three colours is served."""
    for package in ("python_multipart", "prometheus_client"):
        if not find_spec(package):
            pytest.skip("the extra serve is not installed")
    server = Server(tmp_path_factory.mktemp("page") / "model")
    yield f"http://127.0.0.1:{server.port}/"
    assert server.stop() == 0


@pytest.fixture(scope="module")
def chromium() -> Iterator[Callable[[str], Any]]:
    """Open Chromium without a window, in a language."""
    if not find_spec("selenium"):
        pytest.skip("no package selenium")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no Chromium with its driver")
    from selenium import webdriver

    open_ones: dict[str, Any] = {}

    def begin(language: str) -> Any:
        if language not in open_ones:
            options = webdriver.ChromeOptions()
            options.binary_location = shutil.which("chromium") or ""
            for word in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--lang={language}"):
                options.add_argument(word)
            options.add_argument("--disable-dev-shm-usage")
            options.add_experimental_option("prefs", {"intl.accept_languages": language})
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            service = webdriver.ChromeService(shutil.which("chromedriver"))
            open_ones[language] = webdriver.Chrome(options=options, service=service)
        return open_ones[language]

    yield begin
    for each in open_ones.values():
        each.quit()


class Page:
    """The page as it is open."""

    def __init__(
        self, driver: Any, address: str, *, width: int = 768, scheme: str = "light"
    ) -> None:
        self.driver = driver
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        driver.get_log("browser")
        driver.get(address)

    def all(self, selector: str) -> list[Any]:
        """Return the elements of a selector."""
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        """Return the only element of a selector."""
        (found,) = self.all(selector)
        return found

    def until(self, script: str) -> Any:
        """Wait until something holds on the page."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60).until(lambda d: d.execute_script(f"return {script}"))

    def choose(self, *photos: Path, into: str = "#choose") -> None:
        """Choose files, and wait until all of them are answered."""
        before = len(self.all(".result"))
        self.one(into).send_keys("\n".join(map(str, photos)))
        self.settled(before + len(photos))

    def settled(self, count: int) -> None:
        """Wait until there are so many answers."""
        self.until(f"document.querySelectorAll('.result[aria-busy=false]').length === {count}")

    def answers(self) -> list[str]:
        """Return the headlines."""
        return [each.text for each in self.all(".result .answer")]

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def quiet(self) -> None:
        """Assert that the browser has found no fault."""
        assert self.driver.get_log("browser") == []


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A red photo, a grey one, and none."""
    found = [tmp_path / name for name in ("red <b>.jpg", "grey.png", "no photo.jpg")]
    for path, content in zip(
        found, (photo(RED, size=(400, 300)), photo(GREY, "PNG"), b"no photo"), strict=True
    ):
        path.write_bytes(content)
    return found


def test_photos_are_chosen_and_answered(chromium: Any, address: str, photos: list[Path]) -> None:
    page = Page(chromium("en"), address)
    assert page.driver.title.startswith("What is in the photo?")
    page.until("!document.getElementById('known').hidden")
    assert page.one("#known-title").text.endswith("3 classes")
    page.choose(*photos)
    red, grey, none = page.answers()
    assert red.startswith("red, 8")
    assert grey == "None of these"
    assert "in no format that is read" in none
    assert "not sure enough" in page.all(".result")[1].text
    said = page.one("#said").get_attribute("textContent")
    assert "red <b>.jpg: red" in said
    assert "grey.png: None of these" in said
    assert [each.text for each in page.all(".result:first-child bdi")][:2] == ["red <b>.jpg", red]
    assert {"grün <b>&amp;", "蓝"} <= {each.text for each in page.all(".tops bdi")}
    full, narrow = (
        page.driver.execute_script("return arguments[0].getBoundingClientRect().width", each)
        for each in page.all(".result:first-child .fill")[:2]
    )
    assert full > 5 * narrow
    assert not page.all(".row[aria-pressed]")  # this model has no maps, and none are offered
    page.choose(photos[0])  # the same once more
    assert len(page.answers()) == 4
    page.one("#clear").click()
    assert page.answers() == []
    assert page.driver.switch_to.active_element.get_attribute("id") == "choose"
    assert page.driver.execute_script("return localStorage.length + document.cookie.length") == 0
    page.quiet()


def test_photos_are_pasted_and_dropped(chromium: Any, address: str) -> None:
    page = Page(chromium("en"), address)
    for kind, colour in (
        ("paste", GREEN),
        ("drop", RED),
    ):
        encoded = base64.b64encode(photo(colour, "PNG")).decode()
        page.driver.execute_script(
            """
            const bytes = Uint8Array.from(atob(arguments[0]), sign => sign.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], "image.png", {type: "image/png"}));
            const event = arguments[1] === "paste"
              ? new ClipboardEvent("paste", {clipboardData: carried, bubbles: true})
              : new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true});
            document.body.dispatchEvent(event);
            """,
            encoded,
            kind,
        )
        page.settled(1 if kind == "paste" else 2)
    assert page.answers()[0].startswith("red")
    assert page.answers()[1].startswith("grün <b>&amp;")
    page.quiet()


def test_a_folder_among_dropped_photos_fails_alone(
    chromium: Any, address: str, photos: list[Path], tmp_path: Path
) -> None:
    page = Page(chromium("en"), address)
    folder = tmp_path / "folder"
    folder.mkdir()
    carried = {"items": [], "files": [str(folder), str(photos[0])], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 200, "y": 200, "data": carried}
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)
    page.settled(2)
    assert "cannot be read" in page.answers()[0]
    assert page.answers()[1].startswith("red")


def test_the_keyboard_is_enough(chromium: Any, address: str, photos: list[Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Page(chromium("en"), address)
    page.until("!document.getElementById('known').hidden")
    page.press(Keys.TAB)
    assert page.driver.switch_to.active_element.get_attribute("class") == "skip"
    reached = []
    for _ in range(3):
        page.press(Keys.TAB)
        reached.append(page.driver.switch_to.active_element.get_attribute("id"))
    assert reached[:2] == ["language", "choose"]
    page.choose(photos[0])
    page.one("#language").send_keys(Keys.ENTER)
    assert page.one("html").get_attribute("lang") == "zh-CN"
    page.one("#language").send_keys(Keys.SPACE)
    assert page.one("html").get_attribute("lang") == "en"
    page.one("#clear").send_keys(Keys.ENTER)
    assert page.answers() == []


def test_chinese_is_spoken_where_the_browser_does(
    chromium: Any, address: str, photos: list[Path]
) -> None:
    page = Page(chromium("zh-CN"), address)
    assert page.one("html").get_attribute("lang") == "zh-CN"
    page.choose(photos[1])
    assert page.answers() == ["都不是"]
    page.one("#language").click()
    assert page.answers() == ["None of these"]
    words = page.driver.execute_script(
        "return Object.values(WORDS).map(each => Object.keys(each).sort().join())"
    )
    assert words[0] == words[1]
    page.quiet()


def test_errors_are_in_the_language_of_the_page(
    chromium: Any, address: str, photos: list[Path], tmp_path: Path
) -> None:
    page = Page(chromium("zh-CN"), address)
    empty, cut = tmp_path / "empty.jpg", tmp_path / "cut.jpg"
    empty.write_bytes(b"")
    cut.write_bytes(photos[0].read_bytes()[:300])
    for path, words in (
        (photos[2], "这不是照片，或者是无法读取的格式。"),
        (empty, "照片是空的。"),
        (cut, "照片已损坏或不完整。"),
    ):
        page.choose(path)
        assert page.answers()[0] == words
    page.one("#language").click()
    assert "is cut off" in page.answers()[0]
    assert "in no format that is read" in page.answers()[2]
    errors = page.driver.execute_script("return WORDS.zh.errors")
    source = Path(service.__file__).parent
    refusals = "".join((source / f"{name}.py").read_text() for name in ("service", "uploads"))
    own = {*re.findall(r'"(\w+)"\s*\)', "".join(re.findall(r"Refusal\(.*?\)\n", refusals, re.S)))}
    assert {"no_such_class", "too_large"} <= own
    said = {
        str(status)
        for answer in (endpoints.LIMITED, endpoints.errors(404, 405, 431, 501))
        for status in answer
    }
    assert own | said | {*CODES} <= {*errors}
    assert not [each for each in errors.values() if re.search("[A-Za-z]", each)]


def test_a_browser_finds_no_fault(chromium: Any, address: str, photos: list[Path]) -> None:
    package = find_spec("axe_core_python")
    if package is None:
        pytest.skip("no package axe_core_python")
    axe = Path(str(package.origin)).with_name("axe.min.js").read_text(encoding="utf-8")
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            page = Page(chromium("en"), address, width=width, scheme=scheme)
            page.until("!document.getElementById('known').hidden")
            page.choose(*photos)
            page.driver.execute_script("document.getElementById('known').open = true")
            page.driver.execute_script("document.getElementById('key-form').hidden = false")
            wide = page.driver.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, (width, scheme)
            page.quiet()
            if (width, scheme) not in ((360, "light"), (1400, "dark")):
                continue  # axe takes seconds; what it looks for is in one of these
            page.driver.execute_script(axe)
            found = page.driver.execute_async_script(
                "axe.run(document, {resultTypes: ['violations']}).then(arguments[0])"
            )
            worst = [(each["id"], each["nodes"][0]["html"][:200]) for each in found["violations"]]
            assert worst == [], (width, scheme)


def test_a_key_is_asked_for_and_kept_in_memory(
    chromium: Any, tmp_path: Path, photos: list[Path]
) -> None:
    server = Server(tmp_path / "model", environment={"FIELDMARK_API_KEY": "sesame"})
    try:
        page = Page(chromium("en"), f"http://127.0.0.1:{server.port}/")
        page.until("!document.getElementById('key-form').hidden")
        page.choose(photos[0])
        assert "key is missing" in page.answers()[0]
        assert not page.one("#key-wrong").is_displayed()
        for wrong in ("Sesame", "芝麻"):  # a header cannot hold the second
            page.one("#key").send_keys(f"{wrong}\n")
            page.until("!document.getElementById('key-wrong').hidden")
            assert page.one("#key").is_displayed()
            page.driver.execute_script("document.getElementById('key-wrong').hidden = true")
        page.one("#key").send_keys("sesame\n")
        page.until("document.querySelector('.answer').textContent.startsWith('red')")
        assert not page.one("#key-form").is_displayed()
    finally:
        assert server.stop() == 0


def test_a_server_that_is_gone_is_said_and_tried_again(
    chromium: Any, tmp_path: Path, photos: list[Path]
) -> None:
    server = Server(tmp_path / "model")
    page = Page(chromium("en"), f"http://127.0.0.1:{server.port}/")
    page.until("!document.getElementById('known').hidden")
    server.stop(signal.SIGKILL)
    page.choose(photos[0])
    assert "does not answer" in page.answers()[0]
    again = Server(tmp_path / "model", port=server.port)
    try:
        page.one(".actions button").click()
        page.until("document.querySelector('.answer').textContent.startsWith('red')")
    finally:
        assert again.stop() == 0


def test_another_model_names_its_classes(chromium: Any, tmp_path: Path, photos: list[Path]) -> None:
    server = Server(tmp_path / "model")
    try:
        page = Page(chromium("en"), f"http://127.0.0.1:{server.port}/")
        page.choose(photos[0])
        (server.folder / "weights").write_text("renamed")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("swapped")
        page.choose(photos[0])
        assert page.answers()[0].startswith("rot")
        page.until("document.querySelector('#names li').textContent === 'rot'")
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_a_run_shows_where_it_looks(
    chromium: Any, trained: Run, birds: Path, tmp_path: Path
) -> None:
    if not find_spec("python_multipart"):
        pytest.skip("the extra serve is not installed")
    from selenium.webdriver.common.keys import Keys

    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(trained.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        page = Page(chromium("en"), line.split()[2])
        page.until("!document.getElementById('known').hidden")
        chosen = min(birds.rglob("*.jpg"))
        page.choose(chosen)
        rows = page.all("button.row")
        assert [each.get_attribute("aria-pressed") for each in rows] == ["false"] * 4
        rows[2].send_keys(Keys.ENTER)
        page.until("document.querySelector('img').src.startsWith('data:image/png')")
        pressed = page.one("button.row[aria-pressed=true]")
        assert pressed == page.driver.switch_to.active_element  # the keyboard has not lost it
        name = pressed.find_element("css selector", "bdi").text
        assert name in page.one("img").get_attribute("alt")
        size = page.driver.execute_script("return document.querySelector('img').naturalWidth")
        assert size == trained.read_specification().size
        page.one(".actions button").click()
        page.until("document.querySelector('img').src.startsWith('blob:')")
        page.all("button.row")[0].click()
        page.until("document.querySelector('img').src.startsWith('data:image/png')")
        english = page.one("figcaption").text
        page.one("#language").click()
        chinese = page.one("figcaption").text
        place, share = re.findall(r"strongest in the (.+) of the photo; (\d+)%", english)[0]
        assert f"{PLACES[place]}，照片的 {share} %" in chinese
        page.quiet()
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()
