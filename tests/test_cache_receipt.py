"""A receipt reads back as it was written, or is refused by name."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.errors import CannotFingerprint, ReceiptDamaged, SharedFileListDamaged
from cache.receipt import FORMAT_VERSION, FileEntry, Receipt, read_receipt
from cache.shared_files import iter_shared_files

FILE = Path("artifacts/encode/abc/receipt.json")
RECEIPT = Receipt(
    stage="encode",
    fingerprint="a" * 64,
    identity="b" * 64,
    version=3,
    params={"chunk_seconds": 0.1, "filters": ["a"]},
    inputs={"ingest": "c" * 64},
    components={"autoencoder": "sha256:00"},
    facts={"num_clips": 2, "loss": 1e-9, "note": "é"},
    files=(FileEntry(name="deep/manifest.parquet", num_bytes=3, sha256="sha256:11"),),
    environment={"torch": "2.13.0"},
    started="2026-01-01T00:00:00+00:00",
    finished="2026-01-01T00:00:05+00:00",
)


def test_a_receipt_reads_back_as_it_was_written():
    assert Receipt.from_json(RECEIPT.to_json(), FILE) == RECEIPT


def test_its_text_is_readable():
    assert json.loads(RECEIPT.to_json())["facts"]["num_clips"] == 2
    assert '\n "stage": "encode"' in RECEIPT.to_json()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_flipped_bit_is_noticed_or_harmless(data):
    text = bytearray(RECEIPT.to_json().encode())
    text[data.draw(st.integers(0, len(text) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert Receipt.from_json(bytes(text), FILE) == RECEIPT  # white space became other white space
    except ReceiptDamaged as error:
        assert str(FILE) in str(error)


@pytest.mark.parametrize("text", ["", "null", "[]", '{"stage": "encode"}', "{" * 10_000, RECEIPT.to_json()[:200]])
def test_what_is_no_receipt_is_refused_by_name(text):
    with pytest.raises(ReceiptDamaged, match=r"receipt\.json cannot be read as a receipt .*verify --repair"):
        Receipt.from_json(text, FILE)


def test_a_receipt_of_another_format_version_says_so():
    newer = replace(RECEIPT, format_version=FORMAT_VERSION + 1).to_json()
    with pytest.raises(ReceiptDamaged, match="format_version is 2, this program reads 1"):
        Receipt.from_json(newer, FILE)


def test_facts_that_are_not_json_are_refused_before_anything_is_written():
    with pytest.raises(CannotFingerprint, match=r"facts\.best_loss cannot be fingerprinted: nan"):
        replace(RECEIPT, facts={"best_loss": float("nan")}).to_json()


def test_bytes_of_all_files_are_summed():
    assert RECEIPT.num_bytes == 3


def folder_in_place(file):
    file.mkdir()


def loop_in_place(file):
    file.symlink_to(file.name)


@pytest.mark.parametrize(
    ("put", "said"),
    [(folder_in_place, "a folder"), (loop_in_place, "a link in a circle"), (os.mkfifo, "no regular file")],
)
def test_what_lies_in_place_of_a_receipt_is_damage_and_is_not_waited_for(tmp_path, put, said):
    put(tmp_path / "receipt.json")
    with pytest.raises(ReceiptDamaged, match=f"it is {said}"):
        read_receipt(tmp_path / "receipt.json")


def test_a_pipe_in_place_of_the_list_of_shared_files_is_damage_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "needs.tsv")
    with pytest.raises(SharedFileListDamaged):
        list(iter_shared_files(tmp_path))
