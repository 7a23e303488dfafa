"""Checkpoints: what was saved comes back, and nothing else is taken for it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from covid_jax.config import to_dict
from covid_jax.data.normalization import ct
from covid_jax.data.plan import Plan
from covid_jax.errors import UserError
from covid_jax.training.checkpoint import Best, Checkpoints, best_of, copy_newest, load_params
from covid_jax.training.pretrained import load_pretrained, load_run
from covid_jax.training.state import initial_state, optimizer
from covid_jax.training.step import TrainState
from covid_jax.training.workdir import claim_workdir
from covid_jax.transfer.freezing import join, mask, split
from tests.conftest import tiny
from tests.networks import assert_near


def params(size=3):
    rng = np.random.default_rng(size)
    leaf = lambda: jax.numpy.asarray(rng.normal(size=(size, 2)), "float32")  # noqa: E731
    return {"encoder": {"kernel": leaf()}, "decoder": {"kernel": leaf(), "bias": leaf()}}


def state_of(tree, frozen=("encoder",)):
    held = mask(tree, frozen)
    trainable, rest = split(tree, held)
    return initial_state(trainable, optimizer(tiny().optimizer)), rest, held


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )


def save(workdir, state, frozen, epoch=None):
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, frozen, epoch)


def newest(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.newest()


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state, frozen, held = state_of(params())
    moved = jax.tree.map(lambda leaf: leaf + 1, state)
    assert newest(tmp_path) is None
    save(tmp_path, moved, frozen, {"losses": [0.1, 0.2]})
    saved = newest(tmp_path)
    back, back_frozen = saved.state(state, held)
    assert isinstance(back, TrainState)
    assert equal(back, moved)
    assert equal(back_frozen, frozen)
    assert saved.epoch == {"losses": [0.1, 0.2]}


def considered(workdir, *averages, save_each=True):
    """A run whose parameters grow by 1 each step, with these moving averages of the Dice."""
    state, frozen, _ = state_of(params(), ())
    with Checkpoints(workdir) as checkpoints:
        for average in averages:
            state = jax.tree.map(lambda leaf: leaf + 1, state)
            checkpoints.consider(state, frozen, average)
            if save_each:
                checkpoints.save(state, frozen)
        checkpoints.save(state, frozen)


def after(steps):
    return jax.tree.map(lambda leaf: leaf + np.float32(steps), params())


@pytest.mark.parametrize("save_each", [True, False])
def test_the_best_epoch_is_kept_beside_the_last(tmp_path, save_each):
    assert best_of(tmp_path) is None
    considered(tmp_path, 0.1, 0.3, 0.3, 0.2, save_each=save_each)
    assert best_of(tmp_path) == Best(2, 0.3)
    for found, steps in ((tmp_path, 4), (tmp_path / "best", 2)):
        kept, expected = (tree["decoder"]["kernel"] for tree in (load_params(found), after(steps)))
        assert_near(kept, expected, 1e-6)
    assert len(list((tmp_path / "best" / "checkpoints").iterdir())) == 1


def test_the_best_epoch_is_the_best_of_what_came_before_a_restart_too(tmp_path):
    considered(tmp_path, 0.1, 0.3)
    considered(tmp_path, 0.2)
    assert best_of(tmp_path) == Best(2, 0.3)
    considered(tmp_path, 0.2, 0.4)  # of a step that is trained again
    assert best_of(tmp_path) == Best(2, 0.4)
    considered(tmp_path, 0.5)  # of an earlier one
    assert best_of(tmp_path) == Best(1, 0.5)


def test_a_best_epoch_that_no_checkpoint_has_come_to_goes_with_the_schedule_it_is_of(tmp_path):
    """As a kill between both leaves it."""
    plan = Plan((1.0, 1.0, 1.0), (ct(-900, 300, -400, 350),), (8, 8, 8), ())
    claim_workdir(tmp_path, tiny(epochs=3, steps_per_epoch=1), plan)
    considered(tmp_path, 0.1, 0.2, 0.3)
    shutil.rmtree(tmp_path / "checkpoints" / "3")
    claim_workdir(tmp_path, tiny(epochs=3, steps_per_epoch=1), plan)
    assert best_of(tmp_path) == Best(3, 0.3)  # it is trained again
    claim_workdir(tmp_path, tiny(epochs=2, steps_per_epoch=1), plan)
    assert best_of(tmp_path) is None


def test_a_run_without_validation_has_no_best_epoch(tmp_path):
    considered(tmp_path)
    assert not (tmp_path / "best").exists()


def test_a_best_epoch_that_is_damaged_is_one_line(tmp_path):
    considered(tmp_path, 0.1)
    (path,) = (tmp_path / "best" / "checkpoints").glob("*/facts/metadata")
    path.write_text("{")
    with pytest.raises(UserError, match=r"best/checkpoints/1: damaged checkpoint; delete .*/best,"):
        Checkpoints(tmp_path)


def test_the_whole_tree_of_a_run_is_loaded_frozen_leaves_too(tmp_path):
    tree = params()
    state, frozen, _ = state_of(tree)
    save(tmp_path, state, frozen)
    assert equal(load_params(tmp_path), tree)


def test_a_checkpoint_of_another_network_is_refused_with_path_and_shapes(tmp_path):
    state, frozen, _ = state_of(params(3))
    save(tmp_path, state, frozen)
    other, _, held = state_of(params(4))
    with pytest.raises(UserError, match=r"decoder/bias is \(4, 2\) here and \(3, 2\) there"):
        newest(tmp_path).state(other, held)


def test_a_copy_to_share_does_not_say_where_it_was_written(tmp_path):
    state, frozen, _ = state_of(params())
    save(tmp_path / "run", state, frozen)
    copy_newest(tmp_path / "run", tmp_path / "shared")
    assert equal(load_params(tmp_path / "shared"), params())
    files = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert not [path for path in files if str(tmp_path).encode() in path.read_bytes()]


def test_the_last_two_checkpoints_are_kept(tmp_path):
    state, frozen, _ = state_of(params())
    for step in (5, 10, 15):
        save(tmp_path, state.replace(step=step), frozen)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "15"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the work directory of a run"):
        load_params(tmp_path)
    with pytest.raises(UserError, match="not the work directory of a run"):
        load_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="checkpoints: no checkpoint in it"):
        load_params(tmp_path)


def test_a_run_gives_its_config_its_plan_and_its_parameters(tiny_run):
    config, plan, tree = load_run(tiny_run)
    assert config.model.num_classes == 2
    assert plan.hash
    assert set(tree) == {"encoder", "decoder", "heads"}


def test_a_damaged_config_is_refused_by_file(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: damaged"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"zap": 1}))
    with pytest.raises(UserError, match="no field zap"):
        load_run(tmp_path)


def test_continual_refuses_a_pretraining_that_was_planned_for_another_schedule(tmp_path):
    state, frozen, _ = state_of(params())
    save(tmp_path, state, frozen)
    planned = tiny("pretraining-msd", pretraining_epochs=30, epochs=10)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(planned)))
    fits = tiny("continual-msd", pretraining_epochs=30, epochs=10, pretrained=str(tmp_path))
    assert equal(load_pretrained(fits), join(state.trainable, frozen))
    with pytest.raises(UserError, match=r"\(30, 10, 0.01, 0.9\) there and \(30, 20,"):
        load_pretrained(dataclasses.replace(fits, epochs=20))
    load_pretrained(dataclasses.replace(fits, strategy="body", epochs=20))
