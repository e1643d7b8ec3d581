"""What may have been meant by a mistyped key: whatever else lies in the user's folders."""

from pathlib import Path

import pytest

STRENGTH = "strategy.strenght: no such key (did you mean strategy.strength?)"

UNREADABLE = {
    "invalid": b"a: [1,\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a list": b"- a\n- b\n",
    "a text": b"hello\n",
    "not UTF-8": b"a: \xff\xfe\n",
    "a cycle": b"a: &a {b: *a}\n",
    "a bomb": b"x0: &x0 1\n"
    + b"".join(b"x%d: &x%d {a: *x%d, b: *x%d}\n" % (n, n, n - 1, n - 1) for n in range(1, 27)),
    "a wrong tag": b"a: !!timestamp never\n",
}


def lab(name: str, content: bytes) -> None:
    """A file of the user's, in the group `strategy` unless another is named."""
    file = Path("lab", name if "/" in name else f"strategy/{name}").with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_is_not_used_and_cannot_be_read_changes_no_message(command, content):
    lab("other", content)
    outcome = command("--config-dir lab strategy=ewc strategy.strenght=3")
    assert outcome.status == 2
    assert STRENGTH in outcome.err
    assert "Traceback" not in outcome.err


def test_a_folder_that_is_named_as_a_file_is_no_choice(command):
    Path("lab/strategy/no_choice.yaml").mkdir(parents=True)
    outcome = command("--config-dir lab strategy=ewc strategy.strenght=3")
    assert outcome.status == 2
    assert STRENGTH in outcome.err
    assert "no_choice" not in command("--config-dir lab --help").out


def test_help_shows_a_file_that_is_not_utf_8(command):
    lab("binary", b"a: \xff # kept\n")
    outcome = command("--config-dir=lab --help strategy=binary")
    assert outcome.status == 0
    assert "# kept" in outcome.out


FOUND = {
    "scenario=cfsl/ways_10 scenario.way=3": "(did you mean scenario.ways?)",
    "scenario=cfsl/ways_10 scenario.shotss=3": "(did you mean scenario.shots?)",
    "hypernet=mlp hypernet.embeding=3": "(did you mean hypernet.generator.embedding?)",
    "hypernet=mlp hypernet.embedding=3": "(did you mean hypernet.generator.embedding?)",
    "backbone=mamba backbone.widht=3": "(did you mean backbone.width?)",
    "backbone=mamba backbone.layer.expansoin=3": "(did you mean backbone.layer.expansion?)",
    "strategy=[ewc,replay] strategy.strength=5": "(did you mean strategy.ewc.strength?)",
    "strategy=[ewc,replay] strategy.strenght=5": "(did you mean strategy.ewc.strength?)",
    "strategy=EWC": "strategy=EWC: no such choice (did you mean ewc?)",
    "strategy=ewc strategy.Strength=3": "(did you mean strategy.strength?)",
    "\"strategy='ewc'\" strategy.strenght=3": f"{STRENGTH}; clplat --help strategy=ewc lists them",
    "-m strategy=finetune,mas strategy.strength=3": "(it belongs to strategy=mas, ewc, ",
    "strategy=finetune strategy.strength=3": " more); clplat --help strategy=finetune",
}


@pytest.mark.parametrize("arguments", FOUND)
def test_what_was_meant_is_found(command, arguments):
    outcome = command(arguments)
    assert outcome.status == 2
    assert FOUND[arguments] in outcome.err
    assert "Traceback" not in outcome.err


def test_what_a_file_of_the_users_inherits_is_known(command):
    lab("base", b"strength: 1\ndefaults: [self_made]\n")
    lab("self_made", b"defaults: [base, _self_, 3]\n")  # in a circle
    lab("mine", b"defaults: [/strategy/base, {override /head: single}, missing]\nown: 1\n")
    lab("sub/mine", b"x: 1\n")
    outcome = command("--config-dir lab strategy=ewc strategy.own=3")
    assert "(it belongs to strategy=mine)" in outcome.err
    outcome = command("--config-dir lab strategy=finetune strategy.strength=3")
    assert "(it belongs to strategy=base, " in outcome.err
