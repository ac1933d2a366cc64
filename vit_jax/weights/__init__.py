"""Weights of other code bases and of our runs: found, loaded, adapted and saved."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # weights of any format
    from vit_jax.weights.api import (
        adapt,
        load,
        load_for_new_head,
        load_params,
        save,
        save_params,
    )

    # where published weights are
    from vit_jax.weights.catalogue import Published, find, published

    # the table of formats
    from vit_jax.weights.formats import FORMATS, Format

    # one format
    from vit_jax.weights.hugging_face import read_hugging_face
    from vit_jax.weights.hugging_face_writing import write_hugging_face

    # how a format's arrays correspond to our parameters
    from vit_jax.weights.layout import Layout, Packing, Rule

    # one format
    from vit_jax.weights.npz import read_npz, write_npz

    # weights in words
    from vit_jax.weights.summary import describe

    # an opened file, and the arrays of one to be written
    from vit_jax.weights.tensor_file import TensorFile, file_arrays

    # one format
    from vit_jax.weights.timm import read_timm, write_timm
