"""From a data set to batches of uint8 images.

A data set is opened by its name; a split of it is a source of encoded examples; the pipeline makes
batches of a source. `open_inputs` does all of it for a training run.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    # images in memory
    from vit_jax.data.arrays import ArrayDataset, ArraySource

    # the layout of a batch
    from vit_jax.data.batch import Batch, empty_batch, layout

    # checks before a run
    from vit_jax.data.checks import check_folder, require_decodable, require_trainable

    # what every data set is made of
    from vit_jax.data.dataset import (
        Dataset,
        Example,
        ExampleError,
        ReadError,
        Source,
        is_multi_label,
    )

    # what tells data from others
    from vit_jax.data.fingerprint import Fingerprint, find_differences

    # a folder of images
    from vit_jax.data.folders import FolderDataset, FolderSource

    # images in Parquet and Arrow files
    from vit_jax.data.parquet import ParquetDataset, ParquetSource

    # sizes and copies of images
    from vit_jax.data.inspection import find_copies, inspect_images

    # all that a run reads, in one call
    from vit_jax.data.inputs import Inputs, evaluation_batches, open_inputs

    # from a source to batches
    from vit_jax.data.pipeline import (
        ON_ERROR,
        Shard,
        batch_ids,
        eval_batches,
        seek,
        train_batches,
    )

    # the images that are skipped
    from vit_jax.data.skipped import SkippedImages

    # weights of classes in the loss, and how training images are drawn
    from vit_jax.data.class_balance import SAMPLING, class_weights

    # random operations on a training image
    from vit_jax.data.augmentation import augment, colour_jitter, random_erasing, three_augment
    from vit_jax.data.randaugment import rand_augment

    # data sets are opened by their names
    from vit_jax.data.sources import TfdsDataset, open_dataset, open_source

    # any data set as files of small JPEGs
    from vit_jax.data.packed_records import PackOptions
    from vit_jax.data.packing import pack

    # splits, in the syntax of tfds
    from vit_jax.data.splits import default_splits, hold_out, parse_split, split_size

    # how images are resized, and the crops of evaluation
    from vit_jax.data.resizing import EVAL_CROPS, EVAL_RESIZES, central_crop, resize

    # operations on one image
    from vit_jax.data.transforms import (
        TRAIN_CROPS,
        View,
        decode,
        evaluation_view,
        inception_window,
        random_flip,
        resize_and_random_crop,
        torchvision_window,
        view_of,
    )
