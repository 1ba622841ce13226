"""The page in a real browser without a network: what it draws, what a click changes, no errors."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_train.report import read_runs, write_report
from llm_train.report.live import server

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("altair")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def run(folder: Path, rate: float, steps: int = 12) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"model: {{optimizer: {{init_args: {{rate: {rate}}}}}}}\n")
    (folder / "derived.json").write_text('{"network": {"flops_per_token_causal": 1000}}')
    lines: list[dict[str, Any]] = [
        {"event": "samples", "step": 1, "samples": [{"prompt": "<b>", "text": "once"}]}
    ]
    for step in range(1, steps + 1):
        figures = {"train/loss": 5.0 - rate * step, "val/bits_per_byte": 2.0}
        time = f"2026-01-02T03:{step:02d}:00+00:00"
        lines.append({"step": step, "time": time, "progress/tokens": step * 64, **figures})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def opened(chromium: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    page = chromium.new_context(**options).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#charts > :last-child svg")
    return page, said


def lines(page: Any) -> int:
    found: int = page.locator("#charts > :first-child .mark-line path").count()
    return found


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_three_runs_are_compared(chromium: Any, tmp_path: Path, width: int, scheme: str) -> None:
    folders = [run(tmp_path / name, rate) for name, rate in (("a", 0.1), ("b", 0.2), ("c", 0.3))]
    html, picture = write_report(read_runs(folders), tmp_path)
    assert picture.stat().st_size > 10_000
    page, said = opened(
        chromium,
        html.as_uri(),
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        offline=True,
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".bar label").all_inner_texts()[1:] == [
        "a optimizer.rate=0.1",
        "b optimizer.rate=0.2",
        "c optimizer.rate=0.3",
    ]
    assert lines(page) == 3
    for axis in ("steps", "hours", "FLOPs", "tokens"):
        page.select_option("#across", axis)
        page.wait_for_selector(f"#charts > :last-child text:text-is('{axis}')")
    page.locator(".bar input").nth(1).uncheck()
    page.wait_for_function("document.querySelectorAll('#charts .mark-line path').length == 4")
    assert lines(page) == 2
    # The last point, at the right end of the frame, tells what it is.
    page.locator("#charts > :first-child .mark-symbol path").last.hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "optimizer.rate=0.3" in tip.inner_text()
    assert "FLOPs" in tip.inner_text()
    page.locator("summary", has_text="Samples").first.click()
    assert page.locator("pre.sample").first.inner_text() == "<b>once"
    assert said == []


def test_a_page_that_is_watched_follows_the_run(chromium: Any, tmp_path: Path) -> None:
    folder = run(tmp_path / "a", 0.1, steps=3)
    with server([folder], 0) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        page, said = opened(chromium, f"http://127.0.0.1:{found.server_port}/")
        with open(folder / "metrics.jsonl", "a") as file:
            file.write('{"step": 4, "train/loss": 1.25, "progress/tokens": 256}\n')
        page.wait_for_selector("td:text-is('1.2500 nats per token at step 4')", timeout=20_000)
        found.shutdown()
    assert said == []
