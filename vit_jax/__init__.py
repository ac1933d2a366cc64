"""The Vision Transformer of "An Image is Worth 16x16 Words" in JAX and Flax.

From weights to an answer:

>>> import vit_jax
>>> classifier = vit_jax.Classifier("checkpoints/quickstart")
>>> classifier.predict(["docs/flowers/rose.png"])[0][0].label
'rose'

`VARIANTS` has the named models, and the attributes that each consists of:

>>> vit_jax.VARIANTS["B/16"]["width"]
768

Names are imported when they are first used.
"""

import importlib.util
import re
import sys

__version__ = "0.2.0.dev0"

_problem = ""
if sys.version_info < (3, 11):  # noqa: UP036
    _problem = f"vit_jax needs Python 3.11 or newer. This is {sys.version.split()[0]}."
elif None in map(importlib.util.find_spec, ("fcntl", "resource")):
    _problem = (
        "vit_jax needs Linux or macOS. On Windows, install WSL2 (`wsl --install`) and run it there."
    )
elif importlib.util.find_spec("etils") is None:
    _problem = (
        f"The packages that vit_jax needs are not installed for {sys.executable}. In the clone, "
        f"`make quickstart` installs them in .venv, and `source .venv/bin/activate` activates that."
    )
# While `python -m MODULE` imports packages, sys.argv is -m and the arguments after MODULE.
_started = getattr(sys, "orig_argv", sys.argv)[-len(sys.argv) :]
_is_command = sys.argv[:1] == ["-m"] and re.match(
    r"(-\w*m)?(vit_jax|benchmarks)(\.|$)", _started[0]
)
if _problem and _is_command:  # a command gets a message without a traceback
    sys.exit(_problem)
if _problem:
    raise ImportError(_problem, name=__name__)

from etils import epy  # noqa: E402

if _is_command:  # Ctrl-C has no traceback, while it imports the rest either
    from vit_jax.cli.interrupts import end_quietly_at_ctrl_c
    from vit_jax.cli.memory import install_memory_hooks, require_address_space
    from vit_jax.cli.streams import prepare_streams

    end_quietly_at_ctrl_c()
    prepare_streams()
    if not {"-h", "--help"} & set(sys.argv):
        require_address_space()
    install_memory_hooks()

with epy.lazy_api_imports(globals()):
    # Models: a Flax module by its name, and all names.
    from vit_jax.models.variants import VARIANTS, build

    # Weights: opened from anywhere, adapted to a task and resolution, written in any format.
    from vit_jax.weights.api import adapt, load, save

    # Answers and features.
    from vit_jax.inference.classifier import Classifier

    # Runs: a configuration, training, and the evaluation of a checkpoint.
    from vit_jax.config.defaults import default as default_config
    from vit_jax.jobs.evaluate import evaluate
    from vit_jax.jobs.train import train

    # From arrays and labels to a classifier.
    from vit_jax.inference.fitting import fit

__all__ = [
    "VARIANTS",
    "Classifier",
    "adapt",
    "build",
    "default_config",
    "evaluate",
    "fit",
    "load",
    "save",
    "train",
]
