"""How the gallery runs the examples: small, each as if alone, with the figures that it wrote."""

import shutil
from pathlib import Path

import jax
from sphinx_gallery.scrapers import figure_rst

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "_build" / "examples"


class _Arguments:
    """`--quick`: full size takes minutes."""

    def __call__(self, gallery_conf, script_vars):
        return ["--quick", "--out", str(OUT)]

    def __repr__(self):
        return "quick"


arguments = _Arguments()


def fresh_start(gallery_conf, name):
    """Each example decides about float64 by itself; small as they are, compiling takes longest."""
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


def figures(block, block_vars, gallery_conf):
    """The figure at full size, which is kept with the examples; the one just drawn is a check."""
    name = Path(block_vars["src_file"]).stem
    drawn = OUT / f"{name}.png"
    if block_vars.get("shown") or not drawn.exists():
        return ""
    path = Path(next(block_vars["image_path_iterator"]))
    shutil.copy(ROOT / "examples" / "figures" / f"{name}.png", path)
    return figure_rst([path], gallery_conf["src_dir"])
