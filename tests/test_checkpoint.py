import io
import os
import tracemalloc

import pytest
import torch

from helper.system.files import HashedFile, file_hash, hash_of, hash_of_file, write_atomic
from helper.system.locks import exclusive
from optim.checkpoint import DamagedFile, content_hash, load_latest, load_state, previous, save_state
from optim.model import load_stored

STATE = {"epoch": 3, "sums": None, "network": {"w": torch.arange(2000.0)}, "optimizer": {"state": {0: {"m": torch.ones(3)}}}}


def test_states_come_back_as_they_were(tmp_path):
    save_state(tmp_path / "c.pt", STATE)
    loaded = load_state(tmp_path / "c.pt")
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["network"]["w"], STATE["network"]["w"])
    assert torch.load(tmp_path / "c.pt", weights_only=True)["epoch"] == 3  # an ordinary PyTorch file


@pytest.mark.parametrize("keep_previous", [True, False])
def test_a_state_is_written_without_a_copy_of_it_and_hashed_on_the_way(keep_previous, tmp_path):
    path, state, whole = tmp_path / "state.pt", {"weight": torch.randn(2**20), "epoch": 3}, io.BytesIO()
    path.write_bytes(b"former")
    torch.save(state, whole)
    tracemalloc.start()
    try:
        found = save_state(path, state, keep_previous=keep_previous)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.read_bytes() == whole.getvalue()
    assert found == file_hash(whole.getvalue()) == hash_of_file(path)
    assert most < len(whole.getvalue()) / 8
    assert previous(path).exists() == keep_previous


def test_every_flipped_bit_of_the_weights_and_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "c.pt"
    save_state(path, STATE)
    content = path.read_bytes()
    start = content.index(STATE["network"]["w"].numpy().tobytes())
    for position in range(start, start + 8000, 97):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(DamagedFile, match="checksums"):
            load_state(path)
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFile, match=r"c\.pt is damaged"):
            load_state(path)


def test_code_in_a_state_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"network": Evil()}, tmp_path / "c.pt")
    with pytest.raises(DamagedFile):
        load_state(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_checkpoint_falls_back_to_the_previous_one_and_says_so(tmp_path, caplog):
    path = tmp_path / "checkpoint.pt"
    assert load_latest(path) is None
    for epoch in (1, 2):
        save_state(path, STATE | {"epoch": epoch}, keep_previous=True)
    assert load_latest(path)["epoch"] == 2
    path.write_bytes(path.read_bytes()[:500])
    assert load_latest(path)["epoch"] == 1
    assert "falling back to the previous checkpoint" in caplog.text
    path.unlink()  # killed between the two renames
    assert load_latest(path)["epoch"] == 1
    previous(path).write_bytes(b"")
    assert load_latest(path) is None


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    save_state(path, STATE)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_state(path, STATE | {"epoch": 4}, keep_previous=True)
    assert load_latest(path)["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@pytest.mark.parametrize("room", [0, 1, 100, 1500])
def test_a_disk_that_is_full_in_the_middle_of_a_state_is_told_of_as_such(room, tmp_path, monkeypatch):
    """What torch.save says of it is another thing."""
    path = tmp_path / "c.pt"
    save_state(path, STATE)
    monkeypatch.setattr(HashedFile, "write", limited(HashedFile.write, room))
    with pytest.raises(OSError, match="No space"):
        save_state(path, STATE | {"epoch": 4}, keep_previous=True)
    assert load_latest(path)["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def limited(write, room: int):
    """`write` to a disk with room for so many bytes."""
    left = [room]

    class Full:
        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device")

    def call(self: HashedFile, content: bytes) -> int:
        left[0] -= len(content)
        if left[0] < 0:
            self.file = Full()
        return write(self, content)

    return call


def test_atomic_writes_replace_the_whole_content(tmp_path):
    write_atomic(tmp_path / "sub/file", "a much longer text")
    write_atomic(tmp_path / "sub/file", b"short")
    assert (tmp_path / "sub/file").read_bytes() == b"short"


def test_content_hash_follows_values_names_and_types_but_not_layout():
    w = torch.randn(2, 3, 4, 4)
    reference = content_hash({"w": w})
    assert content_hash({"w": w.to(memory_format=torch.channels_last)}) == reference
    assert content_hash({"w": w.clone()}, {}) == reference
    assert content_hash({"v": w}) != reference
    assert content_hash({"w": w.double()}) != reference
    assert content_hash({"w": w + 1e-6}) != reference
    assert content_hash({"w": torch.randn(16, 4, 1, 1).to(memory_format=torch.channels_last)})


def test_a_folder_admits_one_holder_at_a_time(tmp_path):
    with exclusive(tmp_path), pytest.raises(RuntimeError, match="in use by another process"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


@pytest.mark.parametrize("load", [load_state, lambda path: load_stored(path).weights["a"]])
def test_a_state_is_read_without_its_file_in_memory_beside_it(load, tmp_path):
    save_state(tmp_path / "state.pt", {"a": torch.zeros(1 << 21)})
    tracemalloc.start()
    try:
        load(tmp_path / "state.pt")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (4 << 21) / 2  # what Python holds: tensors are not in it


def test_the_hash_of_an_open_file_is_that_of_all_of_it(tmp_path):
    found = save_state(tmp_path / "state.pt", STATE)
    with open(tmp_path / "state.pt", "rb") as file:
        file.read(5)
        assert hash_of(file) == found == file_hash((tmp_path / "state.pt").read_bytes())
