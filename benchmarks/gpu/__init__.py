"""What one NVIDIA GPU shows: numerics, speed, kernels, the whole loop, memory.

    python -m benchmarks.gpu --out=runs/gpu            # on a machine with a GPU, at most 7 minutes
    python -m benchmarks.gpu --out=/tmp/gpu --smoke    # on any machine: tries the code itself

Each part is a module here and a process of its own. One that fails or takes too long leaves the
others. Parts, in the order in which they run:

    device     the chip, versions, and the peaks that it reaches
    numerics   each implementation of the encoder beside float32
    speed      images/s beside timm, and the longest kernels of a training step
    options    training steps with one setting changed, in turns; only if named in --parts
    loop       `vit_jax.main` on a folder of JPEGs beside the bare step, and the loader alone
    memory     the largest batch by remat, and what a batch that is far too large ends in
"""
