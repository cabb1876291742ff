"""--help of every command, and where the flags that were given stand."""

import contextlib
import re
import shlex

import pytest

import experiment
import run as command_line
from helper.command_line.effects import without_effect, without_effect_in
from helper.command_line.parsing import parse
from helper.schema.config import all_flags, checked, flag_fields, flatten, parts, replace, unflatten, value_type
from helper.system.versions import ROOT
from optim.config import RunConfig
from optim.identity import run_identity
from study.sweeping.plan import flags_named, read_sweep
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
        as_choice = ("default" in (field.metadata["flag"].choices or ())) + (field.default == "default")
        assert words.count("(default: ") == words.count("default") - as_choice == 1, words
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


@pytest.mark.parametrize("word", ["-0.1", "-1e-3", "-2", "-.5E+1", "-3."])
def test_a_negative_number_is_a_value_and_no_flag(word):
    line = parse(RunConfig, command_line.USAGE, ["-rp", "fisher", "--reg_weight", word])
    assert line.config.train.reg_weight == float(word)


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


# ---------------------------------------------------------------------------------------------- flags without effect


IDLE = [
    ("--noise_ratio 0.5", "--noise_ratio 0.5 has no effect with --train_noisy 0; it acts with --train_noisy 1"),
    ("--noise_ratio 0.3", "--noise_ratio 0.3 has no effect with --train_noisy 0"),
    ("-tn 1 --noise_method human --noise_ratio 0.5 -ln cifar100", "--noise_ratio 0.5 has no effect with --noise_method human"),
    ("-on adam -mm 0.5", "--momentum 0.5 has no effect with --optimizer_name adam; it acts with --optimizer_name sgd"),
    ("--nesterov -on adam", "--nesterov 1 has no effect with --optimizer_name adam"),
    ("--prune_ratio 0.5", "--prune_ratio 0.5 has no effect with --mode dense; it acts with --mode sparse-finetune,"),
    ("-m sparse-scratch -tp x.pt", "--lottery_model_path x.pt has no effect with --mode sparse-scratch"),
    ("-lrp 0.2", "--lr_pretrain 0.2 has no effect with --mode dense"),
    ("-m lottery -pp x.pt -nep 3", "--n_epochs_pretrain 3 has no effect with --pretrain_model_path x.pt"),
    ("-ls cosine --lr_gamma 0.5", "--lr_gamma 0.5 has no effect with --lr_schedule cosine; it acts"),
    ("--lr_schedule exponential -lm 3", "--lr_milestones 3 has no effect with --lr_schedule exponential"),
    ("--mix_alpha 0.4", "--mix_alpha 0.4 has no effect with --mix none; it acts with --mix mixup or cutmix"),
    ("--reg_weight 1", "--reg_weight 1.0 has no effect with --reg_type none"),
    ("--reg_schedule until:0.3", "--reg_schedule until:0.3 has no effect with --reg_type none; it acts with --reg_type"),
    ("-rp jacobian --reg_method difference",
     "--reg_method difference has no effect with --reg_type jacobian; it acts with --reg_type fisher or gradient"),
    ("--depth 20", "--depth 20 has no effect with --net_name mlp"),
    ("-nt vgg11 -dp 20", "--depth 20 has no effect with --net_name vgg11; it acts with --net_name resnet, preresnet, "
     "wide_resnet or densenet"),
    ("-nt preresnet -wf 2", "--widen_factor 2 has no effect with --net_name preresnet"),
    ("-nt resnet -dr 0.1",
     "--dropRate 0.1 has no effect with --net_name resnet; it acts with --net_name wide_resnet or densenet"),
    ("-nt mnist_lenet -hd 5", "--hidden_dims 5 has no effect with --net_name mnist_lenet"),
    ("-ln mnist --test_size 0.5", "--test_size 0.5 has no effect with --loader_name mnist"),
    ("-sf 0 -ms 10", "--monte_carlo_samples 10 has no effect with --save_fisher 0"),
    ("-sf 0 --save_jacobian 1 --metric_params all", "--metric_params all has no effect with --save_fisher 0"),
    ("--hessian_method pyhessian", "--hessian_method pyhessian has no effect with --save_hessian 0; it acts"),
    ("--spectrum_k 3", "--spectrum_k 3 has no effect with --save_spectrum 0"),
    ("--jacobian_output logits", "--jacobian_output logits has no effect with --save_jacobian 0"),
    ("-fd exact -mt 3", "--monte_carlo_trials 3 has no effect with --fisher_method exact"),
    ("-fd vmap --metric_rtol 0.1", "--metric_rtol 0.1 has no effect with --fisher_method vmap"),
    ("--save_snr 0 --snr_mode online", "--snr_mode online has no effect with --save_snr 0"),
    ("--root x", "--root x has no effect with --loader_name digits; it acts with --loader_name toy, mnist, fmnist, svhn"),
    ("-ln digits_noisy -rt x", "--root x has no effect with --loader_name digits_noisy"),
    ("-ln mnist -fn x.mat", "--filename x.mat has no effect with --loader_name mnist; it acts with --loader_name toy"),
    ("-ln toy --download 0", "--download 0 has no effect with --loader_name toy"),
    ("--verify_data 0", "--verify_data 0 has no effect with --loader_name digits"),
    ("-ln mnist --split_seed 3",
     "--split_seed 3 has no effect with --loader_name mnist, --limit_train none, --limit_test none, --val_size 0.0; it acts "
     "with --loader_name digits, toy, folder, npz or MODULE:FUNCTION, --limit_train above 0, --limit_test above 0 or "
     "--val_size above 0"),
    ("-nt resnet --sync_batch_norm 0",
     "--sync_batch_norm 0 has no effect with one process; it acts with --net_name resnet, preresnet, "
     "wide_resnet, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn, densenet or MODULE:FACTORY and with several processes"),
    ("--sync_batch_norm 0", "--sync_batch_norm 0 has no effect with --net_name mlp, one process; it acts with"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), IDLE)
def test_a_flag_that_was_given_in_vain_is_told_once(words, expected):
    line = parse(RunConfig, command_line.USAGE, words.split())
    (told,) = without_effect(line.config, line.given)
    assert told.startswith(expected)
    assert "; it acts with" in told


@pytest.mark.parametrize(
    "words",
    ["", "-mm 0.5 --lr_gamma 0.3 -lm 3 --nesterov", "-ln digits_noisy -nr 0.5 --noise_seed 3",
     "-m lottery -pr 0.5 -pl -tp x.pt -nep 3",
     "-ms 10 -mt 3 -bf 5 --metric_rtol 0.1 --metric_params all --metric_split test --metric_memory_mb 100 -fd spectral -fm fim",
     "-sf 0 --save_spectrum --spectrum_k 3 --spectrum_matrix hessian -ms 10 --metric_params all", "-fd vmap -mt 3 -ms 5",
     "--save_jacobian_top -sf 0 --jacobian_output probabilities --metric_rtol 0.1", "-nt resnet -dp 20 -wf 2 -ln mnist",
     "-rp jacobian,fisher -rw -0.5 --reg_method difference --reg_schedule linear",
     "-rp jacobian -rw 0.5", "--lr_schedule exponential --lr_gamma 0.9", "--test_size 0.3", "-dv tpu",
     "--save_snr --snr_mode online", "-ln toy -rt x -fn y.mat --split_seed 1", "-ln cifar100_noisy -rt x -dl 0 --verify_data 0",
     "--split_seed 1", "-ln mnist --split_seed 1 --limit_train 9", "-ln fmnist --split_seed 1 --limit_test 9",
     "-ln cifar10 --split_seed 1 --val_size 0.1"],
)  # fmt: skip
def test_a_flag_that_acts_is_not_told(words):
    line = parse(RunConfig, command_line.USAGE, words.split())
    assert without_effect(line.config, line.given) == []


OTHERS = {int: 20, float: 0.25, bool: True, str: "7"} | {
    "reg_weights": "fisher:2", "reg_schedule": "linear", "reg_schedules": "fisher:linear",
}  # fmt: skip
BASES = (
    {}, {"mode": "sparse-scratch"}, {"save_fisher": False}, {"fisher_method": "exact"}, {"optimizer_name": "adam"},
    {"fisher_method": "vmap", "save_jacobian": True, "jacobian_method": "exact"}, {"save_spectrum": True, "save_fisher": False},
    {"fisher_metric": "empirical", "fisher_method": "ours"}, {"lr_schedule": "cosine"}, {"train_noisy": True},
    {"save_snr": False}, {"net_name": "resnet", "loader_name": "mnist"},
)  # fmt: skip


def test_several_processes_give_an_effect_to_what_they_share():
    line = parse(RunConfig, command_line.USAGE, ["--sync_batch_norm", "0", "-nt", "resnet"])
    assert without_effect(line.config, line.given, 2) == []
    line = parse(RunConfig, command_line.USAGE, ["--sync_batch_norm", "0"])
    (told,) = without_effect(line.config, line.given, 2)
    assert told.startswith("--sync_batch_norm 0 has no effect with --net_name mlp; it acts with")
    assert without_effect_in([line.config, replace(line.config, net_name="resnet")], line.given, 2) == []


def test_a_run_of_several_processes_knows_of_them(monkeypatch):
    monkeypatch.setattr(command_line, "train_run", lambda config, signals: "the folder")
    monkeypatch.setattr(command_line, "join_processes", lambda device: contextlib.nullcontext())
    words = ("-nt", "resnet", "-ln", "mnist", "--sync_batch_norm", 0)
    assert "--sync_batch_norm 0 has no effect" in outcome(command_line.main, *words).err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert outcome(command_line.main, *words).err == ""


ALWAYS = {"split_seed": {"loader_name": "cifar10"}, "sync_batch_norm": {}}


@pytest.mark.parametrize(("name", "base"), ALWAYS.items())
def test_what_has_always_counted_goes_on_counting_where_it_is_told_to_be_without_effect(name, base):
    """Or a run that is there would be found no more."""
    config = unflatten(RunConfig, base)
    other = replace(config, **{name: int(not flatten(config)[name])})
    assert without_effect(other, {name}) != []
    assert run_identity(other, None) == run_identity(config, None) | {name: flatten(other)[name]}
    assert [n for n, f in all_flags(RunConfig).items() if f.metadata["flag"].always_counts] == list(ALWAYS)


def test_what_is_told_to_be_without_effect_changes_neither_identity_nor_any_measurement():
    """Of every flag with conditions, in configurations that do not meet them."""
    told = set()
    apart = {"pretrain_model_path", "lottery_model_path", "metric_every"}  # need files; refused where nothing is measured
    for config in (unflatten(RunConfig, base) for base in BASES):
        for cls, field in owners(RunConfig):
            name, spec = field.name, field.metadata["flag"]
            if any(spec.when) and without_effect(config, {name}):
                told.add(name)
                others = [choice for choice in spec.choices or () if choice != flatten(config)[name]]
                usual = "a=7" if spec.whole else OTHERS[value_type(cls, field)[0]]
                value = others[-1] if others else OTHERS.get(name, usual)
                other = config if name in apart else replace(config, **{name: value})
                assert spec.always_counts or run_identity(other, None) == run_identity(config, None), name
                assert other.metrics.wanted() == config.metrics.wanted()
                for metric in config.metrics.wanted():
                    assert metric.settings(other.metrics) == metric.settings(config.metrics), name
    assert told == {name for name, field in all_flags(RunConfig).items() if any(field.metadata["flag"].when)}


def test_a_run_and_a_sweep_and_measure_say_it_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ("--n_epochs", 1, "--lr_milestones", 1, "--figures", 0, "--save_snr", 0, "--save_fisher", 0, "--limit_train", 50)
    found = outcome(command_line.main, *quick, "--momentum", 0.5, "-on", "adam")
    assert found.code == 0
    assert [line for line in found.err.splitlines() if "no effect" in line] == [
        "run.py: --momentum 0.5 has no effect with --optimizer_name adam; it acts with --optimizer_name sgd"
    ]
    found = outcome(experiment.main, "measure", found.folder, "--metrics", "jacobian", "--fisher_method", "exact", "-ms", 10)
    assert found.code == 0
    assert [line for line in found.err.splitlines() if "no effect" in line] == [
        "experiment.py: --fisher_method exact has no effect with --save_fisher 0; it acts with --save_fisher 1"
    ]
    (tmp_path / "preset.yaml").write_text("noise_ratio: 0.5\nmomentum: 0.5\n")
    (tmp_path / "sweep.yaml").write_text(
        "config: preset.yaml\nflags: {prune_ratio: 0.5, depth: 20}\n"
        "grid: {mode: [dense, lottery], optimizer_name: [adam, sgd]}\n"
    )
    found = outcome(experiment.main, "sweep", "sweep.yaml", "--dry_run", "--noise_seed", "1,2")
    assert found.code == 0
    told = [line.split(" has no")[0] for line in found.err.splitlines() if "no effect" in line]
    assert told == ["experiment.py: --noise_seed 1", "experiment.py: --depth 20"]


def test_the_preset_of_a_figure_says_nothing():
    for file in sorted((ROOT / "scripts/paper").rglob("*.yaml")):
        assert without_effect_in(read_sweep(file, {}), flags_named(file)) == [], file
    for file in sorted((ROOT / "scripts/presets").glob("*.yaml")):
        line = parse(RunConfig, command_line.USAGE, ["--config", str(file), "--mode", "sparse-scratch"])
        assert without_effect(line.config, line.given) == [], file


def test_measure_refuses_to_be_told_how_often(tmp_path):
    (tmp_path / "config.yaml").write_text("lr: 0.1\n")
    assert "--epochs" in outcome(experiment.main, "measure", tmp_path, "--metric_every", 3).line


@pytest.mark.parametrize(
    "words",
    [("list", "--csv", "{root}"), ("list", "{root}", "--csv"), ("list", "--csv", "1", "{root}"), ("status", "--all", "{root}")],
)
def test_a_flag_that_takes_1_or_0_may_stand_alone_before_a_folder(words, tmp_path):
    found = outcome(experiment.main, *(word.format(root=tmp_path) for word in words))
    assert (found.code, found.err) == (0, "")


def test_a_word_that_is_no_folder_is_still_a_wrong_value(tmp_path):
    assert "--csv nowhere: expected 1 or 0" in outcome(experiment.main, "list", "--csv", "nowhere", tmp_path).line
