"""The folders of the product and which of them include which, read from the #include lines.

    tools/dependencies.py            says what breaks the rule, or that docs/dependencies.svg is not up to date; exits 1
    tools/dependencies.py --write    draws docs/dependencies.svg anew

The rule is FLOORS: a folder may include the folders of the floors below it, and nothing else. So there is no cycle.
"""

import argparse
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLOORS = [  # from the ground up
    ["kernels"],
    ["engine/base"],
    ["engine/io", "engine/config", "engine/tensor"],
    ["engine/conv", "engine/comm"],
    ["engine/graph"],
    ["engine/ops"],
    ["engine/run"],
    ["engine/train"],
    ["engine/report"],
    ["models", "losses", "data"],
    ["app"],
    ["deploy"],
    ["study"],
    ["tools"],
]
OUTSIDE = {("tools", "tests")}  # engine_bench times the kernel cases of the tests
FLOOR = {folder: i for i, floor in enumerate(FLOORS) for folder in floor}


def folder_of(path):
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "engine" and len(parts) > 2 else parts[0]


def read_includes(root):
    """{(folder, included folder): [(file, line number, included file)]}, files in order."""
    edges = {}
    for top in sorted({folder.split("/")[0] for folder in FLOOR}):
        for file in sorted(root.joinpath(top).rglob("*")):
            if file.suffix not in (".h", ".cpp", ".cu"):
                continue
            name = file.relative_to(root).as_posix()
            for number, line in enumerate(file.read_text().splitlines(), 1):
                if m := re.match(r'#include "(.+/.+)"', line):
                    edge = folder_of(name), folder_of(m[1])
                    if edge[0] != edge[1]:
                        edges.setdefault(edge, []).append((name, number, m[1]))
    return edges


def faults_of(edges):
    for (above, below), places in sorted(edges.items()):
        if (above, below) in OUTSIDE:
            continue
        for file, number, included in places:
            if above not in FLOOR:
                yield f"{file}: {above} stands on no floor; give it one in tools/dependencies.py"
            elif below not in FLOOR:
                yield f"{file}:{number}: includes {included}, and {below} is no folder of the product"
            elif FLOOR[below] >= FLOOR[above]:
                yield f"{file}:{number}: {above} includes {included}, but {below} does not stand below {above}"


def reduced(edges):
    """The edges that no way through other folders implies."""
    below = {}
    for a, b in edges:
        below.setdefault(a, set()).add(b)

    def reaches(a, b):
        return any(c == b or reaches(c, b) for c in below.get(a, ()))

    return [(a, b) for a, b in sorted(edges) if not any(c != b and reaches(c, b) for c in below[a])]


STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
  .note { font-size: 12px; fill: #59636e; text-anchor: start }
  .folder { fill: #ffffff; stroke: #59636e }
  .engine { fill: #eef1f4; stroke: none }
  .arrow { fill: none; stroke: #0969da; stroke-width: 1.5 }
  .head { fill: #0969da }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .note { fill: #9198a1 } .folder { fill: #0d1117; stroke: #9198a1 }
    .engine { fill: #212830 } .arrow { stroke: #58a6ff } .head { fill: #58a6ff }
  }
"""


def drawing(edges):
    """Folders in a column, those at the bottom included by those above: neighbours by straight arrows, others by arcs."""
    used = {folder for edge in edges for folder in edge}
    column = [folder for floor in reversed(FLOORS) for folder in floor if folder in used]
    step, height, width, left, top = 52, 30, 150, 30, 44
    y = {folder: top + step * i for i, folder in enumerate(column)}  # of the upper edge
    engine = [y[folder] for folder in column if folder.startswith("engine/")]
    shapes = [f'<rect class="engine" x="{left - 15}" y="{min(engine) - 11}" width="{width + 30}" '
              f'height="{max(engine) - min(engine) + height + 22}" rx="8"/>']
    arrows, right = [], left + width
    for a, b in reduced({edge for edge in edges if edge not in OUTSIDE}):
        floors = column.index(b) - column.index(a)
        if floors == 1:
            x, end = left + width // 2, y[b] - 7
            arrows.append((f"M{x} {y[a] + height}V{end}", f"M{x - 4} {end}h8l-4 7z"))
        else:
            start, end, out = y[a] + height - 9, y[b] + 9, right + 24 + 30 * floors
            arrows.append((f"M{right} {start}C{out} {start} {out} {end} {right + 7} {end}",
                           f"M{right + 7} {end - 4}v8l-7 -4z"))
    for path, head in arrows:
        shapes += [f'<path class="arrow" d="{path}"/>', f'<path class="head" d="{head}"/>']
    for folder in column:
        shapes += [f'<rect class="folder" x="{left}" y="{y[folder]}" width="{width}" height="{height}" rx="5"/>',
                   f'<text x="{left + width // 2}" y="{y[folder] + 20}">{folder}</text>']
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 {top + step * len(column)}" role="img">',
             "<title>The folders of Regolith and which include which</title>", f"<style>{STYLE}</style>",
             f'<text class="note" x="{left - 15}" y="20">An arrow: includes. What others imply is left out.</text>']
    return "\n".join([*lines, *shapes, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="draw docs/dependencies.svg anew")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the checkout (default: this one)")
    args = parser.parse_args()
    edges = read_includes(args.root)
    faults = list(faults_of(edges))
    picture = args.root / "docs" / "dependencies.svg"
    if not faults and args.write:
        picture.parent.mkdir(exist_ok=True)
        picture.write_text(drawing(edges))
    elif not faults and (not picture.is_file() or picture.read_text() != drawing(edges)):
        faults.append("docs/dependencies.svg is not what the includes say: run tools/dependencies.py --write")
    print("\n".join(faults) or f"{len(edges)} pairs of folders, all of them downwards")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
