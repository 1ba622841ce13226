"""In the report of small runs, the numbers on the page are those in the file."""

import html.parser
import json
import math
import random
import re
import struct
from pathlib import Path

import pytest

from llm_train.errors import ConfigError, LLMTrainError
from llm_train.report import RecordedRun, read_runs, write_report

pytest.importorskip("altair")

from llm_train.report.chart import charts, png
from llm_train.report.page import page


def run_directory(root: Path, steps: int = 200, bad: tuple[int, ...] = ()) -> Path:
    """Writes a run of ``steps`` steps at a tenth of a second, resumed at half, with validation."""
    draw = random.Random(0)
    lines: list[dict[str, object]] = [{"event": "start", "step": 0, "time": at(0.0)}]

    def log(step: int, seconds: float) -> None:
        loss = "nan" if step in bad else 2.0 + math.exp(-step / 50) + draw.gauss(0, 0.01)
        lines.append(
            {
                "step": step,
                "time": at(seconds),
                "train/loss": loss,
                "optimizer/lr": 1e-3 * min(1, step / 20),
                "grad/norm": "inf" if step in bad else 0.5 + draw.random(),
                "throughput/tokens_per_s": 20480.0,
                "throughput/mfu": 0.41,
                "memory/peak_gib": 1.25,
                "progress/tokens": step * 2048,
            }
        )

    for step in range(1, steps // 2 + 11):  # the resume undoes ten steps
        log(step, step / 10)
    lines.append({"event": "resume", "step": steps // 2, "time": at(500.0), "path": "<x> & y"})
    for step in range(steps // 2 + 1, steps + 1):
        log(step, 500 + (step - steps // 2) / 10)
    for step, loss in ((steps // 2, 2.25), (steps - 1, 2.0625), (steps, 2.125)):
        record = {"step": step, "val/loss": loss, "val/bits_per_byte": loss / 2}
        lines.append({**record, "time": at(500 + steps / 20)})
    return written(root / "my run", lines)


def at(seconds: float) -> str:
    return f"2026-01-02T03:{int(seconds // 60):02d}:{seconds % 60:06.3f}+00:00"


def written(directory: Path, lines: list[dict[str, object]]) -> Path:
    directory.mkdir(parents=True)
    text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text)
    return directory


def size(picture: bytes) -> tuple[int, int]:
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", picture[16:24])


class Reader(html.parser.HTMLParser):
    """Checks that tags nest, and collects the text of table cells and all attributes."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.specifications: list[dict] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script" and data.startswith("{"):
            self.drawn = json.loads(data)
            self.specifications = self.drawn["specifications"]
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def report(run: Path) -> tuple[Path, Path]:
    return write_report(read_runs([run]), run)


def read(text: str) -> tuple[dict[str, str], Reader]:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return dict(zip(reader.cells[::2], reader.cells[1::2], strict=True)), reader


def test_the_page_says_what_the_files_say(tmp_path):
    run = run_directory(tmp_path)
    derived = {
        "batch": {"tokens per step": "16 x 128 = 2,048", "accumulation": 2},
        "data": {"gzip -9 bits per byte": 1.92, "xz -9 bits per byte": "1.61", "tokens": 3912345},
        "<script>alert(1)</script>": {"a & b": '"<img src=http://x>"'},
    }
    (run / "derived.json").write_text(json.dumps(derived))
    times = {
        "event": "begin",
        "step": 0,
        "time": at(0),
        "steps": 0,
        "seconds": {"start_up/data": 3},
    }
    end = {**times, "event": "end", "step": 9, "time": at(4), "steps": 9, "seconds": {"steps": 4}}
    (run / "ledger.jsonl").write_text(json.dumps(times) + "\n" + json.dumps(end) + "\n")
    with open(run / "metrics.jsonl", "a") as metrics:
        for event in ("skipped", "skipped", "rollback"):
            metrics.write(json.dumps({"event": event, "step": 200, "time": at(510)}) + "\n")
    (run / "config.yaml").write_text("seed: 1337  # <b>not bold</b>\n")
    html, picture = report(run)
    assert (html, picture) == (run / "report.html", run / "report.png")
    width, height = size(picture.read_bytes())
    assert 1080 <= width <= 3000
    assert 800 <= height <= 2500
    text = html.read_text("utf-8")
    cells, reader = read(text)
    assert cells["validation loss, last"] == "2.1250 nats per token at step 200"
    assert cells["validation loss, best"] == "2.0625 nats per token at step 199"
    assert cells["bits per byte, best"] == "1.0312 at step 199"
    assert cells["for comparison: gzip -9 bits per byte"] == "1.9200"
    assert cells["for comparison: xz -9 bits per byte"] == "1.61"
    assert cells["tokens"] == "3,912,345"  # the derived table, which comes later
    assert cells["throughput, median"] == "20.5k tokens/s"
    assert cells["model FLOPs utilisation, median"] == "41.0%"
    assert cells["peak memory"] == "1.25 GiB"
    assert cells["running time"] == "0:00:21"  # 110 steps and 100 steps; the pause does not count
    assert cells["resumes"] == "1"
    assert cells["steps left out"] == "2"
    assert cells["rollbacks"] == "1"
    assert cells["start up: data"] == "3.0 s (42.86%)"
    assert cells["effective training time ratio"] == "57.1%"
    assert cells["tokens per step"] == "16 x 128 = 2,048"
    assert cells["a & b"] == '"<img src=http://x>"'
    assert "resume at step 100: path <x> & y" in cells.values()
    assert "&lt;b&gt;not bold&lt;/b&gt;" in text
    assert "<script>alert" not in text
    assert len(reader.specifications) == 8  # seven of curves, one of time


def test_nothing_is_fetched(tmp_path):
    _, reader = read(page(read_runs([run_directory(tmp_path)])))
    assert [value for name, value in reader.attributes if name in ("src", "href")] == []
    [policy] = [value for name, value in reader.attributes if name == "content" and "src" in value]
    assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
    assert '"url"' not in json.dumps(reader.specifications)


def test_the_page_draws_what_the_file_says(tmp_path):
    runs = read_runs([run_directory(tmp_path, bad=(150, 151))])
    [run] = runs.values()
    loss = read(page(runs))[1].specifications[0]
    assert loss["width"] == "container"  # as wide as the reader's screen
    rows, crosses, dashes = sorted(loss["datasets"].values(), key=len, reverse=True)
    values = {(row["curve"], row["steps"]): row["value"] for row in rows}
    assert values["validation", 199] == 2.0625
    assert values["training", 150] is None
    training = {step: v for (curve, step), v in values.items() if curve == "training" and v}
    assert training == dict(run.finite("train/loss"))
    assert [cross["tokens"] / 2048 for cross in crosses] == [150, 151]
    assert [dash["tokens"] / 2048 for dash in dashes] == [100]


def test_a_long_curve_keeps_its_peaks_and_its_mean(tmp_path):
    lines = [{"step": step, "grad/norm": 1.0 + step % 2} for step in range(1, 2001)]
    lines[776]["grad/norm"] = 100.0
    [chart] = charts(read_runs([written(tmp_path / "a", lines)]))
    [rows] = [rows for rows in chart.to_dict()["datasets"].values() if rows]
    assert len(rows) == 200
    assert max(row["high"] for row in rows) == 100.0
    assert {row["value"] for row in rows if row["high"] < 100} == {1.5}


def test_a_section_without_values_is_left_out(tmp_path):
    run = written(tmp_path / "a", [{"step": 1, "something/else": 1.0}])
    (run / "derived.json").write_text('{"time": {}}')
    text = page(read_runs([run]))
    assert re.findall(r"<h[23]>(.*?)</h", text) == []


def test_losses_that_are_not_finite(tmp_path):
    cells = RecordedRun.read(run_directory(tmp_path, bad=(150, 151, 200))).summary()
    assert cells["losses that are not finite"] == "3, the first at step 150"
    assert cells["training loss, last"].endswith("at step 199")


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": 10, "train/loss": 5.5, "progress/tokens": 40960, "time": at(1)}],
        [{"step": 0, "val/loss": 5.5}],
        [{"step": 0, "train/loss": 5.5, "progress/tokens": 0}],
        [{"step": 3, "train/loss": "nan", "grad/norm": "nan", "optimizer/lr": 0.0}],
        [{"step": 3, "something/else": 1}, {"event": "samples", "step": 3, "samples": [5, {}]}],
        [{"step": step, "train/loss": "inf", "grad/norm": 10.0**step} for step in range(100)],
    ],
    ids=["one", "step 0", "no tokens yet", "only nan", "no known metric", "all infinite"],
)
def test_little_to_draw(tmp_path, lines):
    runs = read_runs([written(tmp_path / "a $run$ <1>", lines)])
    read(page(runs))
    assert min(size(png(runs))) > 300


def test_what_a_resume_undid_is_not_shown(tmp_path):
    run = run_directory(tmp_path)
    found = RecordedRun.read(run)
    assert [point.step for point in found.points("train/loss")] == list(range(1, 201))
    places = found.places([100, 100.5, 200])
    assert places["tokens"] == [100 * 2048, 100.5 * 2048, 200 * 2048]
    assert places["hours"][-1] * 3600 == pytest.approx(20.9, abs=0.2)


def test_errors_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(LLMTrainError, match=r"^\S+ has no metrics\.jsonl; give the directory of"):
        report(tmp_path)
    only_events = written(tmp_path / "a", [{"event": "start", "step": 0}])
    with pytest.raises(LLMTrainError, match=r"^\S+ holds no metrics yet"):
        report(only_events)
    run = written(tmp_path / "b", [{"step": 1, "train/loss": 1.0}])
    (run / "derived.json").write_text("{")
    with pytest.raises(LLMTrainError, match=r"^\S+derived\.json is not a table of a run: "):
        report(run)
    (run / "derived.json").unlink()
    (tmp_path / "file").touch()
    with pytest.raises(
        LLMTrainError, match=r"cannot hold a report: .*; name another folder with --out"
    ):
        write_report(read_runs([run]), tmp_path / "file")
    (run / "config.yaml").write_text("a: [1\nb")
    with pytest.raises(LLMTrainError, match=r"^\S+config\.yaml cannot be read: [^\n]+; restore it"):
        read_runs([run, only_metrics := written(tmp_path / "c", [{"step": 1}])])
    assert read_runs([only_metrics])
    monkeypatch.setitem(__import__("sys").modules, "altair", None)
    with pytest.raises(ConfigError, match=r"pip install llm-train\[report\]"):
        report(run)
