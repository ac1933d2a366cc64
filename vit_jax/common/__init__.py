"""What every folder needs: files that are written whole or not at all; CPUs; parts of messages."""

from etils import epy

with epy.lazy_api_imports(globals()):
    # files and folders, on this machine or in a bucket
    from vit_jax.common.files import absolute, is_bucket, looks_like_path, replacing, write_csv

    # the CPUs of this process, and the processes that share its host
    from vit_jax.common.host import all_processes, available_cpus, own_process, processes_on_host

    # parts of messages
    from vit_jax.common.messages import closest, first_few
