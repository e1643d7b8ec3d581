"""Names of configurations say what tells them apart, and nothing else."""

from clplat.naming import settings, short_names


def choice(strategy="replay", **more):
    return {"scenario": "digits", "strategy": strategy, "backbone": "mlp", "head": "auto", **more}


def test_settings_are_dotted_without_seeds_and_places():
    config = {
        "seed": 1,
        "seed_data": 2,
        "out": "runs/a",
        "reference": None,
        "scenario": {"seed": 2, "source": "digits"},
        "train": {"epochs": 3},
    }
    assert settings(config) == {"scenario.source": "digits", "train.epochs": 3}


def test_strategies_alone_are_named_alone():
    configs = [{"strategy": {"capacity": 5}}, {"strategy": {"strength": 1.0}}]
    assert short_names([choice("replay"), choice("ewc")], configs.__getitem__) == ["replay", "ewc"]


def test_one_strategy_with_several_settings_is_told_apart_by_those_that_differ():
    configs = [
        {"seed": k, "out": str(k), "strategy": {"capacity": n, "memory": "ring"}}
        for k, n in enumerate((100, 200))
    ]
    names = short_names([choice(), choice()], configs.__getitem__)
    assert names == ["replay capacity=100", "replay capacity=200"]


def test_choices_that_differ_are_named_and_a_strategy_that_all_share_is_not():
    choices = [choice(backbone=b) for b in ("lru", "mamba", "mamba")]
    configs = [
        {"backbone": {"layer": {"phase": 1}}},
        {"backbone": {"layer": {"negative": True}}},
        {"backbone": {"layer": {"negative": False}}},
    ]
    names = short_names(choices, configs.__getitem__)
    assert names == ["lru", "mamba negative=True", "mamba negative=False"]
    choices[0]["strategy"] = "ewc"
    assert short_names(choices, configs.__getitem__)[0] == "ewc lru"


def test_keys_that_end_alike_are_written_out():
    configs = [
        {"train": {"batch_size": n}, "strategy": {"batch_size": n + 1}, "lr": n} for n in (8, 16)
    ]
    assert short_names([choice(), choice()], configs.__getitem__)[0] == (
        "replay lr=8 strategy.batch_size=9 train.batch_size=8"
    )


def test_a_key_that_repeats_another_of_the_same_ending_is_named_once():
    configs = [
        {"head": {"task_labels": told}, "scenario": {"task_labels": told}} for told in (True, False)
    ]
    configs.append({"scenario": {"task_labels": None}})
    names = short_names([choice() for _ in configs], configs.__getitem__)
    assert names == [f"replay task_labels={told}" for told in (True, False, None)]


def test_a_head_is_named_where_runs_of_one_strategy_differ_in_it():
    choices = [choice("icarl", head="nearest_mean"), choice("ewc"), choice("ewc", backbone="lru")]
    assert short_names(choices, lambda k: {}) == ["icarl mlp", "ewc mlp", "ewc lru"]
    choices.append(choice("ewc", head="multi"))
    assert short_names(choices, lambda k: {})[1::2] == ["ewc mlp auto", "ewc mlp multi"]


def test_unknown_configs_keep_the_plain_name():
    assert short_names([choice(), choice()], lambda k: {}) == ["replay", "replay"]
