"""Thousands of steps take no more memory, files or disk than hundreds."""

import json
import subprocess
import sys

import numpy as np
from conftest import REPOSITORY, environment

PROGRAM = """
import json, os, sys
from ml_collections import ConfigDict
from vit_jax import config
from vit_jax.cli.environment import keep_freed_memory
from vit_jax.jobs.progress import Progress
from vit_jax.jobs.train import train

keep_freed_memory()
settings = config.default()
settings.update(ConfigDict({settings!r}))
seen = []

def advance(progress, metrics):
    advance.steps += 1
    if advance.steps % 100 == 0:
        pages = int(open("/proc/self/statm").read().split()[1])
        seen.append((pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd")),
                     len(os.listdir("/proc/self/task"))))

advance.steps = 0
Progress.advance = advance
train(settings, {workdir!r})
print(json.dumps(seen))
"""


def test_memory_and_handles_of_5000_steps_are_flat(settings, tmp_path):
    settings.model.update(width=8, mlp_dim=8)
    settings.update(batch_size=4, eval_batch_size=8, total_steps=5000, log_every=50, eval_every=500)
    settings.checkpoint.every = 500
    program = PROGRAM.format(settings=settings.to_dict(), workdir=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    memory, files, threads = np.array(json.loads(done.stdout.splitlines()[-1])).T
    assert len(memory) == 50
    later = memory[15:] / 2**20  # MiB, once everything has happened: rows, evaluations, checkpoints
    slope = np.polyfit(np.arange(len(later)), later, 1)[0] * len(later)
    assert slope < 16, f"{slope:.1f} MiB more in 3,500 steps"
    between = files.reshape(10, 5).min(axis=1)  # of 500 steps: in some, a checkpoint is written
    assert between[3:].max() - between[3:].min() <= 2
    assert threads[15:].max() - threads[15:].min() <= 8
    written = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert written["metrics.csv"] < 30_000
    assert sum(size for name, size in written.items() if "tfevents" in name) < 100_000
    assert len(done.stderr) < 50_000
