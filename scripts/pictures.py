"""The README's pictures, from the quickstart as anybody runs it: a terminal recording and a chart.

    pip install -c constraints.txt -e '.[docs,report]'
    python scripts/pictures.py --out docs/pictures

The commands run in a terminal of 80 x 24 characters, and what they write is kept with its time. The
recording is one SVG: its frames stand below each other, and one CSS animation moves them past a window.
Code hosts show it without scripts, and a viewer without animations shows the last frame.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import tempfile
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COLUMNS, ROWS = 80, 24
SPEED = 15  # times as fast as it was
PAUSE = 3.0  # seconds for which the last frame of a command stays
STEP = 0.5  # shown seconds between two frames
WIDTH, HEIGHT = 8.4, 18  # of a character, in pixels
COMMANDS = (
    "llm-train prepare -c configs/quickstart.yaml",
    "llm-train fit -c configs/quickstart.yaml",
    "llm-train generate runs/quickstart --prompt 'def ' --tokens 120",
)


class Frame(NamedTuple):
    """What the terminal shows, and for how many seconds."""

    lines: list[str]
    seconds: float


def record(command: str, folder: Path) -> list[tuple[float, bytes]]:
    """Runs a command in a terminal and returns what it wrote, each with the seconds since its start."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    start, written = time.monotonic(), []
    ends = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, shell=True, cwd=folder, **ends) as process:
        os.close(theirs)
        while True:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    written.append((time.monotonic() - start, os.read(ours, 65536)))
                except OSError:  # the last process that held the terminal has ended
                    break
            elif process.poll() is not None:
                break
    os.close(ours)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return written


def frames(command: str, written: list[tuple[float, bytes]]) -> list[Frame]:
    """What a terminal shows after each stretch of SPEED x STEP seconds, equal frames joined."""
    import pyte

    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ {command}\r\n".encode())
    result = [Frame([line.rstrip() for line in screen.display], 2 * STEP)]
    due = SPEED * STEP
    for (_, data), (following, _) in zip(written, [*written[1:], (float("inf"), b"")], strict=True):
        stream.feed(data)
        if following < due:
            continue
        lines = [line.rstrip() for line in screen.display]
        passed = 1 if following == float("inf") else (following - due) // (SPEED * STEP) + 1
        due += passed * SPEED * STEP
        shown = passed * STEP
        if lines == result[-1].lines:
            shown += result.pop().seconds
        result.append(Frame(lines, shown))
    return [*result[:-1], Frame(result[-1].lines, PAUSE)]


def terminal(film: list[Frame]) -> str:
    """The frames as one SVG."""
    width, height = COLUMNS * WIDTH + 32, ROWS * HEIGHT + 28
    total = sum(frame.seconds for frame in film)
    stops, passed = [], 0.0
    for number, frame in enumerate(film):
        stops.append(f"{passed / total:.3%}{{transform:translateY({-number * height}px)}}")
        passed += frame.seconds
    last = -(len(film) - 1) * height
    texts = []
    for number, frame in enumerate(film):
        for row, line in enumerate(frame.lines):
            y, kind = number * height + 26 + row * HEIGHT, "c" if line.startswith("$ ") else "o"
            if line:
                texts.append(f'<text x="16" y="{y}" class="{kind}">{html.escape(line)}</text>')
    style = (
        f"text{{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"fill:#d8dee9;white-space:pre}}.c{{fill:#8fd18f}}"
        f"@keyframes f{{{''.join(stops)}}}"
        f"#f{{animation:f {total:.1f}s step-end infinite}}"
        f"@media(prefers-reduced-motion:reduce){{#f{{animation:none}}}}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}"'
        f' height="{height}" role="img"><title>The quickstart, {SPEED} times as fast</title>'
        f"<style>{style}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#1e222a"/>'
        f'<g id="f" transform="translate(0 {last})" xml:space="preserve">{"".join(texts)}</g></svg>\n'
    )


def chart(run: Path) -> str:
    """Bits per byte of a run, while it trained, and what gzip and xz need for the held-out text."""
    import altair as alt

    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    references = json.loads((run / "derived.json").read_text("utf-8"))["data"]
    held_out = [record for record in records if "val/bits_per_byte" in record]
    per_nat = held_out[-1]["val/bits_per_byte"] / held_out[-1]["val/loss"]  # the same all along
    curve = [
        {"step": r["step"], "bits": r["train/loss"] * per_nat} for r in records if "train/loss" in r
    ]
    points = [{"step": r["step"], "bits": r["val/bits_per_byte"]} for r in held_out]
    rules = [
        {"bits": references[f"{name}_9_bits_per_byte"], "name": f"{name} -9"}
        for name in ("gzip", "xz")
    ]
    x = alt.X("step:Q", title="optimizer step")
    y = alt.Y("bits:Q", title="bits per byte", scale=alt.Scale(domain=[1.25, 4]))
    blue = "#3b82c4"
    line = alt.Chart(alt.Data(values=curve)).mark_line(color=blue, opacity=0.6, clip=True).encode(x, y)
    dots = alt.Chart(alt.Data(values=points)).mark_point(filled=True, size=90, color=blue)
    labels = dots.mark_text(dy=-16, align="right", color=blue, fontSize=15)
    marks = alt.Chart(alt.Data(values=rules)).mark_rule(strokeDash=[5, 4], color="#c94f4f")
    names = marks.mark_text(align="left", dx=4, dy=-7, x=0, color="#c94f4f", fontSize=12)
    layers = alt.layer(
        line,
        marks.encode(y="bits:Q"),
        names.encode(y="bits:Q", text="name:N"),
        dots.encode(x, y),
        labels.encode(x, y, text=alt.Text("bits:Q", format=".2f")),
    )
    title = "The quickstart: training text (line) and held-out text (dots), in bits per byte"
    drawn = layers.properties(width=760, height=300, title=title, background="white", padding=12)
    path = run / "chart.svg"
    drawn.save(path)
    return path.read_text("utf-8")


def main() -> None:
    """Runs the quickstart in an empty folder and writes its pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        shutil.copytree(ROOT / "configs", place / "configs")
        film = [frame for command in COMMANDS for frame in frames(command, record(command, place))]
        run = place / "runs/quickstart"
        subprocess.run(["llm-train", "report", str(run)], cwd=place, check=True)
        (out / "terminal.svg").write_text(terminal(film), "utf-8")
        (out / "quickstart.svg").write_text(chart(run), "utf-8")
        shutil.copy(run / "report.png", out / "report.png")


if __name__ == "__main__":
    main()
