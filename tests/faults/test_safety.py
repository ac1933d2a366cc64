"""Files from elsewhere run no code, fill no memory and leave no trace; foreign files stay."""

import ast
import functools
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg
from conftest import REPOSITORY, random_checkpoint
from flax.traverse_util import flatten_dict
from small_archives import serve, url_infos
from tensorflow_datasets.datasets.tf_flowers import tf_flowers_dataset_builder as stock

from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.convert import main
from vit_jax.data.builders import prepare
from vit_jax.data.builders.tf_flowers import TfFlowers
from vit_jax.jobs.train import train
from vit_jax.weights import catalogue, download
from vit_jax.weights.api import load, load_params, save

MEBIBYTE = 2**20


class Runs:
    """Makes a folder when it is unpickled, as it could do anything else."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def marker(tmp_path):
    """A folder that is there after any unpickling of `Runs`."""
    folder = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(folder)))
    folder.rmdir()  # raises where it was not made
    return folder


@pytest.fixture(scope="module")
def arrays():
    """A small ViT's arrays by their names in a published file."""
    params = random_checkpoint("Nano/8").params
    return {name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()}


def refused(source, *words, error=ValueError):
    """Asserts that weights are refused in a paragraph with the file's name and these words."""
    with pytest.raises(error) as caught:
        load_params(source)
    message = str(caught.value)
    missing = [word for word in (str(source), *words) if word not in message]
    assert not missing, message
    assert "\n" not in message and len(message) < 2000


def peak(function):
    """Returns how many bytes Python's and NumPy's allocators gave at most."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------- nothing is unpickled


def test_the_package_has_no_words_that_unpickle():
    """PyTorch's loader is restricted to tensors, and NumPy's is never called with pickles.

    The processes that read images for a run get what they read from the run, pickled, by a socket
    that no other program has.
    """
    calls = []
    for path in (REPOSITORY / "vit_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
                found = names & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
                assert not found or path.name == "processes.py", path  # of a run, no file's bytes
            if isinstance(node, ast.Call):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("allow_pickle", "False") == "False", path
                if ast.unparse(node.func) in ("torch.load", "np.load", "yaml.load"):
                    calls.append((ast.unparse(node.func), keywords.get("weights_only")))
    assert set(calls) == {("torch.load", "True")}


@pytest.mark.parametrize("kind", ["objects", "objects in a structure"])
def test_objects_in_an_npz_are_named_and_not_loaded(tmp_path, arrays, marker, kind):
    evil = np.empty(3, object if kind == "objects" else [("x", "f4"), ("y", "O")])
    evil[:] = [Runs(marker) if kind == "objects" else (0, Runs(marker))] * 3
    path = tmp_path / "x.npz"
    np.savez(path, **(arrays | {"head/bias": evil}))
    refused(path, "head/bias.npy holds Python objects, which are never loaded")
    with pytest.raises(SystemExit, match="Python objects"):
        main([str(path), str(tmp_path / "y.safetensors")])
    assert not marker.exists() and not (tmp_path / "y.safetensors").exists()
    with pytest.raises(FileExistsError):  # the file is one that would have run
        np.load(path, allow_pickle=True)["head/bias"]
        np.load(path, allow_pickle=True)["head/bias"]


@pytest.mark.peers
@pytest.mark.parametrize("name", ["x.pth", "x.pt", "folder/pytorch_model.bin"])
def test_pickles_beside_good_tensors_are_not_run(tmp_path, marker, name):
    torch = pytest.importorskip("torch")
    file = tmp_path / name
    save(random_checkpoint("Nano/8"), tmp_path / "good.pth", format="timm")
    state = torch.load(tmp_path / "good.pth", weights_only=True)
    file.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": state, "optimizer": Runs(marker)}, file)
    if name.startswith("folder"):
        (file.parent / "config.json").write_text('{"architecture": "vit_base_patch16_224"}')
    refused(file, "posix.mkdir", "nothing but tensors is ever loaded")
    if name.startswith("folder"):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin can't be read .* posix\.mkdir"):
            load(file.parent)
    assert not marker.exists()


@pytest.mark.peers
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_bare_pickles_are_not_run(tmp_path, marker, protocol):
    pytest.importorskip("torch")
    for name in ("x.pth", "x.npz", "x.safetensors", "x"):
        (tmp_path / name).write_bytes(pickle.dumps({"head.bias": Runs(marker)}, protocol))
        refused(tmp_path / name, "is not a file of weights")
    assert not marker.exists()


@pytest.mark.peers
def test_what_else_pytorch_pickles_is_named_without_advice_to_run_it(tmp_path):
    torch = pytest.importorskip("torch")
    for thing, name in (
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"head.bias": np.zeros(3)}, "numpy"),
        ({"model": {}, "args": SimpleNamespace(lr=1)}, "types.SimpleNamespace"),
    ):
        torch.save(thing, tmp_path / "x.pth")
        refused(tmp_path / "x.pth", f"it holds {name}")
    torch.save(
        {"head.bias": torch.zeros(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False
    )
    refused(tmp_path / "x.pth", "it is a pickle, perhaps of PyTorch before 1.6")


# -------------------------------------------------------------------- what files say of sizes


def header(shape, descr="'<f4'", version=1):
    """The start of an .npy file with a shape as written, whatever that is."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return (
        b"\x93NUMPY" + struct.pack("<BBH" if version == 1 else "<BBI", version, 0, len(text)) + text
    )


def npz(path, members, kind=zipfile.ZIP_STORED):
    """Writes a zip file of .npy members, two of one name too."""
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in members:
            archive.writestr(f"{name}.npy", data)
    return path


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array))
    return file.getvalue()


SHAPES = {
    "beyond the memory": "(1099511627776, 1024)",
    "beyond 64 bits": f"({2**64},)",
    "nothing beyond 64 bits": f"(0, {2**70})",
    "negative": "(-3,)",
    "two negatives": "(-3, -1)",
    "too few": "(2,)",
    "a fraction": "(3.0,)",
    "a number": "3",
    "unfinished": "(3",
    "many brackets": "(" * 300,
    "no key": "{[]: 1}",
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_wrong_shapes_of_arrays_are_refused(tmp_path, arrays, shape):
    members = {name: npy(x) for name, x in arrays.items()}
    members["head/bias"] = header(shape) + bytes(12)
    path = npz(tmp_path / "x.npz", members.items())
    assert peak(lambda: refused(path)) < 50 * MEBIBYTE


def test_code_in_an_arrays_header_is_not_run(tmp_path, marker):
    code = f"__import__('os').mkdir({str(marker)!r})"
    for head in (header(code), header("(3,)", descr=code)):
        refused(npz(tmp_path / "x.npz", [("cls", head + bytes(12))]), "can't be read as an .npz")
    assert not marker.exists()


def test_headers_that_inflate_are_not_read(tmp_path):
    """200 MiB of spaces in 200 kB."""
    data = b"\x93NUMPY" + struct.pack("<BBI", 2, 0, 200 * MEBIBYTE) + b" " * (200 * MEBIBYTE)
    path = npz(tmp_path / "x.npz", [("cls", data)], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MEBIBYTE
    assert peak(lambda: refused(path, "can't be read as an .npz file")) < 20 * MEBIBYTE


def say(path, size):
    """Changes what a zip file's directory says of the size of its only entry."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", size)
    path.write_bytes(data)


def test_an_entry_that_is_larger_than_it_says_is_not_inflated(tmp_path):
    whole = header("(1, 1, 24)") + bytes(96)
    path = npz(tmp_path / "x.npz", [("cls", whole + bytes(100 * MEBIBYTE))], zipfile.ZIP_DEFLATED)
    say(path, len(whole))
    assert peak(lambda: refused(path, "Bad CRC")) < 10 * MEBIBYTE


def test_an_entry_that_says_more_than_its_file_can_hold_is_refused(tmp_path):
    """As would a head of a billion classes."""
    head = header(f"({2**30 - 2**10},)", descr="'|i1'")
    path = npz(tmp_path / "x.npz", [("head/bias", head)], zipfile.ZIP_DEFLATED)
    say(path, len(head) + 2**30 - 2**10)
    refused(path, f"head/bias can't hold {len(head) + 2**30 - 2**10} bytes")


def test_two_arrays_of_one_name_are_refused(tmp_path, arrays):
    members = [(name, npy(x)) for name, x in arrays.items()]
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = npz(tmp_path / "x.npz", [*members, ("head/bias", npy([7.0, 7, 7]))])
    refused(path, "two of its arrays are called head/bias")


@pytest.mark.parametrize("name", ["../head/bias", "/tmp/head/bias", "head/../../bias"])
def test_names_that_are_paths_elsewhere_are_just_wrong_names(tmp_path, arrays, name):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    members = {k: npy(x) for k, x in arrays.items()} | {name: npy([7.0, 7, 7])}
    refused(npz(folder / "x.npz", members.items()), f"{name} is not in the model")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["here", "in", "x.npz"]


def tensors(names, data=bytes(16), length=None):
    """The bytes of a safetensors file, whose header is JSON as written or made of a dictionary."""
    text = names.encode() if isinstance(names, str) else json.dumps(names).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


ONE = json.dumps(tensor(0, 16, (4,)))
SAFETENSORS = {
    "overlapping": tensors({"a": tensor(0, 8), "b": tensor(4, 12)}),
    "the same": tensors({"a": tensor(0, 16, (4,)), "b": tensor(0, 16, (4,))}),
    "beyond the end": tensors({"a": tensor(0, 8), "b": tensor(8, 24, (4,))}),
    "a hole": tensors({"a": tensor(0, 4, (1,)), "b": tensor(8, 16)}),
    "left over": tensors({"a": tensor(0, 8)}),
    "backwards": tensors({"a": tensor(16, 0, (4,))}),
    "another size": tensors({"a": tensor(0, 16, (3,))}),
    "a size beyond 64 bits": tensors({"a": tensor(0, 16, (2**40, 2**40))}),
    "a negative size": tensors({"a": tensor(0, 16, (-2, -2))}),
    "a header beyond the end": tensors({"a": tensor(0, 16, (4,))}, length=10**6),
    "a header beyond the memory": tensors({"a": tensor(0, 16, (4,))}, length=2**63),
    "a name twice": tensors(f'{{"a": {ONE}, "a": {ONE}}}'),
    "a name twice, spelt in two ways": tensors(f'{{"a": {ONE}, "\\u0061": {ONE}}}'),
    "brackets": tensors("[" * 100_000),
}


@pytest.mark.parametrize("data", SAFETENSORS.values(), ids=SAFETENSORS)
def test_tensors_that_are_not_side_by_side_are_refused(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    is_ours = data[8:9] == b"{"  # else nothing says that it is one of safetensors
    told = "can't be read as safetensors" if is_ours else "is not a file of weights"
    refused(tmp_path / "x.safetensors", told)


def test_the_names_of_a_safetensors_file_are_read_otherwise(tmp_path):
    """What is refused above is so for its faults."""
    (tmp_path / "x.safetensors").write_bytes(tensors({"a": tensor(0, 8), "b": tensor(8, 16)}))
    refused(tmp_path / "x.safetensors", "its 2 arrays are called a, b")


@pytest.fixture
def state(tmp_path):
    """timm's state dict of a small ViT, as PyTorch reads it."""
    torch = pytest.importorskip("torch")
    save(random_checkpoint("Nano/8"), tmp_path / "good.pth", format="timm")
    return torch.load(tmp_path / "good.pth", weights_only=True)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:.*(quantize|TypedStorage)")
def test_tensors_of_every_kind_are_read_or_named(tmp_path, state):
    torch = pytest.importorskip("torch")
    bias, path = state["head.bias"], tmp_path / "x.pth"

    def save(x):
        torch.save(state | {"head.bias": x}, path)

    for x in (torch.nn.Parameter(bias), bias.double(), bias.half(), bias.bfloat16()):
        save(x)
        np.testing.assert_allclose(load_params(path)["head"]["bias"], bias, rtol=1e-2)
    for x, words in (
        (bias.to_sparse(), "sparse"),
        (bias.to("meta"), "meta"),
        (torch.quantize_per_tensor(bias, 1.0, 0, torch.quint8), "QUInt8"),
        (bias.to(torch.complex64), "complex64, not numbers"),
    ):
        save(x)
        with pytest.raises(ValueError, match=f"x.pth.*head.bias.*{words}"):
            load_params(path)


@pytest.mark.peers
def test_a_tensor_that_repeats_few_values_is_refused(tmp_path, state):
    """A head of ten million classes would take gigabytes."""
    torch = pytest.importorskip("torch")
    state["head.bias"] = torch.zeros(1).expand(10**7)
    state["head.weight"] = torch.zeros(1, 1).expand(10**7, state["head.weight"].shape[1])
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="40000000 bytes don't fit in a file of"):
        load_params(tmp_path / "x.pth")


@pytest.mark.peers
def test_a_pickle_that_inflates_is_not_read(tmp_path, state):
    torch = pytest.importorskip("torch")
    torch.save(state, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as plain:
        members = [(name, plain.read(name)) for name in plain.namelist()]
    with zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    refused(tmp_path / "y.pth", "it is compressed, which PyTorch's own files are not")


@pytest.mark.peers
def test_numbers_that_numpy_has_not_are_named(tmp_path, state):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    state["head.bias"] = state["head.bias"].to(torch.float8_e5m2)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors: the array head\.bias can't be read"):
        load_params(tmp_path / "x.safetensors")


# ------------------------------------------------------------------- archives and addresses


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


MEMBERS = {
    "above": member("flower_photos/../../daisy/1.jpg"),
    "absolute": member("/flower_photos/daisy/1.jpg"),
    "a link above": member("flower_photos/daisy/1.jpg", tarfile.SYMTYPE, "../../../secret.jpg"),
    "an absolute link": member("flower_photos/daisy/1.jpg", tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link above": member("flower_photos/daisy/1.jpg", tarfile.LNKTYPE, "../secret.jpg"),
    "a device": member("flower_photos/daisy/1.jpg", tarfile.CHRTYPE),
}


@pytest.mark.parametrize("info", MEMBERS.values(), ids=MEMBERS)
def test_archives_with_members_outside_their_folder_are_refused(tmp_path, monkeypatch, info):
    served, root = tmp_path / "served", tmp_path / "data"
    served.mkdir()
    photo = simplejpeg.encode_jpeg(np.zeros((9, 9, 3), np.uint8))
    good = tarfile.TarInfo("flower_photos/daisy/0.jpg")
    good.size = len(photo)
    with tarfile.open(served / "x.tgz", "w:gz") as archive:
        archive.addfile(good, io.BytesIO(photo))
        archive.addfile(info)
    with serve(served) as url:
        monkeypatch.setattr(TfFlowers, "url_infos", url_infos(url, served, ["x.tgz"]))
        with pytest.raises(ValueError, match=rf"The archive {root}\S+\.tgz is refused: .*1\.jpg'"):
            prepare.open_builder("tf_flowers", str(root))
    assert {path.name for path in tmp_path.iterdir()} == {"served", "data"}
    assert not list(root.rglob("*.jpg")) and not list(root.glob("tf_flowers/*"))


def test_the_real_photos_come_over_https_with_the_stock_builders_checksum(tmp_path):
    asked = []
    manager = SimpleNamespace(download=lambda urls: asked.extend(urls.values()) or urls)
    TfFlowers(data_dir=tmp_path)._split_generators(manager)
    (url,) = asked
    assert url.startswith("https://") and url.endswith("/example_images/flower_photos.tgz")
    assert TfFlowers.url_infos[url] == stock.Builder.url_infos[stock._URL]


@pytest.mark.parametrize("url", ["ftp://localhost/x.npz", "file://localhost{}", "ftp://host/x.npz"])
def test_addresses_of_this_machine_are_http_alone(tmp_path, url):
    (tmp_path / "secret.npz").write_text("mine")
    with pytest.raises(ValueError, match="over https only"):
        download.fetch(url.format(tmp_path / "secret.npz"), tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


# ------------------------------------------------------------------------- files of others


def snapshot(folder, names):
    """The contents of files, and of all files in folders, by path."""
    files = [path for name in names for path in [folder / name, *(folder / name).rglob("*")]]
    return {path: path.read_bytes() if path.is_file() else None for path in files}


FOREIGN = ("notes.txt", "notes", "12.bak", "metrics.csv.bak", "plots")


def foreign(folder):
    """Files and folders that a user might keep beside ours; returns what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FOREIGN:
        path = folder / name
        if "." not in name or name == "12.bak":
            path.mkdir()
            path = path / "deeper.txt"
        path.write_text(f"mine: {name}")
    return functools.partial(snapshot, folder, FOREIGN)


def test_foreign_files_survive_a_run_and_its_continuation(settings, tmp_path):
    seen = [foreign(tmp_path / "run"), foreign(tmp_path / "run" / "checkpoints")]
    before = [look() for look in seen]
    settings.eval_every, settings.checkpoint.keep = 0, 1
    train(settings, tmp_path / "run")
    settings.total_steps = 10
    train(settings, tmp_path / "run")
    assert [look() for look in seen] == before
    steps = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdecimal()]
    assert steps == ["10"]  # so others were deleted


@pytest.mark.parametrize(("before", "number"), [(0, 3), (5, 3), (5, 7)])
def test_a_foreign_folder_with_a_number_for_a_name_is_not_deleted(
    settings, tmp_path, before, number
):
    """Orbax would delete it as an old checkpoint, or take it for the newest."""
    settings.eval_every, settings.checkpoint.keep = 0, 1
    if before:
        settings.total_steps = before
        train(settings, tmp_path / "run")
    settings.total_steps = 10
    numbered = tmp_path / "run" / "checkpoints" / f"{number}"
    numbered.mkdir(parents=True)
    (numbered / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"{numbered} has no params, so it is no checkpoint"):
        train(settings, tmp_path / "run")
    assert (numbered / "notes.txt").read_text() == "mine"
    if before:  # readers delete nothing, and take what is ours
        assert read_checkpoint(tmp_path / "run").step == before
    numbered.rename(tmp_path / "mine")
    assert train(settings, tmp_path / "run")["step"] == 10


def test_foreign_files_survive_downloads_that_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setattr(catalogue, "CHECKPOINTS", tmp_path / "checkpoints")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    folder = tmp_path / "checkpoints" / "127.0.0.1"
    look = foreign(folder)
    for name in ("x.npz.part", ".x.npz.old.part", "y.npz"):
        (folder / name).write_text("mine")
    before = {**look(), **snapshot(folder, ["x.npz.part", ".x.npz.old.part", "y.npz"])}
    with pytest.raises(ValueError, match="can't be downloaded"):
        load_params(f"{address}/x.npz")
    assert {**look(), **snapshot(folder, ["x.npz.part", ".x.npz.old.part", "y.npz"])} == before


def test_foreign_files_survive_a_conversion_that_fails(tmp_path, arrays):
    """Nothing stands where the result would be, and what stood beside it still does."""
    look = foreign(tmp_path)
    before = look()
    np.savez(tmp_path / "x.npz", **(arrays | {"head/bias": np.full(3, np.nan, np.float32)}))
    for name, format in (("y.npz", "npz"), ("y.safetensors", "timm"), ("y", "hf")):
        with pytest.raises(ValueError, match="NaN"):
            save(load(tmp_path / "x.npz", image_size=(32, 48)), tmp_path / name, format=format)
        assert not (tmp_path / name).exists()
    assert look() == before
    assert {p.name for p in tmp_path.iterdir()} == {*FOREIGN, "x.npz"}
