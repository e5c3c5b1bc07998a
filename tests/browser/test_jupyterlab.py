"""Notebooks in a real browser: JupyterLab in headless Chromium runs all cells, moves a slider, and takes screenshots.

`make browser` installs Playwright into build/browser and runs this. Without Playwright or Chromium everything is
skipped. The screenshots in build/screenshots are for people to look at.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from finemoe.artifact.pipeline.notebooks import known_notebooks, notebook_named
from finemoe.paths import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="make browser installs Playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.timeout(900),
]

# What the pipeline made; FINEMOE_RESULTS names another folder, such as results/smoke.
RESULTS = Path(os.environ.get("FINEMOE_RESULTS", ROOT / "results"))
SHOTS = ROOT / "build" / "screenshots"
LONGEST_S = 600
BAR = ".progress-bar"
# Fewer tokens than a reader gets, so that every notebook takes a minute or two.
SMALLER = {
    "quickstart": {"max_new_tokens: int = 32": "max_new_tokens: int = 12"},
    "compare_systems": {"[0.0625, 0.125, 0.25, 0.5, 0.75]": "[0.125, 0.25, 0.5]"},
    "advise": {"tokens: int = 2000": "tokens: int = 200", "history_tokens: int = 6000": "history_tokens: int = 200"},
    "explore": {},
    "disagreement": {},
    "claims": {"results/claims/": f"{RESULTS}/claims/"},
}
SWITCHES = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
SETTINGS = {
    # Cells outside the window exist, too.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def copied_notebooks(folder: Path) -> Path:
    """JupyterLab saves what it runs: into copies, with fewer tokens."""
    for name, path in known_notebooks().items():
        text = path.read_text(encoding="utf-8")
        for before, after in SMALLER.get(name, {}).items():
            assert before in text, f"{name}: {before}"
            text = text.replace(before, after)
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text, encoding="utf-8")
    return folder


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> str:
    """Address of a JupyterLab of this interpreter over copies of the notebooks."""
    home, port = tmp_path_factory.mktemp("lab"), free_port()
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "IPYTHONDIR": "ipython",
    }
    environment = os.environ | {name: str(home / folder) for name, folder in folders.items()}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    for name in ("FINEMOE_HEADLESS", "MPLBACKEND"):  # neither is set where a person opens a notebook
        environment.pop(name, None)
    options = [f"--ServerApp.port={port}", "--ServerApp.token=", "--ServerApp.password=", "--ServerApp.allow_root=True"]
    options += ["--ServerApp.disable_check_xsrf=True"]
    options += [f"--ServerApp.root_dir={copied_notebooks(home / 'root')}", "--no-browser", "--ServerApp.port_retries=0"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        await_answer(address, server, home / "log")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


def await_answer(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)  # with a new profile
        yield chromium.new_context(viewport={"width": 1360, "height": 1000})
        chromium.close()


@pytest.fixture
def opened(lab, browser):
    """Opens a notebook by name, and shuts its kernel down at the end."""
    pages = []

    def open_notebook(name: str):
        page = browser.new_page()
        pages.append(page)
        page.goto(f"{lab}/lab/tree/{notebook_named(name).relative_to(ROOT)}?reset", timeout=120_000)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.wait_for_selector("text=/\\| Idle/", timeout=120_000)  # the status bar's word for a connected kernel
        return page

    yield open_notebook
    for page in pages:
        page.close()
    sessions = json.load(urllib.request.urlopen(f"{lab}/api/sessions", timeout=60))
    for session in sessions:
        ended = urllib.request.Request(f"{lab}/api/sessions/{session['id']}", method="DELETE")
        urllib.request.urlopen(ended, timeout=60)


def run_all(page) -> None:
    """Clicks until cells are running: a click may come before the kernel listens."""
    for _ in range(6):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        for _ in range(20):
            if any(text.strip("[]: ") for text in prompts(page)):
                return
            time.sleep(0.5)
    raise AssertionError("no cell runs")


def prompts(page) -> list[str]:
    return page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_inner_texts()


def await_end(page, name: str) -> None:
    """Until every cell has a number; a failed one fails the test. Takes a picture of the first bar that moves."""
    begin_s, was_seen_busy = time.monotonic(), False
    while any(not text.strip("[]: ").isdigit() for text in prompts(page)):
        errors = page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'], .jp-RenderedText pre.ansi-red"
        )
        failed = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']")
        assert failed.count() == 0, failed.first.inner_text()
        assert time.monotonic() - begin_s < LONGEST_S, (prompts(page), errors.all_inner_texts())
        if not was_seen_busy and is_moving(page):
            was_seen_busy = True
            page.screenshot(path=SHOTS / f"{name}-progress.png")
        time.sleep(0.3)


def is_moving(page) -> bool:
    """Whether a progress bar is neither empty nor full."""
    shares = page.evaluate(f"[...document.querySelectorAll('{BAR}')].map(bar => bar.clientWidth / bar.parentElement.clientWidth)")
    return any(0.1 < share < 0.95 for share in shares)


def whole_page(page, path: Path) -> None:
    """A screenshot of the whole notebook, whose height the window gets for a moment."""
    panels = "[...document.querySelectorAll('.jp-NotebookPanel *')].map(part => part.scrollHeight)"
    height = page.evaluate(f"Math.max(...{panels})")
    page.set_viewport_size({"width": 1360, "height": min(int(height) + 160, 12_000)})
    page.evaluate("document.querySelectorAll('.jp-NotebookPanel *').forEach(part => { part.scrollTop = 0 })")
    time.sleep(1)
    page.screenshot(path=path)
    page.set_viewport_size({"width": 1360, "height": 1000})


@pytest.fixture(autouse=True, scope="module")
def _shots():
    SHOTS.mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("name", ["quickstart", "compare_systems", "advise", "disagreement"])
def test_run_all_shows_its_figures(opened, name):
    page = opened(name)
    run_all(page)
    await_end(page, name)
    whole_page(page, SHOTS / f"{name}.png")
    pictures = page.locator(".jp-OutputArea img")
    assert pictures.count() >= 1
    for number in range(pictures.count()):
        assert pictures.nth(number).evaluate("picture => picture.naturalWidth") > 200


def test_a_long_cell_shows_its_progress(opened):
    page = opened("quickstart")
    run_all(page)
    await_end(page, "quickstart")
    lines = [text for text in page.locator(".jp-OutputArea .widget-html").all_inner_texts() if "token" in text]
    assert len(lines) == page.locator(f".jp-OutputArea {BAR}").count() == 3  # resident, offloaded, on demand


def test_claims(opened):
    if not (RESULTS / "claims" / "headline.json").is_file():
        pytest.skip("needs results of `make reproduce` or `make smoke`")
    page = opened("claims")
    run_all(page)
    await_end(page, "claims")
    whole_page(page, SHOTS / "claims.png")
    assert page.locator(".jp-OutputArea table").count() >= 1


def test_a_slider_moves_the_picture(opened):
    """The old picture is pale and a bar moves until the new values are there; the old ones stay as hollow marks."""
    page = opened("explore")
    run_all(page)
    await_end(page, "explore")
    whole_page(page, SHOTS / "explore.png")
    picture, panel = page.locator(".finemoe-panel img"), page.locator(".finemoe-panel")
    page.wait_for_selector(".finemoe-panel >> text=up to date", timeout=60_000)
    before = picture.get_attribute("src")
    handle = page.locator(".finemoe-panel .noUi-handle").nth(1)  # the link
    handle.focus()
    handle.press("PageDown")
    page.wait_for_selector(".finemoe-panel .finemoe-busy", timeout=30_000)
    panel.screenshot(path=SHOTS / "explore-busy.png")
    page.wait_for_selector(".finemoe-panel >> text=up to date", timeout=120_000)
    page.wait_for_selector(".finemoe-panel .finemoe-busy", state="detached", timeout=30_000)
    assert picture.get_attribute("src") != before
    panel.screenshot(path=SHOTS / "explore-moved.png")


def test_another_trace_and_other_systems(opened):
    page = opened("explore")
    run_all(page)
    await_end(page, "explore")
    page.wait_for_selector(".finemoe-panel >> text=up to date", timeout=60_000)
    panel, lists = page.locator(".finemoe-panel"), page.locator(".finemoe-panel select")
    lists.nth(1).select_option(["on-demand (LRU)", "MoE-Infinity", "FineMoE", "Belady (on demand)", "oracle"])
    page.wait_for_selector(".finemoe-panel .finemoe-busy", state="attached", timeout=30_000)
    page.wait_for_selector(".finemoe-panel >> text=up to date", timeout=120_000)
    panel.screenshot(path=SHOTS / "explore-systems.png")
    lists.nth(0).select_option("data/traces/qwen-mini-40x32.trace")
    page.wait_for_selector(".finemoe-panel .finemoe-busy", state="attached", timeout=30_000)
    page.wait_for_selector(".finemoe-panel >> text=up to date", timeout=120_000)
    panel.screenshot(path=SHOTS / "explore-trace.png")
