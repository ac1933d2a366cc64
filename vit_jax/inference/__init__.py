"""A trained model at work: the classifier, and files for other programs."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # classes and features of images, and how images are read
    from vit_jax.inference.classifier import (
        Classifier,
        Prediction,
        Unreadable,
        prepare,
        read_image,
        view_image,
    )

    # features as files
    from vit_jax.inference.feature_files import write_features

    # from images in memory and their labels to a classifier
    from vit_jax.inference.fitting import Fitted, fit

    # files that run without this package
    from vit_jax.inference.exporter import FORMATS, PLATFORMS, export
    from vit_jax.inference.program import program
