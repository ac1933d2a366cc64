"""What every folder needs: files that are written completely or not at all; parts of messages."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # files and folders, on this machine or in a bucket
    from vit_jax.common.files import absolute, is_bucket, looks_like_path, replacing, write_csv

    # parts of messages
    from vit_jax.common.messages import closest, first_few
