"""Wrong data and models: what is noticed, and whether good ones are accused.

    python benchmarks/bench_wrong_science.py [--write]

Runs the tests of each kind of mistake, and of the good sets beside it, and counts them. A case is a test with one set
of parameters. ``--write`` puts the table into docs/trust.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests"), str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from blocks import fill  # noqa: E402

#: kind of mistake -> tests that it is noticed, and that good data are not accused, as ``module::begin of the name``
KINDS = {
    "images that do not belong to the crystal": (
        [
            "peak_check::test_what_is_wrong_is_named",
            "peak_check::test_a_fault_is_an_error",
            "mask_check::test_masks_beside_the_peaks",
        ],
        [
            "peak_check::test_good_images_are_good",
            "peak_check::test_images_without_visible_spots",
            "peak_check::test_weak_spots",
            "peak_check::test_ice_is_no_other_crystal",
            "mask_check::test_peaks_fill_their_masks",
        ],
    ),
    "reflections of other models, or of another setting": (
        ["refl_check::test_changed_since", "refl_check::test_reindexed_since"],
        ["refl_check::test_the_same_models", "refl_check::test_refined_a_little_since"],
    ),
    "the same data twice": (
        ["observations::test_the_same_counts_twice", "cli_integrate::test_the_same_experiment_twice"],
        [],
    ),
    "a sweep that contradicts the others": (
        ["brightness::test_the_sweep_that_was_exposed_otherwise"],
        ["brightness::test_good_and_weak_sweeps_are_not"],
    ),
    "absolute scales that disagree, or of noise": (
        [
            "absolute::test_noise_has_no_scale",
            "absolute::test_a_background_that_was_not_subtracted",
            "absolute::test_a_model_that_does_not_fit",
            "separation::test_noise_has_no_scale",
            "separation::test_bragg_intensities_that_do_not_fit",
        ],
        ["absolute::test_weak_reflections_are_no_noise"],
    ),
    "values that cannot be": (
        [
            "observations::test_impossible",
            "nexus::test_impossible_values",
            "checked_files::test_values_out_of_range",
        ],
        ["observations::test_noise_around_no_counts_is_possible", "nexus::test_voxels_that_were_not_measured"],
    ),
    "a space group that is too high": (
        ["laue::test_the_true_laue_group_is_found", "laue::test_the_highest_group_that_holds"],
        ["laue::test_absorption_drift_and_noise", "laue::test_nothing_is_decided", "laue::test_false_alarms"],
    ),
    "counts that are cut off": (
        ["clipped::test_peaks_that_are_cut_off"],
        ["clipped::test_counts_that_nothing_cuts_off", "clipped::test_peaks_that_nothing", "clipped::test_hot_pixels"],
    ),
    "models that do not describe the map": (
        ["described::test_another_structure_does_not", "described::test_a_map_without_signal"],
        ["described::test_the_right_structure_describes"],
    ),
    "bits that changed": (
        [
            "checked_files::test_no_bit_changes_unnoticed",
            "damaged_images::test_a_damaged_image",
            "damaged_images::test_one_bit",
        ],
        ["damaged_images::test_headers_that_say_something_else", "damaged_images::test_odd_images"],
    ),
}


class Counter:
    """Plugin of pytest: which tests passed."""

    def __init__(self):
        self.passed: dict = {}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            known = self.passed.get(report.nodeid, True)
            self.passed[report.nodeid] = known and report.outcome == "passed"


def count(passed: dict, wanted: list) -> tuple:
    """Cases, and how many of them ended as they should, of tests with these begins of names."""
    found = {}
    for item in wanted:
        module, name = item.split("::")
        mine = {node: good for node, good in passed.items() if node.startswith(f"tests/test_{module}.py::{name}")}
        if not mine:
            raise ValueError(f"no test {item}")
        found.update(mine)
    return len(found), sum(found.values())


def main() -> int:
    import pytest

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    names = [item for wrong, good in KINDS.values() for item in (*wrong, *good)]
    modules = list(dict.fromkeys(f"tests/test_{name.split('::')[0]}.py" for name in names))
    chosen = " or ".join(dict.fromkeys(name.split("::")[1] for name in names))
    counter = Counter()
    os.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "-k", chosen, *modules], plugins=[counter])
    rows, bad = [], 0
    for kind, (wrong, good) in KINDS.items():
        (n_wrong, noticed), (n_good, quiet) = count(counter.passed, wrong), count(counter.passed, good)
        bad += n_wrong - noticed + n_good - quiet
        rows.append(f"| {kind} | {n_wrong} | {n_wrong - noticed} | {n_good} | {n_good - quiet} |")
    head = ["| what is wrong | tried | not noticed | good sets | accused |", "|---|---|---|---|---|"]
    table = ["", *head, *rows, ""]
    print("\n".join(table))
    if bad:
        print(said.getvalue(), file=sys.stderr)
    if options.write:
        fill(ROOT / "docs" / "trust.md", "wrong science", table)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
