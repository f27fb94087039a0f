"""Draws the training curves of a run folder into one SVG: loss and accuracy on the training images, by epoch.

    python tools/plot_runs.py runs/NAME-1 -o curves.svg

One colour for each variant, one thin line for each seed, and a thick line for their mean. Needs Python alone.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path

COLOURS = ["#444444", "#d1495b", "#00798c", "#edae49", "#66a182", "#8d6a9f", "#3d5a80"]
WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 420, 260, 52, 28, 40, 60


def read(folder):
    """{variant: {seed: [(epoch, loss, accuracy)]}}, in the order of the file."""
    runs = defaultdict(lambda: defaultdict(list))
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "epoch" not in row:
            continue  # A tensor in a step that was looked at.
        epoch = row["epoch"]
        runs[row["variant"]][row["seed"]].append((epoch["epoch"], epoch["loss"], 100 * epoch["accuracy"]))
    return runs


def ticks(low, high):
    span = (high - low) or 1.0
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 5)
    first = math.ceil(low / step)
    return [i * step for i in range(first, int(math.floor(high / step + 1e-9)) + 1)]


def panel(runs, place, column, title):
    points = [p for seeds in runs.values() for curve in seeds.values() for p in curve]
    epochs = max(p[0] for p in points)
    low, high = min(p[column] for p in points), max(p[column] for p in points)
    x0 = place * (WIDTH + GAP) + LEFT
    x = lambda e: x0 + (WIDTH - LEFT) * (e - 1) / max(epochs - 1, 1)
    y = lambda v: TOP + (HEIGHT - TOP - BOTTOM) * (high - v) / ((high - low) or 1)
    out = [f'<text x="{x0}" y="16" font-weight="bold">{title}</text>']
    for v in ticks(low, high):
        out.append(f'<path d="M{x0} {y(v):.1f}H{x0 + WIDTH - LEFT}" stroke="#ddd"/>')
        out.append(f'<text x="{x0 - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.4g}</text>')
    for e in range(1, epochs + 1):
        out.append(f'<text x="{x(e):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{e}</text>')
    for colour, seeds in zip(COLOURS, runs.values()):
        path = lambda curve: "M" + "L".join(f"{x(e):.1f} {y(v):.1f}" for e, v in curve)
        curves = [[(p[0], p[column]) for p in curve] for curve in seeds.values()]
        for curve in curves:
            out.append(f'<path d="{path(curve)}" stroke="{colour}" stroke-opacity="0.35" fill="none"/>')
        mean = [(step[0][0], sum(v for _, v in step) / len(step)) for step in zip(*curves)]
        out.append(f'<path d="{path(mean)}" stroke="{colour}" stroke-width="2.2" fill="none"/>')
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("curves.svg"))
    args = parser.parse_args()
    runs = read(args.folder)
    width, height = 2 * WIDTH + GAP + 20, HEIGHT + 26
    body = panel(runs, 0, 1, "loss") + panel(runs, 1, 2, "accuracy on training images, %")
    at = LEFT
    for colour, (name, seeds) in zip(COLOURS, runs.items()):
        body.append(f'<path d="M{at} {HEIGHT + 10}h18" stroke="{colour}" stroke-width="2.2"/>')
        body.append(f'<text x="{at + 24}" y="{HEIGHT + 14}">{name}</text>')
        at += 40 + 8 * len(name)
    text = "\n".join(body)
    args.output.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{text}\n</svg>\n'
    )
    print(f"→ {args.output}")


if __name__ == "__main__":
    main()
