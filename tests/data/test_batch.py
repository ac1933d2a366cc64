import subprocess
import sys

import numpy as np

from vit_jax.data.batch import empty_batch, layout


def test_the_layout_names_every_array_of_a_batch():
    assert layout(5, (16, 40)) == {
        "image": ((5, 16, 40, 3), np.uint8),
        "label": ((5,), np.int32),
        "mask": ((5,), bool),
    }


def test_an_empty_batch_has_the_layout_and_no_example():
    batch = empty_batch(3, (4, 6))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == layout(3, (4, 6))
    assert not any(x.any() for x in batch.values())


def test_the_layout_is_known_without_anything_that_reads_data():
    heavy = ("grain", "tensorflow_datasets", "cv2", "jax", "PIL")
    program = (
        "import sys; from vit_jax.data import layout; layout(1, (2, 2)); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert done.stdout == b"[]\n"
