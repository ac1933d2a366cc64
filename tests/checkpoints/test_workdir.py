"""The folder of a run: what is left of it after an error, and its lock."""

import pytest

from vit_jax.checkpoints.workdir import lock, open_workdir


def run(workdir, *files):
    """A job that fails after it has made some folders (that end with "/") and files."""
    with open_workdir(workdir) as folder, lock(folder):
        assert (workdir / ".lock").exists()
        for name in files:
            path = workdir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if name.endswith("/") else path.touch()
        raise ValueError("the data can't be read")


@pytest.mark.parametrize("files", [(), ("checkpoints/",)])
def test_a_start_that_fails_leaves_nothing(tmp_path, files):
    with pytest.raises(ValueError, match="can't be read"):
        run(tmp_path / "runs" / "photos", *files)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(ValueError, match="can't be read"):
        run(tmp_path / "runs" / "mine", "checkpoints/")
    assert list((tmp_path / "runs").rglob("*")) == [tmp_path / "runs" / "mine"]


def test_what_a_run_wrote_stays(tmp_path):
    with pytest.raises(ValueError, match="can't be read"):
        run(tmp_path / "run", "checkpoints/1/params")
    assert (tmp_path / "run" / "checkpoints" / "1" / "params").exists()
    assert (tmp_path / "run" / ".lock").exists()


def test_a_second_run_is_refused_and_removes_nothing(tmp_path):
    with open_workdir(tmp_path / "run") as folder, lock(folder):
        with (
            pytest.raises(OSError, match="is in use by process"),
            open_workdir(tmp_path / "run") as again,
            lock(again),
        ):
            pass
        assert (tmp_path / "run" / ".lock").read_text().startswith("process ")
    with open_workdir(tmp_path / "run") as folder, lock(folder):  # free again
        pass


def test_a_lock_whose_file_was_removed_is_not_taken(tmp_path, monkeypatch):
    """Else two runs could have the workdir: one by the removed file, one by a new one."""
    import fcntl

    take = fcntl.flock

    def remove_and_take(file, how):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").touch()
        take(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_and_take)
    with (
        pytest.raises(OSError, match="in use by a run that is just ending"),
        open_workdir(tmp_path) as folder,
        lock(folder),
    ):
        pass
