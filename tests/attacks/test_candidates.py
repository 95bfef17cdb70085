"""An attacker who suspects inputs: told apart by a few entries, by their order in a batch not at all, and where nothing is visible by luck."""

import numpy as np
import pytest

from selgrad import run_cell
from selgrad.errors import UsageError

SUSPECTS = {"name": "digits", "count": 60}


def cell(ratio, **changes):
    given = {"dataset": {"name": "digits", "count": 40, "offset": 20}, "model": "lenet", "metric": "random", "attack": "candidates", "public": SUSPECTS}
    return run_cell(**{**given, "ratio": ratio, "sample": 3, **changes})


@pytest.mark.parametrize("ratio", [0.0, 0.99, 0.999])
def test_a_thousandth_of_the_entries_names_the_input(ratio):
    found = cell(ratio)
    np.testing.assert_array_equal(found.reconstruction, found.truth)
    assert found.measures["label_correct"] == 1 and found.measures["converged"] and found.measures["moved"]
    assert found.measures["num_evaluations"] == 60


def test_where_nothing_is_visible_it_guesses():
    found = cell(1.0)
    assert not found.measures["moved"]


def test_who_is_not_among_the_suspects_is_not_found():
    found = cell(0.5, public={"name": "digits", "count": 60, "offset": 100})
    assert found.measures["mse"] > 0 and not found.measures["converged"], "and its own objective says so"


def test_members_of_a_batch_are_found_by_their_directions():
    found = cell(0.5, update={"name": "gradient", "batch_size": 2}, model={"name": "mlp", "width": 64})
    assert found.measures["mse"] < 1e-10


def test_sentences_too():
    text = {"name": "sentences", "count": 12}
    found = run_cell(dataset=text, public=text, model={"name": "bert", "size": "tiny"}, attack="candidates", metric="random", ratio=0.99, sample=5)
    assert found.measures["exact_match"] == 1


def test_without_suspects_it_says_what_it_needs():
    with pytest.raises(UsageError, match="under `public`"):
        cell(0.0, public=None)
