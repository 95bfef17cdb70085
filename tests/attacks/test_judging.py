"""Whether a search has ended, and whether what it returns says anything of the client: no weakness of an attack counts for a defence."""

import jax
import numpy as np
import pytest

import selgrad
from selgrad import trees
from selgrad.experiment import Lane, Setting
from selgrad.experiment.cell import run_lanes
from selgrad.registry import Spec

pytestmark = pytest.mark.once
MLP = {"name": "mlp", "width": 16, "activation": "sigmoid"}


@pytest.mark.parametrize(("weight", "ended"), [(10.0, False), (0.0, True)])
def test_a_smooth_picture_explains_nothing_by_being_smooth(weight, ended):
    """A total variation of nearly 0 brings the whole objective below the truth's, while the update is nothing like the client's."""
    attack = {"name": "inverting_gradients", "num_steps": 600, "total_variation_weight": weight, "start": "grey"}
    found = selgrad.run_cell(dataset={"name": "digits", "count": 1}, model=MLP, attack=attack, known_labels=True)
    if not ended:
        assert found.measures["objective"] < found.objective_at_truth, "which is what was asked before"
        assert found.measures["misfit"] > 100 * found.measures["misfit_at_truth"] and not found.converged
    else:
        # One minus a cosine, to float32's rounding.
        assert found.measures["misfit"] == pytest.approx(found.measures["objective"], abs=1e-6)
        assert found.measures["misfit_at_truth"] == pytest.approx(found.objective_at_truth, abs=1e-6)


def test_attacks_without_a_regulariser_are_judged_by_their_objective():
    for name in ("dlg", "bayesian"):
        found = selgrad.run_cell(dataset={"name": "digits", "count": 1}, model=MLP, attack={"name": name, "num_steps": 20}, known_labels=True)
        assert found.measures["misfit"] == pytest.approx(found.measures["objective"], rel=1e-6)


@pytest.mark.slow
def test_words_that_visible_rows_name_are_read_off_and_not_found_by_luck():
    """Where all but the gradient of the word embeddings is encrypted, there is nothing to match, and the rows name the words."""
    model = {"name": "bert", "size": "tiny", "embedding": "sent"}
    setting = Setting(Spec.of("dataset", {"name": "sentences", "count": 2}), Spec.of("model", model), Spec.of("update", "gradient"))
    rest = [path for path in trees.paths(setting.shapes) if path != "embeddings/word/embedding"]
    sizes = dict(zip(trees.paths(setting.shapes), (int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(setting.shapes)), strict=True))
    ratio = sum(sizes[path] for path in rest) / sum(sizes.values())
    selector = Spec.of("selector", {"name": "by_path", "paths": rest})
    for attack in ({"name": "dager", "num_attempts": 1, "max_candidates": 32}, {"name": "tag", "num_steps": 3, "learning_rate": 0.01}):
        lanes = [Lane(0, sample, Spec.of("metric", "random"), selector, ratio) for sample in range(2)]
        for found in run_lanes(setting, Spec.of("attack", attack), lanes).found:
            measures = found.measures
            assert measures["moved"] and measures["identified"] == 1 and setting.modality.level(measures, told_labels=False) != "nothing"
            assert attack["name"] == "dager" or not measures["converged"], "matching nothing explains nothing"


def test_zeros_that_are_visible_tell_suspects_apart():
    """Of a relu network with sparse inputs nine tenths by magnitude hide every entry that is not 0, and the zeros are another input's."""
    digits = {"name": "digits", "count": 40}
    found = selgrad.run_cell(dataset=digits, model={"name": "mlp", "width": 64}, metric="magnitude", ratio=0.9, attack="candidates", public=digits, sample=3)
    grads = Setting(Spec.of("dataset", digits), Spec.of("model", {"name": "mlp", "width": 64}), Spec.of("update", "gradient")).sent(0, 0, 3).grads
    assert sum(int((np.asarray(leaf) != 0).sum()) for leaf in jax.tree.leaves(grads)) < found.num_selected
    assert found.measures["mse"] == 0 and found.measures["moved"]
    blind = selgrad.run_cell(dataset=digits, model={"name": "mlp", "width": 64}, metric="magnitude", ratio=1.0, attack="candidates", public=digits, sample=3)
    assert not blind.measures["moved"]


def test_one_image_of_a_batch_that_is_read_exactly_is_read():
    setting = Setting(Spec.of("dataset", {"name": "digits", "count": 8}), Spec.of("model", MLP), Spec.of("update", {"name": "gradient", "batch_size": 4}))
    truth = np.asarray(setting.batches.inputs[0])
    batch = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf[0]), setting.batches)
    wrong = 1 - truth
    wrong[2] = truth[2]
    zero = np.float32(0)
    found = selgrad.Reconstruction.single(jax.numpy.asarray(wrong), batch.labels, zero)
    outcome = setting.modality.measure(batch, found, setting.modality.guess(None, setting.dataset))
    measures = {name: float(value) for name, value in outcome.measures.items()}
    assert measures["best_mse"] == 0 and measures["mse"] > 0.01
    assert setting.modality.level({**measures, "identified": 0.25}, told_labels=False) == "exact"
