"""Fills in quoted code, draws the pictures of the documents and runs the notebook: `make docs`.

The pictures come from `checkpoints/quickstart` and from drawn flowers.
"""

import pathlib
import subprocess
import sys

from PIL import Image

import vit_jax
from vit_jax.data.builders import rendered_flowers
from vit_jax.interpret.report import write_report

DOCS = pathlib.Path(__file__).parent


def draw_flowers(folder: pathlib.Path) -> list[str]:
    """Draws a flower of each kind into FOLDER/KIND.png, 128 x 128 pixels; returns the paths."""
    folder.mkdir(exist_ok=True)
    paths = []
    for kind, image in rendered_flowers.examples().items():
        path = folder / f"{kind}.png"
        Image.fromarray(image).save(path)
        paths.append(str(path))
    return paths


def main() -> None:
    """Fills docs/*.md, draws docs/flowers and docs/report, runs docs/flowers.ipynb in place."""
    subprocess.run([sys.executable, str(DOCS / "quote.py")], check=True)
    flowers = draw_flowers(DOCS / "flowers")
    checkpoint = vit_jax.load(DOCS.parent / "checkpoints" / "quickstart")
    write_report(checkpoint, flowers, DOCS / "report")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "nbconvert",
            "--to=notebook",
            "--execute",
            "--inplace",
            "--ExecutePreprocessor.record_timing=False",
            str(DOCS / "flowers.ipynb"),
        ],
        check=True,
    )


if __name__ == "__main__":
    main()
