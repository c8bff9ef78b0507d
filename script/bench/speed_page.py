"""The tables and the chart of docs/speed.md, from the result of script/bench/speed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

DOCS = Path(__file__).resolve().parents[2] / "docs"
BAR, WIDTH, LABELS = 22, 720, 290
"""The chart: height of a bar, width of all, and of the labels, in pixels."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def seconds(side: dict[str, float] | None) -> str:
    """Median, and the shortest and longest run."""
    if side is None:
        return ""
    return f"{short(side['median'])} ({short(side['min'])}–{short(side['max'])})"


def short(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def requests(rows: Sequence[dict[str, Any]]) -> str:
    """Ours next to plain diffusers, and on a GPU next to diffusers with torch.compile."""
    gpu = any("compiled" in row for row in rows)
    head = ["", "ours, s", "plain diffusers, s", "ratio", "largest difference of latents"]
    head += ["diffusers with torch.compile, s"] if gpu else []
    lines = []
    for row in rows:
        latents = (f"{row['latents']:.0e}" if row["latents"] else "0") if "latents" in row else ""
        line = [row["name"], seconds(row["ours"]), seconds(row["plain"]), f"**{row['ratio']:.2f}**", latents]
        line += [seconds(row.get("compiled"))] if gpu else []
        lines.append(line)
    return table(head, lines)


def markdown(result: dict[str, Any] | Sequence[dict[str, Any]]) -> str:
    """A result, or a table of some rows."""
    if not isinstance(result, dict):
        return requests(result)
    said = (
        f"`{result['bundle']}`, {result['device']}, {result['dtype']}, {result['side']}×{result['side']} pixels,"
        f" {result['steps']} steps, {result['rounds']} runs of each side: {result['clock']}, median (least to most)."
        f" torch {result['torch']}, diffusers {result['diffusers']}, {result['date']}."
    )
    return f"{said}\n\n{requests(result['rows'])}"


def chart(rows: Sequence[dict[str, Any]], title: str) -> str:
    """An SVG with a bar for each row: our time as a share of plain diffusers', which is the line at 1."""
    most = max(1.1, *(row["ratio"] for row in rows))
    unit = (WIDTH - LABELS - 50) / most
    one = LABELS + unit
    height = 40 + BAR * len(rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
        ' font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for i, row in enumerate(rows):
        top = 32 + BAR * i
        width = unit * row["ratio"]
        lines += [
            f'<text x="{LABELS - 8}" y="{top + 14}" text-anchor="end">{escape(row["name"])}</text>',
            f'<rect x="{LABELS}" y="{top}" width="{width:.1f}" height="{BAR - 4}" fill="#4a7fb5"/>',
            f'<text x="{LABELS + width + 6:.1f}" y="{top + 14}">{row["ratio"]:.2f}</text>',
        ]
    lines += [f'<path d="M{one:.1f} 28V{height - 6}" stroke="#b03030" stroke-dasharray="4 3"/>', "</svg>"]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], docs: Path = DOCS) -> None:
    """Put the tables between the page's marks for this bundle and device, and the chart next to the page.

    Raises ValueError if the page has no such marks.
    """
    key, page = result["key"], docs / "speed.md"
    text = page.read_text(encoding="utf-8")
    marks = re.compile(f"(<!-- {re.escape(key)}:begin -->\n).*?(<!-- {re.escape(key)}:end -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"docs/speed.md: expected the marks <!-- {key}:begin --> and <!-- {key}:end -->. Write them.")
    page.write_text(marks.sub(lambda found: f"{found[1]}{markdown(result)}\n{found[2]}", text), encoding="utf-8")
    title = f"{result['bundle']}, {result['device']}: time as a share of plain diffusers'"
    (docs / f"speed-{key}.svg").write_text(chart(result["rows"], title), encoding="utf-8")
