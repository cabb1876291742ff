"""--help of every command, and where the flags that were given stand."""

import re
import shlex

import pytest

import experiment
import run as command_line
from helper.command_line import parse
from helper.config import all_flags, checked, flag_fields, parts
from optim.main import RunConfig
from tests.outcome import outcome

COMMANDS = {"run.py": (command_line.main, (), RunConfig, command_line.USAGE)} | {
    name: (experiment.main, (name,), command.load()[0], command.usage(name)) for name, command in experiment.COMMANDS.items()
}
BLOCK = re.compile(r"^  (?=-)", re.MULTILINE)


@pytest.fixture(params=[80, 120])
def columns(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_with_an_example_and_every_flag_with_its_default_once(name, columns):
    main, words, cls, usage = COMMANDS[name]
    found = outcome(main, *words, "--help")
    assert (found.code, found.err) == (0, "")
    text = found.out
    head, _, body = text.partition("\n\n")
    assert " ".join(head.split()) == usage.what
    assert re.fullmatch(r"[A-Z][^.]*[^.,:;]\.", usage.what), "one sentence"
    assert body.replace(" \\\n   ", "").startswith(f"  {usage.example}\n")
    for line in text.splitlines():
        assert len(line) <= columns
        assert line == line.rstrip()
    for leak in ("<function", "<locals>", "(type:", "Args:", "Raises:", "Returns:", ".:", "True", "False", "Config:", "%%"):
        assert leak not in text
    shown = {}
    for block in BLOCK.split(text)[1:]:
        names = re.match(r"(?:(-\w+), )?--(\w+)", block)
        shown[names[2]] = (names[1], " ".join(block.split("\n\n")[0].split()))
    flags = all_flags(cls) | (all_flags(usage.lists) if usage.lists else {})
    assert set(shown) == set(flags) | {"help"} | ({"config", "print_config"} if usage.lists is None else set())
    for flag, field in flags.items():
        short, words = shown[flag]
        assert short == field.metadata["flag"].short
        assert words.count("(default: ") == words.count("default") == 1, words
        assert words.endswith(")")
        for choice in field.metadata["flag"].choices or ():
            assert choice in words
        if isinstance(field.default, bool):
            assert words.endswith(f"(default: {int(field.default)})")
            assert f"--{flag} 1|0" in words


def owners(cls):
    yield from ((cls, field) for field in flag_fields(cls))
    for part in parts(cls).values():
        yield from owners(part)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_default_that_help_shows_is_the_one_that_acts(name):
    for cls, field in owners(COMMANDS[name][2]):
        told = re.search(r"; default: (.*)", field.metadata["flag"].help)
        assert bool(told) == (field.default is None), field.name
        if field.default is not None:
            assert checked(cls, field, str(field.default)) == field.default


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_parse(name):
    _, _, cls, usage = COMMANDS[name]
    python, *words = shlex.split(usage.example)
    called = len(usage.prog.split())
    assert [python, *words[:called]] == ["python", *usage.prog.split()]
    line = parse(cls, usage, words[called:])
    assert len(line.words) >= len(usage.words.split())


def test_the_list_of_commands_fits_and_starts_with_a_sentence_and_an_example(columns):
    for words in ((), ("--help",), ("-h",)):
        text = outcome(experiment.main, *words).out
        assert max(map(len, text.splitlines())) <= columns
        sentence, _, example = text.splitlines()[:3]
        assert sentence.endswith(".")
        assert example.startswith("  python experiment.py ")
        assert all(" ".join(command.what.split()) in " ".join(text.split()) for command in experiment.COMMANDS.values())


# ------------------------------------------------------------------------------------------------------- what was given


def given(*words: str) -> set[str]:
    return set(parse(RunConfig, command_line.USAGE, words).given)


def test_given_are_flags_of_the_line_and_those_of_a_file_that_differ_from_the_default(tmp_path):
    file, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    file.write_text("momentum: 0.9\nlr: 0.3\nnoise_ratio: 0.3\nsave_hessian: no\n")
    other.write_text("lr: 0.1\n")
    assert given("--momentum", "0.9", "-bs", "128") == {"momentum", "batch_size"}
    assert given("--config", str(file)) == {"lr"}
    assert given("--config", str(file), "--noise_ratio", "0.3") == {"lr", "noise_ratio"}
    assert given("--config", str(file), "--config", str(other)) == set()
    assert given("--save_hessian") == {"save_hessian"}


def test_later_flags_and_files_override_earlier_ones(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 0.3\nn_epochs: 3\n")
    (tmp_path / "b.yaml").write_text("lr: 0.4\n")
    words = ["--lr", "0.2", "--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml"), "--n_epochs", "5"]
    config = parse(RunConfig, command_line.USAGE, words).config
    assert (config.train.lr, config.train.n_epochs) == (0.4, 5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"batch_size: 1_000\n", ["--batch_size 1_000", "an integer"]), (b"lr: yes\n", ["--lr yes", "a number"]),
        (b"lr: [1, 2]\n", ["--lr", "a number"]), (b"results_root:\n", ["--results_root", "a word"]),
        (b"mode: {a: 1}\n", ["--mode", "a word"]), (b"\xff\xfe", ["UTF-8"]), (b"- lr\n", ["a mapping"]), (b"", ["a mapping"]),
        (b"1: 2\n", ["1: no such flag"]), (b"nj: 2\n", ["nj: no such flag"]), (b"#" * (1 << 25), ["larger than 16 MiB"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said_in_one_line_with_its_name(tmp_path, content, words):
    (tmp_path / "own.yaml").write_bytes(content)
    found = outcome(command_line.main, "--config", tmp_path / "own.yaml")
    assert found.code == 2
    assert f"{tmp_path / 'own.yaml'}: " in found.line
    assert all(word in found.line for word in words), found.line


def test_a_file_without_end_is_not_read_to_its_end():
    assert "larger than 16 MiB" in outcome(command_line.main, "--config", "/dev/zero").line
    assert "larger than 16 MiB" in outcome(experiment.main, "sweep", "/dev/zero").line
