"""Numbers that launchers and users leave in the environment: the right one, or a line that names the variable."""

import pytest
import torch

import run as command_line
from helper.system.devices import choose_device
from helper.system.environment import whole_number
from tests.outcome import outcome


@pytest.mark.parametrize(
    ("text", "expected"), [("4", 4), (" 4 ", 4), ("007", 7), ("4,2", 4), ("4 , 2,1", 4), ("", 9), ("  ", 9), (None, 9)]
)
def test_the_first_of_several_numbers_counts_and_nothing_is_the_default(monkeypatch, text, expected):
    monkeypatch.delenv("OF_THE_TEST", raising=False)
    if text is not None:
        monkeypatch.setenv("OF_THE_TEST", text)
    assert whole_number("OF_THE_TEST", 9, several=True) == expected


@pytest.mark.parametrize("text", ["4,2", "x", "-1", "1e3", "1_000", "٤", "4.0", ",", "9" * 30])
def test_what_is_no_whole_number_is_refused_by_name(monkeypatch, text):
    monkeypatch.setenv("OF_THE_TEST", text)
    with pytest.raises(RuntimeError, match=r"the environment has OF_THE_TEST=.*: expected a whole number of at least 0; "):
        whole_number("OF_THE_TEST", 9, low=0)


@pytest.mark.parametrize("text", ["two", "2,2", "0"])
def test_a_run_with_a_malformed_number_of_processes_ends_with_one_line(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    found = outcome(command_line.main, "--n_epochs", 1)
    assert found.code == 1
    assert f"the environment has WORLD_SIZE={text}: expected a whole number of at least 1" in found.line


def test_a_malformed_rank_is_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(RuntimeError, match="LOCAL_RANK=first: expected a whole number of at least 0"):
        choose_device("cuda")
