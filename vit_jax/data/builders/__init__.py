"""tfds data sets: opened and prepared without TensorFlow, and those of this package."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # tfds data sets, opened, prepared first if need be, or converted from TFRecord files
    from vit_jax.data.builders.prepare import DataError, convert, open_builder

    # a data set of this package
    from vit_jax.data.builders.rendered_flowers import RenderedFlowers

    # data sets of tfds, prepared without TensorFlow
    from vit_jax.data.builders.cifar import Cifar10, Cifar100
    from vit_jax.data.builders.oxford_flowers102 import OxfordFlowers102
    from vit_jax.data.builders.oxford_iiit_pet import OxfordIiitPet
    from vit_jax.data.builders.tf_flowers import TfFlowers

    # the 19 tasks of VTAB-1k
    from vit_jax.data.builders.vtab import TASKS, Task
