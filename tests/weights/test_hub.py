"""Models of the Hugging Face hub, by its own client, from and to a server on this machine."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import hub_server
import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from conftest import REPOSITORY, TINY
from flax.traverse_util import flatten_dict
from huggingface_hub import constants
from tiny_weights import random_params

from vit_jax.convert import main
from vit_jax.weights import catalogue, hub
from vit_jax.weights.api import load, load_params, save_params

MODEL = {key: value for key, value in TINY.items() if key != "variant"}


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = hub_server.Server()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(catalogue, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.close()


@pytest.fixture(scope="module")
def params():
    return random_params("Ti/16", (16, 16), **MODEL)


@pytest.fixture(scope="module")
def files(params, tmp_path_factory):
    """A tiny ViT's folder of transformers: bytes by file name."""
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    save_params(params, folder, variant="Ti/16", format="hf", image_size=16, **MODEL)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_loads(source, params):
    found, expected = (flatten_dict(x, sep="/") for x in (load_params(source), params))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("address", ["hf://org/tiny", "hf-hub:org/tiny", "hf://org/tiny@main"])
def test_a_model_is_found_by_both_spellings(server, files, params, address):
    server.add("org/tiny", files)
    assert_loads(address, params)


def test_only_what_is_needed_is_downloaded_and_once(server, files, params, caplog):
    caplog.set_level("INFO", "vit_jax")
    others = {"pytorch_model.bin": b"no", "flax_model.msgpack": b"no", "README.md": b"# Tiny"}
    server.add("org/tiny", {**files, **others})
    assert_loads("hf://org/tiny", params)
    needed = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert {path.rsplit("/")[-1] for verb, path in server.log if "/resolve/" in path} == needed
    assert "hf://org/tiny: downloading 0 MiB" in caplog.messages
    server.log.clear()
    caplog.clear()
    assert_loads("hf://org/tiny", params)
    assert not [path for _, path in server.log if "/resolve/" in path]
    assert "hf://org/tiny: downloading 0 MiB" not in caplog.messages


def test_a_revision_is_another_model(server, files, params):
    server.add("org/tiny", {"config.json": b"{}"})
    server.add("org/tiny", files, revision="v2")
    assert_loads("hf://org/tiny@v2", params)
    with pytest.raises(FileNotFoundError, match=r"org/tiny has no revision 'v3': give one of its"):
        load("hf://org/tiny@v3")
    with pytest.raises(ValueError, match=r"no weights that can be opened: it has config\.json\. W"):
        load("hf://org/tiny")


def test_without_network_the_cache_is_read_and_said(server, files, params, caplog):
    server.add("org/tiny", files)
    assert_loads("hf://org/tiny", params)
    caplog.clear()
    server.error = 503
    assert_loads("hf://org/tiny", params)
    assert "hf://org/tiny: the Hugging Face hub can't be reached (" in caplog.messages[0]
    with pytest.raises(ValueError, match=r"hf://org/other can't be downloaded: .*503"):
        load("hf://org/other")


def test_a_host_that_is_not_there(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:1")
    with pytest.raises(ValueError, match=r"can't be reached \(.*refused\)\. Check the network, or"):
        load("hf://org/tiny")


def test_offline_the_hub_is_not_asked(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set, so the Hugging Face hub isn't as"):
        load("hf://org/tiny")
    assert not server.log


def test_private_and_gated_models_need_the_token(server, files, params, monkeypatch):
    for name, kind in (("org/private", server.private), ("org/gated", server.gated)):
        server.add(name, files)
        kind.add(name)
    gated = r"hf://org/gated can't be downloaded: its owners ask for consent\. Open http.*org/gated"
    private = r"There is no hf://org/private, or it is private\. Check its spelling\."
    for token, said in ((None, "No token was sent: set HF_TOKEN"), ("hf_wrong", "does not allow")):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(FileNotFoundError, match=f"{private} .*{said}"):
            load("hf://org/private")
        with pytest.raises(ValueError, match=f"{gated}.*{said}"):
            load("hf://org/gated")
    monkeypatch.setenv("HF_TOKEN", server.token)
    assert_loads("hf://org/private", params)
    assert_loads("hf://org/gated", params)


@pytest.mark.parametrize(
    "name", ["hf://tiny", "hf://a/b/c", "hf-hub:", "hf://org/ti ny", "hf://@x"]
)
def test_names_of_another_form_are_refused_before_anything_is_asked(server, name):
    with pytest.raises(ValueError, match="isn't hf://ORGANISATION/NAME"):
        load(name)
    with pytest.raises(ValueError, match=r"org/-tiny is no name that the hub takes: .*'org/-tiny'"):
        load("hf://org/-tiny")
    assert not server.log


def test_a_full_disk_is_named(server, files, monkeypatch):
    server.add("org/tiny", files)

    def full(*unused, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub.HfApi, "snapshot_download", full)
    with pytest.raises(OSError, match=r"hub can't be written: No space left on device\."):
        load("hf://org/tiny")


def test_weights_in_several_files(server, files, params, tmp_path):
    """As transformers writes large models: model.safetensors.index.json says what is where."""
    arrays = safetensors.numpy.load(files["model.safetensors"])
    names = sorted(arrays)
    parts = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    split = {
        file: safetensors.numpy.save({x: arrays[x] for x in held}) for file, held in parts.items()
    }
    places = {name: file for file, held in parts.items() for name in held}
    index = {"metadata": {}, "weight_map": places}
    named = {k: v for k, v in files.items() if k != "model.safetensors"}
    named["model.safetensors.index.json"] = json.dumps(index).encode()
    server.add("org/large", {**named, **split})
    assert_loads("hf://org/large", params)

    def folder(name, index, without=()):
        path = tmp_path / name
        path.mkdir()
        for file, data in {**named, **split}.items():
            (path / file).write_bytes(data) if file not in without else None
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    first, second = parts
    with pytest.raises(ValueError, match=f"names {second}, which is not beside it: download it"):
        load(folder("missing", index, without=[second]))
    swapped = {**places, names[0]: second}
    with pytest.raises(ValueError, match=f"{second} has the array {names[0]}, but it has not"):
        load(folder("swapped", {"weight_map": swapped}))
    outside = {**places, names[0]: f"../missing/{first}"}
    with pytest.raises(ValueError, match="which is not beside it"):
        load(folder("outside", {"weight_map": outside}))
    with pytest.raises(ValueError, match=r"index\.json: weight_map must be a dict, not \[1\]"):
        load(folder("list", {"weight_map": [1]}))


def test_names_of_the_catalogue_are_models_of_the_hub(server, files, params):
    server.add("google/vit-base-patch16-224", files)
    assert_loads("google/vit-base-patch16-224", params)


def test_two_names_of_one_model_are_two_architectures(server, params, tmp_path):
    """timm has one repository for both, whose config.json names the one with the usual GELU."""
    save_params(params, tmp_path / "x.safetensors", variant="Ti/16", gelu="exact", **MODEL)
    arrays = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    config = {"architecture": "vit_base_patch16_clip_224", "pretrained_cfg": {"crop_pct": 0.9}}
    sizes = {"depth": MODEL["depth"], "patch_size": MODEL["patch_size"], "pre_norm": False}
    files = {
        "config.json": json.dumps(
            {**config, "model_args": {"embed_dim": 16, "num_heads": 2, **sizes}}
        ).encode(),
        "model.safetensors": safetensors.numpy.save(arrays),  # without our record
    }
    server.add("timm/vit_base_patch16_clip_224.openai", files)
    for name, gelu in (("", "exact"), ("quickgelu_", "quick")):
        found = load(f"timm/vit_base_patch16_clip_{name}224.openai")
        assert found.model().gelu == gelu and found.model().norm_epsilon == 1e-5
        assert "standard deviation (0.2686" in str(found.changes)


def test_an_older_download_is_said_and_not_read(server, files, params, caplog):
    server.add("org/tiny", files)
    older = catalogue.CHECKPOINTS / "huggingface.co" / "org" / "tiny" / "main"
    older.mkdir(parents=True)
    (older / "config.json").write_text("{}")
    assert_loads("hf://org/tiny", params)
    assert f"{older} holds an older download of hf://org/tiny" in caplog.messages[0]


# ---------------------------------------------------------------------------------- uploading


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_a_model_that_is_pushed_is_opened_again(server, params, format, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", server.token)
    source = tmp_path / "x.safetensors"
    save_params(
        params, source, variant="Ti/16", image_size=16, class_names=("a", "b", "c"), **MODEL
    )
    main([str(source), "--push=org/new", f"--format={format}", "--private"])
    assert_loads("hf://org/new", params)
    assert load("hf://org/new").class_names == ("a", "b", "c")
    assert server.made[0]["visibility"] == "private"
    card = server.models["org/new"]["main"]["README.md"].decode()
    assert card.startswith("---\n") and "hf://org/new" in card and str(tmp_path) not in card
    main([str(source), str(tmp_path / "kept"), "--push=org/new", f"--format={format}"])
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == set(server.models["org/new"]["main"])


def test_uploads_that_are_refused(server, params, tmp_path, monkeypatch, capsys):
    source = str(tmp_path / "x.safetensors")
    save_params(params, source, variant="Ti/16", image_size=16, **MODEL)

    def refused(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([source, *arguments])
        return f"{stop.value.code} {capsys.readouterr().err}"

    assert "hf://org/new can't be uploaded: 401. No token was sent" in refused("--push=org/new")
    monkeypatch.setenv("HF_TOKEN", server.token)
    assert "hf://else/new can't be uploaded: 403. The token" in refused("--push=else/new")
    assert "hf://new isn't hf://ORGANISATION/NAME" in refused("--push=new")
    for other in ("--format=npz", "--format=orbax"):
        assert "--push uploads a folder: --format=hf or" in refused("--push=org/new", other)
    assert "--push uploads a folder" in refused(str(tmp_path / "y.safetensors"), "--push=org/new")
    assert "--push uploads, and --dry_run writes" in refused("--push=org/new", "--dry_run")
    assert not server.models


# -------------------------------------------------------------------------------- the process


def test_the_client_is_imported_only_when_it_is_used(server, files, tmp_path):
    """And the environment says where the hub, the cache and the token are, as for the client."""
    server.add("org/tiny", files)
    server.private.add("org/tiny")
    program = (
        "import sys; from vit_jax.weights import catalogue, hub; "
        "assert 'huggingface_hub' not in sys.modules; print(catalogue.find('hf://org/tiny'))"
    )
    environment = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": tmp_path / "home",
        "HF_TOKEN": server.token,
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    folder = pathlib.Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home")
    assert {path.name for path in folder.iterdir()} == set(files)


def test_a_name_has_a_revision():
    assert hub.split_name("hf://org/tiny@refs/pr/1") == ("org/tiny", "refs/pr/1")
    assert hub.split_name("hf-hub:org/tiny/") == ("org/tiny", "main")
