"""The README's pictures, from the quickstart as anybody runs it: a terminal recording and a chart.

    pip install -c constraints.txt -e '.[docs,report]'
    python scripts/pictures.py

The commands run in a terminal of 80 x 24 characters, and what they write is kept with its time.
The recording is one SVG: its frames stand below each other, and one CSS animation moves them past
a window. Code hosts show it without scripts; without animations, it shows the last frame.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import pty
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
COMMANDS = (
    "llm-train prepare -c configs/quickstart.yaml",
    "llm-train fit -c configs/quickstart.yaml",
    "llm-train generate runs/quickstart --prompt 'def ' --tokens 120",
)
COLUMNS, ROWS, LINE = 80, 24, 18  # of the terminal; pixels of a line
WIDTH, HEIGHT = 704, ROWS * LINE + 28
# Of the recording; frames as long as work goes on.
STEP_SECONDS, FRAMES, LAST_SECONDS = 0.4, 40, 3.0
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">
<title>The quickstart in a terminal, {speed} times as fast as it was</title>
<style>
text {{font: 14px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; white-space: pre}}
.o {{fill: #d8dee9}} .c {{fill: #8fd18f}}
#film {{animation: film {seconds:.1f}s step-end infinite}}
@keyframes film {{{stops}}}
@media (prefers-reduced-motion: reduce) {{#film {{animation: none}}}}
</style>
<rect width="100%" height="100%" rx="8" fill="#1e222a"/>
<g id="film" transform="translate(0 {last})" xml:space="preserve">
{texts}
</g>
</svg>
"""


class Frame(NamedTuple):
    """What the terminal shows, and for how many seconds of the recording."""

    lines: list[str]
    seconds: float


def record(command: str, folder: Path) -> list[tuple[float, bytes]]:
    """What a command writes to a terminal, each part with the seconds since the start."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    start, written = time.monotonic(), [(0.0, f"$ {command}\r\n".encode())]
    with subprocess.Popen(
        command, shell=True, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        while True:
            try:
                written.append((time.monotonic() - start, os.read(ours, 65536)))
            except OSError:  # nobody holds the terminal any more
                break
    os.close(ours)
    if process.returncode:
        print(b"".join(data for _, data in written).decode(errors="replace"))
        raise SystemExit(f"{command} ended with {process.returncode}")
    return written


def frames(written: list[tuple[float, bytes]], speed: float) -> list[Frame]:
    """What the terminal shows while a command runs, one frame for each STEP_SECONDS at most."""
    import pyte

    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    film: list[Frame] = []
    for number, (second, data) in enumerate(written):
        stream.feed(data)
        last = number + 1 == len(written)
        shown = (LAST_SECONDS + second / speed) if last else written[number + 1][0] / speed
        shown -= sum(frame.seconds for frame in film)
        if last or shown >= STEP_SECONDS:
            film.append(Frame([line.rstrip() for line in screen.display], shown))
    return film


def terminal(film: list[Frame], speed: float) -> str:
    """The frames as one SVG."""
    seconds, passed = sum(frame.seconds for frame in film), 0.0
    stops, texts = [], []
    for number, frame in enumerate(film):
        stops.append(f"{passed / seconds:.3%} {{transform: translateY({-number * HEIGHT}px)}}")
        passed += frame.seconds
        for row, line in enumerate(frame.lines):
            y, kind = number * HEIGHT + 26 + row * LINE, "c" if line.startswith("$ ") else "o"
            if line:
                texts.append(f'<text x="16" y="{y}" class="{kind}">{html.escape(line)}</text>')
    return SVG.format(
        width=WIDTH,
        height=HEIGHT,
        speed=round(speed),
        seconds=seconds,
        stops=" ".join(stops),
        last=-(len(film) - 1) * HEIGHT,
        texts="\n".join(texts),
    )


def chart(run: Path, out: Path) -> None:
    """Draws bits per byte while a run trained, and what gzip and xz need for the held-out text."""
    import altair as alt

    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    data = json.loads((run / "derived.json").read_text("utf-8"))["data"]
    dots = [
        {"step": r["step"], "bits": r["val/bits_per_byte"], "loss": r["val/loss"]}
        for r in records
        if "val/bits_per_byte" in r
    ]
    per_nat = dots[-1]["bits"] / dots[-1]["loss"]  # of the held-out text
    curve = [
        {"step": r["step"], "bits": per_nat * r["train/loss"]} for r in records if "train/loss" in r
    ]
    rules = [
        {"bits": data[f"{name}_9_bits_per_byte"], "name": f"{name} -9"} for name in ("gzip", "xz")
    ]
    x = alt.X("step:Q", title="optimizer step")
    y = alt.Y("bits:Q", title="bits per byte", scale=alt.Scale(domain=[1.25, 4]))
    blue, red = "#3b82c4", "#c94f4f"
    line = alt.Chart(alt.Data(values=curve)).mark_line(color=blue, opacity=0.6, clip=True)
    point = alt.Chart(alt.Data(values=dots)).mark_point(filled=True, size=90, color=blue, opacity=1)
    value = point.mark_text(dy=-16, align="right", color=blue, fontSize=15)
    rule = alt.Chart(alt.Data(values=rules)).mark_rule(strokeDash=[5, 4], color=red)
    name = rule.mark_text(align="left", dx=4, dy=-7, x=0, color=red, fontSize=12)
    layers = alt.layer(
        line.encode(x, y),
        rule.encode(y=y),
        name.encode(y=y, text="name:N"),
        point.encode(x, y),
        value.encode(x, y, text=alt.Text("bits:Q", format=".2f")),
    )
    title = (
        "Training text (line) and held-out text (dots), and what compressors need for the latter"
    )
    sized = layers.properties(width=620, height=260, title=title, background="white", padding=12)
    sized.configure_title(fontWeight="normal", anchor="start").save(out)


def main() -> None:
    """Runs the quickstart in an empty folder and writes its pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "runs/quickstart")
        shutil.copytree(ROOT / "configs", Path(folder, "configs"))
        written = [record(command, Path(folder)) for command in COMMANDS]
        speed = sum(one[-1][0] for one in written) / (STEP_SECONDS * FRAMES)
        film = [frame for one in written for frame in frames(one, speed)]
        (out / "terminal.svg").write_text(terminal(film, speed), "utf-8")
        chart(run, out / "quickstart.svg")


if __name__ == "__main__":
    main()
