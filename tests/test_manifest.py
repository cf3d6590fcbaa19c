"""A manifest is read back as it was written, and refuses whatever does not belong to it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import PASSAGES, tiny_encoder

from indexes import Corpus, Encoder, Manifest, MismatchError
from indexes.directory.manifest import EncoderRecord, FileRecord, SegmentRecord

# printf 'hello\n' | sha256sum
HELLO_SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    encoder = tiny_encoder([p.contents for p in PASSAGES])
    return Encoder(encoder.model, name="tiny", question_prompt="q: ", passage_prompt="")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_passages(PASSAGES)


@pytest.fixture
def manifest(encoder: Encoder, corpus: Corpus) -> Manifest:
    return Manifest(
        passages=12,
        dimension=24,
        factory="Flat",
        corpus_fingerprint=corpus.fingerprint,
        corpus_source="corpus.jsonl",
        encoder=EncoderRecord.of(encoder),
        segments=(SegmentRecord("000000", 12),),
        files={"sub/hello.txt": FileRecord(6, HELLO_SHA256)},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/hello.txt").write_bytes(b"hello\n")
    return tmp_path


def changed(manifest: Manifest, **changes: object) -> str:
    return json.dumps({**json.loads(manifest.to_json()), **changes})


def test_json_is_deterministic_complete_and_read_back(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == manifest
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()
    two = {"b": FileRecord(1, "x"), "a": FileRecord(2, "y")}
    backwards = dict(reversed(two.items()))
    assert replace(manifest, files=two).to_json() == replace(manifest, files=backwards).to_json()
    data = json.loads(manifest.to_json())
    assert (data["metric"], data["format_version"]) == ("inner_product", 2)
    assert data["encoder"]["question_prompt"] == "q: "
    assert data["created_by"].startswith("dro-rag ")
    assert set(data["libraries"]) >= {"torch", "faiss-cpu", "sentence-transformers"}


def test_a_manifest_without_allow_untested_is_read(manifest: Manifest) -> None:
    old = json.loads(manifest.to_json())
    assert old.pop("allow_untested") is False
    assert Manifest.from_json(json.dumps(old)) == manifest
    allowed = replace(manifest, allow_untested=True)
    assert Manifest.from_json(allowed.to_json()) == allowed
    with pytest.raises(MismatchError, match="'allow_untested' must be bool, but got 'yes'"):
        Manifest.from_json(changed(manifest, allow_untested="yes"))


def test_encoder_and_file_records(encoder: Encoder, folder: Path) -> None:
    record = EncoderRecord.of(encoder)
    assert (record.name, record.dtype, record.max_length, record.revision) == ("tiny", "float32", None, None)
    assert record.fingerprint == encoder.fingerprint
    assert FileRecord.of(folder / "sub/hello.txt") == FileRecord(6, HELLO_SHA256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, r"reads index format 2, but the manifest has format 1"),
        ({"segments": [{"name": "../1", "rows": 12}]}, r"A segment is named by a number .* names '\.\./1'"),
        ({"segments": [{"name": "000000"}]}, r"segments must have exactly the fields \['name', 'rows'\]"),
        ({"segments": {}}, r"'segments' must be list"),
        ({"deleted": "../deleted.npy"}, r"only name files inside its directory, but it names '\.\./deleted\.npy'"),
        ({"bm25": "/etc"}, r"only name files inside its directory, but it names '/etc'"),
        ({"extra": 1}, r"must have exactly the fields .*'extra'"),
        ({"passages": "12"}, r"'passages' must be int, but got '12'"),
        ({"passages": True}, r"'passages' must be int, but got True"),
        ({"factory": None}, r"'factory' must be str, but got None"),
        ({"files": {"a": {"bytes": 1}}}, r"file 'a' must have exactly the fields \['bytes', 'sha256'\]"),
        ({"encoder": {"name": "x"}}, r"encoder must have exactly the fields"),
        ({"encoder": "x"}, r"'encoder' must be dict"),
        ({"next_segment": 0}, r"its own number, below that of the next one, but there are \[0\] and the next is 0"),
        ({"segments": 2 * [{"name": "000000", "rows": 6}]}, r"its own number, .* but there are \[0, 0\]"),
        ({"milvus": {"a": "b"}}, r"'milvus' .* must be empty or hold \['collection', 'uri'\], but it holds \['a'\]"),
        (
            {"chunking": {"a": 1}},
            r"'chunking' .* must be empty or hold \['max_tokens', 'overlap', 'prompt', 'text_format'\]",
        ),
    ],
)
def test_an_invalid_manifest_is_refused(changes: dict, message: str, manifest: Manifest) -> None:
    with pytest.raises(MismatchError, match=message):
        Manifest.from_json(changed(manifest, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format_version"', "is broken: Expecting"),
        (b"[]", 'must have a "format_version"'),
        (b"\xff", "is not: "),
    ],
)
def test_broken_json_is_refused_with_its_path(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(MismatchError, match=rf"manifest\.json.*{message}|{message}.*manifest\.json|{message}"):
        Manifest.load(path)
    with pytest.raises(MismatchError, match=r"must be readable, but .*none\.json is not"):
        Manifest.load(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/etc/passwd", "C:/windows", "a\\..\\b", ""])
def test_a_file_outside_the_directory_is_refused(name: str, manifest: Manifest) -> None:
    with pytest.raises(MismatchError, match="only name files inside its directory"):
        Manifest.from_json(changed(manifest, files={name: {"bytes": 1, "sha256": "0"}}))


def test_files_are_compared_by_size_and_on_request_by_checksum(manifest: Manifest, folder: Path) -> None:
    file = folder / "sub/hello.txt"
    manifest.verify_files(folder, checksums=True)
    file.write_bytes(b"Hello\n")
    manifest.verify_files(folder, checksums=False)
    with pytest.raises(MismatchError, match=rf"hello\.txt must have the SHA-256 {HELLO_SHA256}, .*changed after"):
        manifest.verify_files(folder, checksums=True)
    file.write_bytes(b"hell")
    with pytest.raises(MismatchError, match=r"must have 6 bytes, but it has 4: it was truncated"):
        manifest.verify_files(folder, checksums=False)
    file.write_bytes(b"hello, hello")
    with pytest.raises(MismatchError, match=r"must have 6 bytes, but it has 12: it was changed"):
        manifest.verify_files(folder, checksums=False)
    file.unlink()
    with pytest.raises(MismatchError, match=r"must hold 'sub/hello\.txt', but .* is missing"):
        manifest.verify_files(folder, checksums=False)


def test_encoders_are_compared_by_fingerprint_and_not_by_name(manifest: Manifest, encoder: Encoder) -> None:
    manifest.check_encoder(Encoder(encoder.model, name="elsewhere", question_prompt="q: ", passage_prompt=""))
    other = tiny_encoder([p.contents for p in PASSAGES], seed=1)
    same_prompts = Encoder(other.model, name="tiny", question_prompt="q: ", passage_prompt="")
    with pytest.raises(MismatchError, match=r"built with the encoder 'tiny' .*its weights differ"):
        manifest.check_encoder(same_prompts)
    with pytest.raises(MismatchError, match=r"its question_prompt is 'Q ' instead of 'q: '\. Open it with"):
        manifest.check_encoder(Encoder(other.model, question_prompt="Q ", passage_prompt=""))


def test_another_corpus_is_refused(manifest: Manifest, corpus: Corpus) -> None:
    manifest.check_corpus(corpus)
    edited = [replace(PASSAGES[0], text="Hamlet is a comedy."), *PASSAGES[1:]]
    with pytest.raises(MismatchError, match=r"12 passages of 'corpus\.jsonl' .* a corpus of 12 passages"):
        manifest.check_corpus(Corpus.from_passages(edited))


@pytest.mark.parametrize(
    ("name", "revision", "expected"),
    [
        (None, None, ("me/encoder", "v1")),
        ("me/encoder", None, ("me/encoder", "v1")),
        ("me/encoder", "v2", ("me/encoder", "v2")),
        ("me/copy", None, ("me/copy", None)),
        ("me/copy", "v2", ("me/copy", "v2")),
    ],
)
def test_the_revision_of_an_encoder(
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    revision: str | None,
    expected: tuple[str, str | None],
) -> None:
    """A recorded revision is one of the recorded name, whoever says that name."""
    loaded = []
    monkeypatch.setattr(
        Encoder, "from_pretrained", lambda name, *, revision, **options: loaded.append((name, revision))
    )
    replace(EncoderRecord.of(encoder), name="me/encoder", revision="v1").load(name, revision=revision)
    assert loaded == [expected]
