"""Draw the figures of three studies as wide as README.md can show them.

dargmin study run --all
dargmin report
python docs/figures/studies.py [--report dargmin-out] [--out docs/figures]"""

import argparse
import re
from pathlib import Path

import vl_convert as vlc

STUDIES = ("suboptimality", "pareto", "certificates")
WIDTH = 1100


def png(svg: str) -> bytes:
    """The figure, WIDTH pixels wide."""
    found = re.search(r'<svg [^>]*?width="([\d.]+)"', svg)
    if found is None:
        raise ValueError("The SVG does not say how wide it is: write it with `dargmin report`.")
    return vlc.svg_to_png(svg, scale=WIDTH / float(found[1]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", type=Path, default=Path("dargmin-out"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    for name in STUDIES:
        svg = (arguments.report / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        path = arguments.out / f"study-{name}.png"
        path.write_bytes(png(svg))
        print(f"{path}: {path.stat().st_size // 1000} kB")
