"""Tokenizers: there and back, what they count as characters, and that they learn the same again."""

import subprocess
import sys

import pytest
import torch

from clplat.errors import InputError
from scenarios.texts import read
from scenarios.tokens import (
    begun,
    bpe_tokenizer,
    byte_alphabet,
    byte_tokenizer,
    character_tokenizer,
    make_tokenizer,
)

MIXED = "naïve — 日本語 🙂 e\u0301\n\ttab <unk> \x00 " * 3 + read("python")[:20000]


@pytest.fixture(scope="module")
def package():
    return pytest.importorskip("tokenizers")


def save(tokenizer, folder):
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return str(file)


@pytest.fixture
def byte_level(package, tmp_path):
    """A byte-level tokenizer of 400 kinds, with a special token, and its file."""
    models, pre, trainers = package.models, package.pre_tokenizers, package.trainers
    tokenizer = package.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>"],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([read("python")[:50000]], trainer)
    tokenizer.enable_truncation(10)  # as models save them: it must not hold here
    tokenizer.enable_padding(length=10)
    return tokenizer, save(tokenizer, tmp_path)


def test_characters_begin_at_bytes_that_do_not_continue_one():
    for text in ("", "abc", "é", "日本", "🙂", MIXED):
        assert begun(text.encode()) == len(text)
    assert begun("日".encode()[1:]) == 0


def test_bytes_are_their_own_tokens():
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode(MIXED)
    assert tokens.tolist() == list(MIXED.encode())
    assert tokenizer.vocabulary == 256
    assert int(tokenizer.characters[tokens.long()].sum()) == len(MIXED)


def test_characters_are_numbered_by_code_point_with_one_for_the_unknown():
    tokenizer = character_tokenizer(["hello", "日é"])
    alphabet = sorted(set("hello日é"))
    assert tokenizer.vocabulary == len(alphabet) + 1
    text = "oh🙂 é日a"
    expected = [alphabet.index(c) if c in alphabet else len(alphabet) for c in text]
    assert tokenizer.encode(text).tolist() == expected
    assert tokenizer.characters.tolist() == [1] * tokenizer.vocabulary
    assert tokenizer.encode("").tolist() == []


def test_the_byte_alphabet_is_that_of_the_package(package):
    letters = byte_alphabet()
    assert sorted(letters.values()) == list(range(256))
    assert set(letters) == set(package.pre_tokenizers.ByteLevel.alphabet())
    decode = package.decoders.ByteLevel().decode
    assert all(decode([letter]) == chr(b) for letter, b in letters.items() if b < 128)
    written = {b: letter for letter, b in letters.items()}
    assert decode([written[b] for b in "日é".encode()]) == "日é"


def test_bpe_loses_nothing_and_counts_all_characters(package):
    tokenizer = bpe_tokenizer([read("python")[:50000], "日本語" * 50], 300)
    assert tokenizer.vocabulary == 300
    tokens = tokenizer.encode(MIXED)
    assert 0.3 * len(MIXED) < len(tokens) < 0.9 * len(MIXED)
    assert int(tokenizer.characters[tokens].sum()) == len(MIXED)
    assert len(bpe_tokenizer(["ab"], 300).characters) == 257  # the bytes, and "ab"


def test_bpe_learns_the_same_in_another_process(package):
    script = (
        "from scenarios.texts import read; from scenarios.tokens import bpe_tokenizer;"
        "found = bpe_tokenizer([read('python')[:50000]], 300);"
        "print(found.encode(read('english')[:3000]).tolist())"
    )
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    here = bpe_tokenizer([read("python")[:50000]], 300).encode(read("english")[:3000])
    assert other.strip() == str(here.tolist())


def test_a_saved_tokenizer_gives_whole_texts_from_its_file_or_folder(byte_level, tmp_path):
    given, file = byte_level
    given.no_truncation()
    given.no_padding()
    for path in (file, str(tmp_path)):
        tokenizer = make_tokenizer(path, [], 0)
        tokens = tokenizer.encode(MIXED)
        assert tokens.tolist() == given.encode(MIXED).ids
        assert int(tokenizer.characters[tokens].sum()) == len(MIXED)
        assert tokenizer.characters[given.token_to_id("<unk>")] == 5
        assert tokenizer.vocabulary == 400


def test_tokens_of_characters_with_bytes_to_fall_back_on_are_counted(package, tmp_path):
    """As SentencePiece's are: a space is a letter of its own, and one comes before the text."""
    kinds = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abé", "ab", "▁ab"]
    merges = [("a", "b"), ("▁", "ab")]
    vocabulary = {kind: k for k, kind in enumerate(kinds)}
    model = package.models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = package.Tokenizer(model)
    tokenizer.normalizer = package.normalizers.Sequence(
        [package.normalizers.Prepend("▁"), package.normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = package.decoders.Sequence([package.decoders.ByteFallback()])
    found = make_tokenizer(save(tokenizer, tmp_path), [], 0)
    text = "ab é日ab ba b"
    tokens = found.encode(text)
    assert int(found.characters[tokens].sum()) == len(text) + 1
    counts = dict(zip(kinds, found.characters.tolist(), strict=True))
    assert [counts[k] for k in ("▁ab", "é", "<0x41>", "<0xE6>", "<0x97>")] == [3, 1, 1, 1, 0]


def test_a_tokenizer_that_loses_text_is_refused(package, tmp_path):
    vocabulary = {"[UNK]": 0, "some": 1, "words": 2}
    tokenizer = package.Tokenizer(package.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = package.pre_tokenizers.Whitespace()
    file = save(tokenizer, tmp_path)
    message = "its tokens stand for 90 characters where the text has 110; expected one that keeps"
    with pytest.raises(InputError, match=f"scenario.tokenizer={file}: {message}"):
        make_tokenizer(file, [], 0).encode("some words " * 10)


@pytest.mark.parametrize("vocabulary", [0, 255])
def test_bpe_begins_with_the_bytes(vocabulary):
    message = f"scenario.vocabulary={vocabulary}: expected at least 256, for bpe begins with the by"
    with pytest.raises(InputError, match=message):
        make_tokenizer("bpe", ["text"], vocabulary)


def test_an_unknown_or_damaged_tokenizer_is_told(package, tmp_path):
    message = "scenario.tokenizer=words: no such tokenizer; expected byte, character, bpe, a token"
    with pytest.raises(InputError, match=message):
        make_tokenizer("words", [], 0)
    with pytest.raises(InputError, match="no such tokenizer"):
        make_tokenizer(str(tmp_path), [], 0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"expected a tokenizer.json of the package tokenizers \("):
        make_tokenizer(str(tmp_path), [], 0)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    message = r"scenario.tokenizer=bpe: needs the package tokenizers.*pip install 'clplat\[text\]'"
    with pytest.raises(InputError, match=message):
        make_tokenizer("bpe", ["text"], 300)
    tokenizer = make_tokenizer("byte", [], 300)  # which needs none
    assert torch.equal(tokenizer.encode("a"), torch.tensor([97], dtype=torch.uint8))
