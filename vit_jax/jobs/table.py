"""The jobs, by the value of config.job: (config, workdir) -> summary."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from vit_jax.jobs.compare import compare
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.fewshot import few_shot
from vit_jax.jobs.sweep import sweep
from vit_jax.jobs.train import train

JOBS: Mapping[str, Callable[[ConfigDict, str | os.PathLike], dict[str, Any]]] = {
    "train": train,
    "evaluate": evaluate,
    "fewshot": few_shot,
    "sweep": sweep,
    "compare": compare,
}
