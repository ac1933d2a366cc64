"""The largest batch by remat, and what a batch that is far too large ends in."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from benchmarks.gpu import result


def main(argv: Sequence[str] | None = None) -> None:
    """Measures."""
    args = result.parser(__doc__).parse_args(argv)
    found = result.Result(args.out, "memory")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vit_jax.main", f"--workdir={folder}/run"]
        command += [f"--config=configs/finetune.py:{'Ti/16' if args.smoke else 'L/16'}"]
        side = 32 if args.smoke else 4096  # pixels: 65,536 tokens, which fit nowhere in float32
        command += [f"--config.data.name={photos(folder)}", f"--config.data.image_size={side}"]
        command += ["--config.batch_size=8", "--config.accumulate_steps=1"]
        command += ["--config.total_steps=1", "--config.optim.warmup_steps=0"]
        command += [f"--config.model.depth={1 if args.smoke else 2}"]  # compiles sooner
        ended = subprocess.run(command, capture_output=True, text=True, timeout=args.seconds)
        row = {"exit status": ended.returncode}
        row["traceback"] = "Traceback" in ended.stderr
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        found.add(f"8 images of {side} pixels", {**row, "ends with": lines[-1][:600]})
        file = pathlib.Path(folder, "memory.json")
        model, batch = ("Ti/16", 96) if args.smoke else ("B/16", 256)
        command = [sys.executable, "-m", "benchmarks.memory", model, f"--batch={batch}", "--scan"]
        command += ["--dtype=bfloat16", f"--json={file}"]
        command += ["--image_size=32", "--memory_gib=0.2", "--policies=none"] if args.smoke else []
        subprocess.run(command, check=True)
        for row in json.loads(file.read_text())["rows"]:
            found.add("Largest batch", row)


def photos(folder: str) -> str:
    """Returns a folder of two classes with a small image each, repeated for both splits."""
    import numpy as np
    from PIL import Image

    for split in ("train", "test"):
        for name in ("a", "b"):
            path = pathlib.Path(folder, "photos", split, name)
            path.mkdir(parents=True)
            for i in range(4):
                noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
                Image.fromarray(noise).save(path / f"{i}.png")
    return str(pathlib.Path(folder, "photos"))


if __name__ == "__main__":
    main()
