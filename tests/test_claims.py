"""What the field claims: which runs are compared, and when a report agrees."""

import itertools

import pandas
import pytest
from scipy import stats

from helper.schema.config import unflatten
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study.reporting.claims import AGREES, CLAIMS, DIFFERS, Finding, findings
from study.reporting.collect import collect
from study.reporting.regimes import CANNOT_TELL
from study.reporting.tidy import tidy
from tests.edited import edit_summary
from tests.test_families import WAYS

SHORT = {"n_epochs": 10, "lr_milestones": "5"}
BEAT, BELOW, SHUFFLING, WIDTH, ERK, LONGER = (claim.text for claim in CLAIMS)


@pytest.fixture
def found(tmp_path):
    """found(accuracies, *ways) -> {claim: findings} over seeds 1 to 4.

    accuracies: {family: test accuracy}, or a function of a row of the tidy table; seeds add a little, each the same.
    """

    def call(
        accuracies, *ways: dict, ratios: tuple = (0.9,), macs: dict | None = None, wobble: float = 1e-4
    ) -> dict[str, list[Finding]]:
        for seed, ratio, flags in itertools.product((1, 2, 3, 4), ratios, ways):
            own = SHORT | flags | {"prune_ratio": ratio, "random_state": seed, "results_root": str(tmp_path)}
            folder = write_run(unflatten(RunConfig, own))
            if macs:
                edit_summary(folder.path, lambda summary, n=macs[flags["hidden_dims"]]: summary.update(macs_dense=n))
        collection = collect(tmp_path)
        runs = tidy(collection)
        of = accuracies if callable(accuracies) else lambda row: accuracies[row["family"]]
        runs["acc_test"] = runs.apply(of, axis=1) + wobble * (runs["seed"] * (1 + runs["series"].str.len()) % 7)
        every = findings(collection.records, runs)
        return {claim.text: [one for one in every if one.claim is claim] for claim in CLAIMS}

    return call


def verdicts(found: dict[str, list[Finding]], claim: str) -> dict[str, str]:
    return {one.compared: one.verdict for one in found[claim]}


def test_without_runs_nobody_can_tell_and_it_is_said_what_is_missing(found):
    every = found({"dense": 0.9, "sparse-scratch": 0.8}, WAYS["dense"], WAYS["sparse-scratch"])
    assert {claim: verdicts(every, claim) for claim in every} == {claim.text: {claim.missing: CANNOT_TELL} for claim in CLAIMS}


def test_scores_at_initialisation_stand_between_random_and_magnitude_after_training(found):
    ways = [WAYS[label] for label in ("SNIP", "random-ERK", "sparse-finetune", "SynFlow")]
    every = found({"SNIP": 0.7, "SynFlow": 0.6, "random-ERK": 0.65, "sparse-finetune": 0.72}, *ways)
    at = "0.9 pruned, mlp-128-64 on digits"
    assert verdicts(every, BEAT) == {f"SNIP minus random-ERK, {at}": AGREES, f"SynFlow minus random-ERK, {at}": DIFFERS}
    assert verdicts(every, BELOW) == {
        f"SNIP minus sparse-finetune, {at}": AGREES,
        f"SynFlow minus sparse-finetune, {at}": AGREES,
    }
    (one, _) = every[BEAT]
    assert one.gap.interval.mean == pytest.approx(0.05, abs=0.002)
    assert one.seeds == 4


def test_no_difference_takes_equivalence_within_the_margin(found):
    ways = [WAYS["SNIP"], WAYS["SNIP, mask_control shuffle"]]
    same = {"SNIP": 0.7, "SNIP, mask_control shuffle": 0.701}
    assert list(verdicts(found(same, *ways), SHUFFLING).values()) == [AGREES]

    def noisy(row: pandas.Series) -> float:
        return same[row["family"]] + (0.02 * (-1) ** row["seed"] if "shuffle" in row["family"] else 0)

    assert list(verdicts(found(noisy, *ways), SHUFFLING).values()) == [CANNOT_TELL]
    assert list(verdicts(found({**same, "SNIP, mask_control shuffle": 0.6}, *ways), SHUFFLING).values()) == [DIFFERS]


def test_comparisons_of_one_claim_are_adjusted_together(found):
    ways = [WAYS["SNIP"], WAYS["random-ERK"]]
    every = found({"SNIP": 0.7, "random-ERK": 0.69}, *ways, ratios=(0.8, 0.9, 0.95))
    assert len(every[BEAT]) == 3
    for one in every[BEAT]:
        assert one.gap.p_holm >= one.gap.p_value
    assert max(one.gap.p_holm / one.gap.p_value for one in every[BEAT]) == pytest.approx(3)


def test_runs_that_were_trained_otherwise_are_not_compared(found):
    every = found({"SNIP": 0.7, "random-ERK": 0.6}, WAYS["SNIP"], WAYS["random-ERK"] | {"lr": 0.2})
    assert list(verdicts(every, BEAT).values()) == [CANNOT_TELL]
    assert every[BEAT][0].gap is None


def test_erk_is_set_against_uniform_of_the_same_method_alone(found):
    ways = [WAYS[label] for label in ("random-ERK", "random-uniform", "RigL", "RigL-uniform")]
    every = found({"random-ERK": 0.7, "random-uniform": 0.6, "RigL": 0.8, "RigL-uniform": 0.9}, *ways)
    words = {compared.partition(",")[0]: verdict for compared, verdict in verdicts(every, ERK).items()}
    assert words == {"random-ERK minus random-uniform": AGREES, "RigL minus RigL-uniform": DIFFERS}


def test_longer_dynamic_training_is_set_against_the_next_shorter_one(found):
    ways = [WAYS["dense"], *(WAYS["RigL"] | {"n_epochs": n, "lr_milestones": str(n // 2)} for n in (10, 20, 40))]
    every = found(lambda row: 0.5 + row["epochs"] / 100, *ways)
    assert [one.compared.partition(" epochs")[0] for one in every[LONGER]] == ["20 minus 10", "40 minus 20"]
    assert {one.verdict for one in every[LONGER]} == {AGREES}
    assert every[LONGER][1].gap.interval.mean == pytest.approx(0.2, abs=0.002)


def test_width_is_judged_by_how_far_random_masks_are_behind_the_dense_run_of_their_own_width(found):
    whole = {"8-4": 0.5, "32-16": 0.6, "64-32": 0.7}
    behind = {"8-4": 0.1, "32-16": 0.04, "64-32": 0.037}
    ways = [WAYS[label] | {"hidden_dims": dims} for label in ("dense", "random-ERK") for dims in whole]

    def accuracy(row: pandas.Series) -> float:
        dims = row["network"].removeprefix("mlp-")
        return whole[dims] - behind[dims] * (row["family"] != "dense")

    every = found(accuracy, *ways, macs={"8-4": 10, "32-16": 20, "64-32": 30})
    assert verdicts(every, WIDTH) == {
        "random-ERK minus dense, mlp-32-16 minus mlp-8-4, 0.9 pruned": AGREES,
        "random-ERK minus dense, mlp-64-32 minus mlp-32-16, 0.9 pruned": DIFFERS,
    }
    assert every[WIDTH][0].gap.interval.mean == pytest.approx(0.06, abs=0.001)


def test_a_single_width_or_one_without_its_dense_run_tells_nothing(found):
    ways = [WAYS["random-ERK"] | {"hidden_dims": dims} for dims in ("8-4", "32-16")] + [WAYS["dense"] | {"hidden_dims": "8-4"}]
    every = found({"dense": 0.9, "random-ERK": 0.8}, *ways, macs={"8-4": 10, "32-16": 20})
    assert [one.gap for one in every[WIDTH]] == [None]


def test_the_p_value_of_a_claim_is_scipys(found):
    values = {"SNIP": [0.7, 0.71, 0.72, 0.69], "random-ERK": [0.69, 0.68, 0.7, 0.69]}
    every = found(lambda row: values[row["family"]][row["seed"] - 1], WAYS["SNIP"], WAYS["random-ERK"], wobble=0)
    assert every[BEAT][0].gap.p_value == pytest.approx(stats.ttest_rel(values["SNIP"], values["random-ERK"]).pvalue)
