"""Several strategies in one run: as a list of plugins, and from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clplat.build import build_learner, build_scenario
from clplat.errors import InputError
from clplat.footprint import memory_bytes
from clplat.several import Several, combined_name, expanded, parts_of
from strategies.der import DER
from strategies.er_ace import ERACE
from strategies.ewc import EWC
from strategies.expert_gate import ExpertGate
from strategies.finetune import FineTune
from strategies.joint import Joint
from strategies.lwf import LwF
from strategies.mir import MIR
from strategies.replay import Replay
from tests.handed_over import through_a_file
from tests.test_conf import composed


def test_a_list_is_written_out_and_all_else_stays():
    found = expanded(["-m", "strategy=[replay, lwf]", "strategy.replay.capacity=9", "seed=0,1"])
    assert found == [
        *("-m", "strategy=several"),
        *("+strategy@strategy.replay=replay", "+strategy@strategy.lwf=lwf"),
        *("strategy.replay.capacity=9", "seed=0,1"),
    ]
    assert expanded(["strategy=ewc,lwf"]) == ["strategy=ewc,lwf"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("strategy=[]", "strategy=[]: '' is none that can be combined; expected names of the "),
        ("strategy=[replay,replay]", "strategy=[replay,replay]: replay is given twice; leave out"),
        ("strategy=[replay,avalanche/mas]", "strategy=[replay,avalanche/mas]: 'avalanche/mas' is"),
        ("strategy=[replay,", "strategy=[replay,: one list of strategies a command, in quotes if"),
        ("strategy=[a,b],[c,d]", "strategy=[a,b],[c,d]: one list of strategies a command, in "),
    ],
)
def test_what_is_no_list_of_names_is_refused(argument, message):
    with pytest.raises(InputError) as caught:
        expanded([argument])
    assert str(caught.value).startswith(message)


def test_a_run_is_called_by_its_strategies():
    node = {"_target_": "clplat.several.Several", "replay": {}, "lwf": {}}
    assert combined_name("several", node) == "replay+lwf"
    assert combined_name("mine", node) == "mine"
    assert combined_name("several", {"_target_": ""}) == "several"


def test_nothing_to_combine_is_refused():
    with pytest.raises(InputError, match="strategy=several: no strategies; expected names of the"):
        Several()


def test_two_that_decide_on_the_same_are_named():
    with pytest.raises(InputError) as caught:
        Several(first=Replay(4), lwf=LwF(), all=Joint())
    assert str(caught.value) == (
        "strategy=[first,lwf,all]: both first and all decide on the batches; leave out one"
    )


def test_one_that_brings_its_own_loop_is_named():
    config = composed("seed=0", "strategy=several", "+strategy@strategy.other=avalanche/cumulative")
    with pytest.raises(InputError) as caught:
        build_learner(config, build_scenario(config, []))
    assert str(caught.value) == (
        "strategy=[other]: other brings a loop of its own, in which others do not act; leave it out"
    )


def test_they_train_as_the_plugins_one_after_the_other(clusters, mlp, make_learner, weights):
    stream, models = clusters().train_stream, []
    several = Several(replay=Replay(6), lwf=LwF(0.5), ewc=EWC(3.0))
    for plugins in ([Replay(6), LwF(0.5), EWC(3.0)], parts_of(several)):
        torch.manual_seed(0)
        learner = make_learner(mlp(), *plugins)
        for experience in stream:
            learner.train(experience)
        models.append(weights(learner.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert several.memory is several.parts["replay"].memory
    held = [memory_bytes(part, learner.model) for part in several.parts.values()]
    assert memory_bytes(several, learner.model) == sum(filter(None, held))
    assert all(held)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_features_are_those_of_the_batch_whoever_runs_the_encoder_next(
    order, clusters, mlp, make_learner, weights
):
    """DER runs a batch of its memory between the forward pass and LwF's distillation."""
    stream, models = clusters(task_labels=True).train_stream, []
    for chosen in ((0, 1), order):
        torch.manual_seed(0)
        plugins = [LwF(0.5), DER(6, alpha=0.1)]
        learner = make_learner(mlp("multi"), *(plugins[k] for k in chosen))
        for experience in stream:
            learner.train(experience)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name])


def test_the_state_of_each_is_kept(clusters, mlp, make_learner):
    several = Several(replay=Replay(6), ewc=EWC(3.0))
    learner = make_learner(mlp(), *parts_of(several))
    learner.train(clusters().train_stream[0])
    restored = Several(replay=Replay(6), ewc=EWC(3.0))
    restored.load_state_dict(through_a_file(several.state_dict()))
    for one, other in zip(several.memory.all(), restored.memory.all(), strict=True):
        assert torch.equal(one, other)
    for name, value in several.parts["ewc"].importance.items():
        assert torch.equal(value, restored.parts["ewc"].importance[name])


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        ("[lwf,ewc]", ["scenario=recall"], "strategy: LwF asks for the class of each sample"),
        ("[finetune,replay]", ["strategy.replay.capacity=2"], "strategy.capacity=2: strategy.mem"),
        (
            "[lwf,hypernet]",
            ["seed=0"],
            "strategy: LwF may ask for answers of earlier tasks in training",
        ),
    ],
)
def test_each_is_checked(names, more, message):
    config = composed(*more, *expanded([f"strategy={names}"]))
    scenario = build_scenario(config, [])
    with pytest.raises(InputError) as caught:
        build_learner(config, scenario)
    assert str(caught.value).startswith(message)


def test_a_run_of_several(command):
    arguments = "scenario.experiences=2 scenario.task_labels=true train.epochs=1"
    outcome = command(f"'strategy=[replay, lwf]' strategy.replay.capacity=20 {arguments}")
    assert outcome.status == 0, outcome.err
    (file,) = Path("runs/split_digits/replay+lwf").rglob("result.json")
    result = json.loads(file.read_text())
    assert result["strategy"] == "replay+lwf"
    assert np.isfinite(result["accuracy"])

    outcome = command(f"strategy=[replay,lwf] strategy.lwf.strength=-1 {arguments}")
    assert outcome.status == 2
    assert outcome.err.startswith("clplat: strategy.lwf.strength=-1: expected a number of at least")


def test_a_list_may_stand_in_a_file(command):
    folder = Path("lab/strategy")
    folder.mkdir(parents=True)
    (folder / "both.yaml").write_text(
        "defaults:\n  - /strategy@replay: replay\n  - /strategy@lwf: lwf\n"
        "_target_: clplat.several.Several\n"
    )
    arguments = "scenario.experiences=2 scenario.task_labels=true train.epochs=1"
    outcome = command(f"--config-dir lab -m strategy=both,finetune {arguments}")
    assert outcome.status == 0, outcome.err
    assert list(Path("runs/split_digits/both").rglob("result.json"))


MAKERS = {
    "mir": lambda: MIR(20),
    "der": lambda: DER(20),
    "er_ace": lambda: ERACE(20),
    "lwf": LwF,
    "expert_gate": ExpertGate,
    "replay": lambda: Replay(20),
}


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("mir", "der", "the forward pass"),  # who would store narrowed labels with all inputs
        ("er_ace", "der", "the forward pass"),  # whose logits would be masked
        ("lwf", "er_ace", "the outputs"),  # which would distil masked ones
        ("lwf", "expert_gate", "the outputs"),
        ("replay", "expert_gate", "the batches"),  # whose old classes would be masked
    ],
)
def test_strategies_that_would_spoil_each_others_data_are_refused(one, other, what):
    for names in ((one, other), (other, one)):
        with pytest.raises(InputError) as error:
            Several(**{name: MAKERS[name]() for name in names})
        assert str(error.value) == (
            f"strategy=[{','.join(names)}]: both {names[0]} and {names[1]} decide on {what}; "
            "leave out one"
        )


def test_the_state_is_of_the_strategies_that_have_one():
    assert Several(finetune=FineTune(), lwf=LwF()).state_dict().keys() == {"lwf"}
