"""Continual few-shot tasks on made-up images, each of which shows its class and its number."""

import hashlib
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module

from clplat.data import tensors_of
from clplat.errors import InputError
from scenarios import glyphs
from scenarios.few_shot import Tasks, disturbed, few_shot, instances, support_sets
from scenarios.glyphs import ImagesByClass

CLASSES, SAMPLES, BASE = 50, 12, 23
SHUFFLED = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(5))


def made_up(download: bool = False) -> ImagesByClass:
    """Images (1, 5, 4) that begin with class + 1 and number + 1; base classes are 23 of 50."""
    images = torch.full((CLASSES, SAMPLES, 1, 5, 4), 9, dtype=torch.uint8)
    images[:, :, 0, 0, 0] = 1 + torch.arange(CLASSES)[:, None]
    images[:, :, 0, 0, 1] = 1 + torch.arange(SAMPLES)
    return ImagesByClass("made_up", images, SHUFFLED[:BASE], SHUFFLED[BASE:48])


@pytest.fixture(autouse=True)
def source(monkeypatch):
    monkeypatch.setitem(glyphs.SOURCES, "made_up", made_up)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shown(x: torch.Tensor) -> list[tuple[int, int]]:
    """Class and number of each made-up image."""
    first = x.flatten(1)[:, :2].long() - 1
    return [(int(c), int(s)) for c, s in first]


def columns(stream):
    """Images and labels of each experience."""
    return [tuple(tensors_of(experience.dataset)[:2]) for experience in stream]


def contents(scenario) -> list[torch.Tensor]:
    pairs = columns(scenario.train_stream) + columns(scenario.test_stream)
    return [tensor for pair in pairs for tensor in pair]


def equal(one, other) -> bool:
    pairs = list(zip(contents(one), contents(other), strict=True))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


# --- support and target sets -----------------------------------------------------------------

SIZES = [  # experiences, ways, shots, targets, change_interval
    (4, 5, 1, 5, 2),
    (3, 5, 1, 4, 1),
    (3, 5, 2, 3, 3),
    (1, 7, 3, 2, 1),
    (6, 2, 2, 5, 3),
    (1, 1, 1, 1, 1),
    (2, 5, 3, 6, 2),  # all of the 12 samples
]


@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwritten"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_task_has_the_sets_that_its_five_numbers_say(sizes, overwrite):
    experiences, ways, shots, targets, interval = sizes
    numbers = experiences, ways, shots, targets, interval
    support, target = support_sets(made_up().images, *numbers, overwrite, generator(1))
    assert len(support) == len(target) == experiences
    learnt_from, asked_for, meaning = {}, {}, {}
    for k in range(experiences):
        change = k // interval
        labels = [label + (0 if overwrite else change * ways) for label in range(ways)]
        for part, held, count in ((support, learnt_from, shots), (target, asked_for, targets)):
            x, y = part[k]
            assert x.dtype == torch.uint8
            assert sorted(y.tolist()) == sorted(labels * count)
            for (of_class, number), label in zip(shown(x), y.tolist(), strict=True):
                assert meaning.setdefault((change, label), of_class) == of_class
                held.setdefault((k, of_class), []).append(number)

    # NSS * N / CCI classes, none twice; each change of classes brings others.
    assert len(set(meaning.values())) == len(meaning) == experiences * ways // interval
    given = list(learnt_from.values())
    assert all(len(set(numbers)) == shots for numbers in given)
    for of_class in meaning.values():
        of_sets = [n for (_, c), numbers in learnt_from.items() if c == of_class for n in numbers]
        assert len(set(of_sets)) == len(of_sets) == interval * shots
    assert all(len(set(numbers)) == targets for numbers in asked_for.values())

    # Across all classes of the task: no number is both learnt from and asked for.
    numbers = {n for numbers in given for n in numbers}
    assert len(numbers) == interval * shots
    assert numbers.isdisjoint(n for numbers in asked_for.values() for n in numbers)


def test_the_target_set_of_a_class_that_comes_again_is_the_same():
    _, target = support_sets(made_up().images, 4, 3, 1, 5, 2, False, generator())
    assert torch.equal(target[0][0], target[1][0])
    assert torch.equal(target[2][0], target[3][0])


def test_classes_and_samples_are_drawn_evenly():
    drawn, given, draws = torch.zeros(CLASSES), torch.zeros(SAMPLES), generator()
    for _ in range(1000):
        support, _ = support_sets(made_up().images, 2, 5, 1, 1, 1, False, draws)
        for of_class, number in (image for x, _ in support for image in shown(x)):
            drawn[of_class] += 1
            given[number] += 1
    torch.testing.assert_close(drawn, torch.full((CLASSES,), 200.0), rtol=0, atol=60)
    torch.testing.assert_close(given, torch.full((SAMPLES,), 10000 / 12), rtol=0, atol=420)


# --- the scenario ----------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_scenario_knows_how_many_classes_its_labels_are_of(overwrite):
    scenario = few_shot("made_up", 6, 4, overwrite=overwrite, tasks=2)
    assert scenario.n_classes == (4 if overwrite else 12)
    assert scenario.input_shape == (1, 5, 4)
    assert not scenario.task_labels
    for task in (scenario, *scenario.tasks):
        assert task.n_classes == scenario.n_classes
        assert len(task.train_stream) == len(task.test_stream) == 6
        _, labels = zip(*columns(task.train_stream), strict=True)
        assert set(torch.cat(labels).tolist()) == set(range(scenario.n_classes))
        for experience in (*task.train_stream, *task.test_stream):
            assert not tensors_of(experience.dataset)[2].any()


def classes_of(stream) -> set[int]:
    return {of_class for x, _ in columns(stream) for of_class, _ in shown(x)}


def used(part: str, make, **sizes) -> set[int]:
    """Classes of all tasks."""
    scenario = make("made_up", tasks=200, part=part, **sizes)
    streams = [s for t in scenario.tasks for s in (t.train_stream, t.test_stream)]
    return set().union(*map(classes_of, streams))


@pytest.mark.parametrize(
    ("make", "sizes"),
    [(few_shot, {"ways": 2}), (instances, {"images_per_set": 2, "noise": 0.0, "occlusion": 0.0})],
    ids=["few_shot", "instances"],
)
def test_tasks_are_of_all_classes_of_their_part_and_of_no_others(make, sizes):
    data = made_up()
    fifth = set(data.base[-(BASE // 5) :].tolist())
    assert used("evaluation", make, **sizes) == set(data.evaluation.tolist())
    assert used("validation", make, **sizes) == fifth
    for part in ("evaluation", "validation"):
        scenario = make("made_up", tasks=2, part=part, **sizes)
        (experience,) = scenario.streams["general"]
        x, y, task = tensors_of(experience.dataset)
        general = set(data.base.tolist()) - fifth  # the same, whichever part tasks are made of
        assert sorted(shown(x)) == sorted((c, s) for c in general for s in range(SAMPLES))
        assert len({(c, label) for (c, _), label in zip(shown(x), y.tolist(), strict=True)}) == len(
            general
        )
        assert y.unique().tolist() == list(range(len(general)))
        assert not task.any()


def test_the_classes_of_the_general_stream_are_not_those_of_tasks():
    used_ones = used("evaluation", few_shot) | used("validation", few_shot, ways=2)
    assert used_ones.isdisjoint(classes_of(few_shot("made_up").streams["general"]))


@pytest.mark.parametrize("make", [few_shot, instances])
def test_the_scenario_is_its_own_first_task(make):
    scenario = make("made_up", images_per_set=3) if make is instances else make("made_up")
    assert equal(scenario, scenario.tasks[0])


@pytest.mark.parametrize("make", [few_shot, instances])
def test_the_seed_and_the_number_of_a_task_set_it_and_nothing_else_does(make):
    sizes = {"images_per_set": 3} if make is instances else {}
    one, longer = make("made_up", tasks=4, seed=3, **sizes), make("made_up", seed=3, **sizes)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    backwards = [longer.tasks[k] for k in (3, 2, 1, 0)][::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(equal(a, b) for a, b in zip(one.tasks, backwards, strict=True))
    other = make("made_up", tasks=4, seed=4, **sizes)
    tasks = [*one.tasks, *other.tasks]
    assert not any(equal(a, b) for k, a in enumerate(tasks) for b in tasks[:k])


@pytest.mark.parametrize(
    ("make", "more", "digest"),
    [(few_shot, {}, "bfc1451605914e0d"), (instances, {"noise": 0.0}, "da6bc40847886849")],
)
def test_tasks_are_the_same_in_every_process(make, more, digest):
    tasks = [make("made_up", experiences=2, seed=7, **more).tasks[k] for k in (0, 1, 99)]
    data = b"".join(tensor.numpy().tobytes() for task in tasks for tensor in contents(task))
    assert hashlib.sha256(data).hexdigest()[:16] == digest


def test_tasks_are_made_when_they_are_asked_for():
    made = []

    def make(draws) -> Any:
        made.append(draws.initial_seed())
        return made[-1]

    tasks = Tasks(make, 10**9, 5)
    assert len(tasks) == 10**9
    assert not made
    assert tasks[-1] == tasks[10**9 - 1] == made[0]
    assert tasks[0] == 5
    assert tasks[2:8:3] == [tasks[2], tasks[5]]
    assert tasks[10**9 - 2 :] == [tasks[-2], tasks[-1]]
    seeds: Any = tasks[:1000]
    assert len(set(seeds)) == 1000


@pytest.mark.parametrize("index", [3, -4])
def test_there_is_no_task_beyond_the_last(index):
    def make(draws) -> Any:
        return draws.initial_seed()

    tasks = Tasks(make, 3, 0)
    assert [*tasks] == [tasks[0], tasks[1], tasks[2]]
    with pytest.raises(IndexError, match=f"^task {index} of 3$"):
        tasks[index]


# --- the instance test -----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 12), (2, 6), (4, 3), (12, 1), (3, 2)], ids=str)
def test_every_image_is_a_class_among_images_of_one_class(sizes):
    experiences, images_per_set = sizes
    count = experiences * images_per_set
    scenario = instances("made_up", *sizes, targets=3, occlusion=0.0, noise=0.0, tasks=3)
    assert scenario.n_classes == count
    of_tasks = set()
    for task in scenario.tasks:
        support, target = columns(task.train_stream), columns(task.test_stream)
        assert len(support) == len(target) == experiences
        images = [image for x, _ in support for image in shown(x)]
        assert len(set(images)) == count
        assert len({of_class for of_class, _ in images}) == 1
        assert torch.cat([y for _, y in support]).tolist() == list(range(count))
        for (x, y), (asked, label) in zip(support, target, strict=True):
            assert label.tolist() == y.repeat_interleave(3).tolist()
            assert torch.equal(asked, x.repeat_interleave(3, 0))  # undisturbed here
        of_tasks.add(images[0][0])
    assert len(of_tasks) > 1


def test_targets_are_the_images_of_their_labels_each_disturbed_anew():
    scenario = instances(experiences=3, images_per_set=4, targets=6, noise=0.0, seed=1)
    squares = set()
    pairs = zip(columns(scenario.train_stream), columns(scenario.test_stream), strict=True)
    for (x, y), (asked, label) in pairs:
        of_label = dict(zip(y.tolist(), x, strict=True))
        for image, k in zip(asked, label.tolist(), strict=True):
            changed = image != of_label[k]
            assert not image[changed].any()
            rows, columns_ = changed[0].nonzero().T
            if len(rows):
                assert max(int(rows.max() - rows.min()), int(columns_.max() - columns_.min())) < 5
                squares.add((int(rows.min()), int(columns_.min())))
    assert len(squares) > 25  # of 72 targets, on 144 places

    noisy = instances(experiences=3, images_per_set=4, targets=6, seed=1)
    support = torch.cat([x for x, _ in columns(noisy.train_stream)]).float().flatten(1)
    for asked, label in columns(noisy.test_stream):
        assert asked.dtype == torch.uint8
        assert torch.equal(torch.cdist(asked.float().flatten(1), support).argmin(1), label)


# --- occlusion and noise ---------------------------------------------------------------------


def naive_square(image: torch.Tensor, side: int, top: int, left: int) -> torch.Tensor:
    made = image.clone()
    for channel in range(image.shape[0]):
        for row in range(top, top + side):
            for column in range(left, left + side):
                made[channel, row, column] = 0
    return made


@pytest.mark.parametrize(
    ("shape", "occlusion", "side"),
    [
        ((3, 7, 5), 0.4, 2),
        ((1, 5, 9), 0.5, 2),
        ((1, 16, 16), 0.3, 5),
        ((2, 6, 6), 0.99, 6),
        ((1, 4, 6), 0.1, 0),
    ],
)
def test_each_image_has_one_black_square_somewhere_within(shape, occlusion, side):
    images = torch.randint(1, 256, (2000, *shape), dtype=torch.uint8, generator=generator())
    given, made = images.clone(), disturbed(images, occlusion, 0.0, generator(1))
    assert torch.equal(images, given)
    assert made.dtype == torch.uint8
    places = []
    for image, after in zip(images, made, strict=True):
        black = (after == 0).all(0).nonzero()
        assert len(black) == side**2
        if side:
            top, left = black.min(0).values.tolist()
            assert torch.equal(after, naive_square(image, side, top, left))
            places.append((top, left))
        else:
            assert torch.equal(after, image)
    if side:
        _, height, width = shape
        reached = {(i, j) for i in range(height - side + 1) for j in range(width - side + 1)}
        assert set(places) == reached


def test_noise_has_the_deviation_that_is_asked_for_and_is_of_each_pixels_own():
    grey = torch.full((300, 2, 9, 7), 128, dtype=torch.uint8)
    noise = disturbed(grey, 0.0, 0.1, generator(2)).double() - 128
    assert noise.mean().abs() < 0.6
    assert noise.std().item() == pytest.approx(25.5, rel=0.02)
    for one, other in ((noise[:, 0], noise[:, 1]), (noise[:-1], noise[1:])):
        together = torch.stack([one.flatten(), other.flatten()])
        assert torch.corrcoef(together)[0, 1].abs() < 0.03


def test_noise_lies_on_the_square_too_and_stays_within_the_range_of_pixels():
    white = torch.full((400, 1, 8, 8), 255, dtype=torch.uint8)
    made = disturbed(white, 0.5, 0.2, generator(3)).double()
    dark = made < 128  # 2.5 deviations from either
    assert dark.double().mean().item() == pytest.approx(0.25, abs=0.01)
    # Half of a normal's values are cut off at black and at white; the others' mean is known.
    cut = 0.2 * 255 / (2 * torch.pi) ** 0.5
    assert made[dark].mean().item() == pytest.approx(cut, abs=1.0)
    assert made[~dark].mean().item() == pytest.approx(255 - cut, abs=1.0)
    assert (made[dark] == 0).double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_without_square_and_noise_every_value_stays():
    images = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    assert torch.equal(disturbed(images, 0.0, 0.0, generator()), images)


def test_the_generator_sets_what_is_disturbed():
    images = made_up().images[0]
    one, same, other = (disturbed(images, 0.5, 0.1, generator(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# --- what is refused -------------------------------------------------------------------------

TASK_LABELS = (
    "scenario.task_labels=true: a target set asks for the classes of all support sets at once; "
    "set scenario.task_labels=false"
)
PART = "scenario.part=test: expected one of evaluation, validation"
REFUSED = [
    (few_shot, {"task_labels": True}, TASK_LABELS),
    (instances, {"task_labels": True}, TASK_LABELS),
    (few_shot, {"part": "test"}, PART),
    (instances, {"part": "test"}, PART),
    (
        few_shot,
        {"change_interval": 3},
        "scenario.change_interval=3: expected a divisor of scenario.experiences=4, so that all "
        "classes have as many support sets; set scenario.experiences=6, or another interval",
    ),
    (
        few_shot,
        {"change_interval": 5},
        "scenario.change_interval=5: expected a divisor of scenario.experiences=4, so that all "
        "classes have as many support sets; set scenario.experiences=5, or another interval",
    ),
    (
        few_shot,
        {"ways": 13},
        "scenario.ways=13: 26 classes are asked for and the evaluation part of made_up has 25; "
        "lower scenario.ways or scenario.experiences",
    ),
    (
        few_shot,
        {"ways": 3, "part": "validation"},
        "scenario.ways=3: 6 classes are asked for and the validation part of made_up has 4; "
        "lower scenario.ways or scenario.experiences",
    ),
    (
        few_shot,
        {"shots": 4},
        "scenario.shots=8, scenario.targets=5: of each class 13 samples are asked for and made_up "
        "has 12; lower one of them",
    ),
    (
        instances,
        {"images_per_set": 4},
        "scenario.images_per_set=4: 16 images of one class are asked for and made_up has 12; "
        "lower it, or scenario.experiences",
    ),
    *(
        (
            instances,
            {"occlusion": value},
            f"scenario.occlusion={value}: expected a share of an image's side, at least 0 and "
            "below 1; choose 0.3",
        )
        for value in (1.0, -0.1, float("nan"))
    ),
    *(
        (instances, {"noise": value}, f"scenario.noise={value}: expected at least 0; choose 0.1")
        for value in (-0.1, float("nan"))
    ),
    *(
        (few_shot, {key: value}, f"scenario.{key}={value}: expected at least 1; raise it")
        for key in ("experiences", "ways", "shots", "targets", "change_interval", "tasks")
        for value in (0, -2)
    ),
    *(
        (instances, {key: 0}, f"scenario.{key}=0: expected at least 1; raise it")
        for key in ("experiences", "images_per_set", "targets", "tasks")
    ),
]


@pytest.mark.parametrize(("make", "settings", "message"), REFUSED)
def test_bad_settings_are_told(make, settings, message):
    with pytest.raises(InputError) as error:
        make("made_up", **settings)
    assert str(error.value) == message


def test_as_much_as_there_is_is_not_refused():
    few_shot("made_up", experiences=5, ways=5, change_interval=1, shots=2, targets=10)
    few_shot("made_up", experiences=1, ways=4, change_interval=1, part="validation")
    instances("made_up", experiences=4, images_per_set=3)


def test_an_unknown_source_is_refused():
    with pytest.raises(InputError, match=r"^scenario.source=digits: expected one of digit_glyphs"):
        few_shot("digits")


@pytest.mark.parametrize("make", [few_shot, instances])
def test_a_source_of_too_few_base_classes_to_set_some_apart_is_refused(make, monkeypatch):
    def small(download: bool = False) -> ImagesByClass:
        return ImagesByClass("small", made_up().images, SHUFFLED[:4], SHUFFLED[4:40])

    monkeypatch.setitem(glyphs.SOURCES, "small", small)
    more = {"change_interval": 1} if make is few_shot else {}
    make("small", 1, 1, **more)
    with pytest.raises(InputError, match="validation part of small has 0"):
        make("small", 1, 1, part="validation", **more)


# --- the grid --------------------------------------------------------------------------------

GRID = {  # NSS, N, CCI, overwrite, tasks (Antoniou et al. 2020; the last four of Kowadlo et al.)
    **{f"new_samples_{n}": (n, 5, n, True, 600) for n in (3, 5, 10)},
    **{f"new_classes_{n}": (n, 5, 1, False, 600) for n in (3, 5, 10)},
    **{f"new_classes_overwritten_{n}": (n, 5, 1, True, 600) for n in (3, 5, 10)},
    **{f"classes_and_samples_{n}": (n, 5, 2, False, 600) for n in (4, 8)},
    "ways_2": (20, 2, 2, False, 100),
    "ways_10": (4, 10, 2, False, 100),
    "ways_100": (4, 100, 2, False, 100),
}
INSTANCES = {"1x20": (1, 20), "2x10": (2, 10), "4x5": (4, 5), "10x2": (10, 2), "20x1": (20, 1)}


def test_the_configs_are_the_papers_grid():
    with initialize_config_module("clplat.conf", version_base="1.3"):
        for name, numbers in GRID.items():
            config = compose("config", [f"scenario=cfsl/{name}"])
            chosen, keys = config.scenario, ("experiences", "ways", "change_interval", "overwrite")
            assert (*(chosen[key] for key in keys), chosen.tasks) == numbers, name
            assert (chosen.shots, chosen.targets) == (1, 5)
            assert chosen.ways * chosen.shots <= config.train.batch_size
        for name, numbers in INSTANCES.items():
            chosen = compose("config", [f"scenario=cfsl/instance_{name}"]).scenario
            assert (chosen.experiences, chosen.images_per_set) == numbers, name
            assert chosen.occlusion > 0 < chosen.noise
