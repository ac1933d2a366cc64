"""Models are light to import: they need nothing that reads data or checkpoints."""

import subprocess
import sys

import pytest

HEAVY = ("grain", "tensorflow_datasets", "tensorflow", "cv2", "orbax")


@pytest.mark.parametrize(
    "statements",
    [
        "import vit_jax.models as m; m.build('Ti/16', num_classes=2); m.token_features",
        "import vit_jax.training as t; t.set_up, t.make_update, t.STRATEGIES",
        "import runpy, sys; sys.argv = ['cost', 'Nano/8']; "
        "runpy.run_module('vit_jax.cost', run_name='__main__')",
    ],
    ids=["models", "training", "cost"],
)
def test_no_heavy_library_is_imported(statements):
    code = f"{statements}\nimport sys; print([x for x in {HEAVY} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
