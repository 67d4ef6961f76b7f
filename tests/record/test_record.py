"""The record: what is written is read again, and a wrong file is told in one line with its field's path."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner, Result

import hf_tsv
from hf_tsv.cards import render_card
from hf_tsv.cli import app
from hf_tsv.errors import HfTsvError, OutputError
from hf_tsv.record import (
    FORMAT,
    AdaptersRecord,
    MergeRecord,
    PushedTo,
    Record,
    RestoredRecord,
    SourceEntry,
    TensorEntry,
    Terms,
    json_schema,
    read_adapters_record,
    read_merge_record,
    read_record,
    to_data,
    to_text,
    write_record,
)
from hf_tsv.record import file as record_file
from tests.support import models
from tests.support.records import adapters_record, folder_merge, hub_merge, lock_of, output, typed

FORMAT_1 = Path(__file__).parent / "format1"  # written by hf-tsv 0.1.0
EXAMPLES: dict[str, Callable[[], dict[str, Any]]] = {
    "hub merge": hub_merge,
    "folder merge": folder_merge,
    "adapters": adapters_record,
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def problem_of(folder: Path, content: str | bytes) -> str:
    """The one line that is told of a record with this content."""
    raw = content.encode() if isinstance(content, str) else content
    (folder / "hf_tsv.json").write_bytes(raw)
    with pytest.raises(OutputError) as caught:
        read_record(folder)
    (problem,) = caught.value.problems
    assert "\n" not in problem
    return problem.removeprefix(f"{folder}/")


def changed(path: str, value: Any) -> str:
    """A sound record with another value at one place, which `/` leads to."""
    record = hub_merge()
    place: Any = record
    *way, last = path.split("/")
    for key in way:
        place = place[key]
    place[last] = value
    return json.dumps(record)


class TestWritten:
    @pytest.mark.parametrize("example", EXAMPLES)
    def test_what_is_written_is_read_again(self, example: str, tmp_path: Path) -> None:
        record = typed(EXAMPLES[example]())
        write_record(record, tmp_path)
        again = read_record(tmp_path)
        assert again == record
        assert type(again) is type(record)
        assert to_text(again) == (tmp_path / "hf_tsv.json").read_text("utf-8")
        assert json.loads(to_text(again)) == to_data(again)

    def test_a_field_that_says_nothing_is_left_out(self) -> None:
        entry = TensorEntry(kind="linear", shape=(2, 3), dtype="F32", method="ties", sha256="0" * 64)
        assert entry.model_dump(mode="json", exclude_defaults=True).keys() == {
            *("kind", "shape", "dtype", "method", "sha256")
        }

    def test_that_privacy_is_unknown_is_not_lost(self) -> None:
        """Offline nobody knows who may see a model; a folder is nobody else's."""
        data = hub_merge()
        data["sources"][1]["terms"] = [{"private": None}]
        terms = typed(json.loads(to_text(typed(data)))).sources[1].terms[0]
        assert terms.private is None
        assert terms.may_be_private
        assert not Terms().may_be_private

    def test_infinity_stays_infinity(self) -> None:
        data = hub_merge() | {"seconds": float("inf")}
        assert typed(json.loads(to_text(typed(data)))).seconds == float("inf")

    def test_where_it_was_pushed_is_no_part_of_the_file(self, tmp_path: Path) -> None:
        record = typed(hub_merge()).with_pushed([PushedTo("user/name", "https://x")])
        assert record.pushed[0].repo_id == "user/name"
        assert "user/name" not in to_text(record)
        assert "pushed: there is no such field" in problem_of(tmp_path, changed("pushed", []))

    def test_a_record_does_not_change(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            typed(hub_merge()).seconds = 2.0

    @pytest.mark.slow
    def test_a_large_one_takes_no_time(self, tmp_path: Path) -> None:
        """20,000 tensors: a mixture of experts. Measured: 0.45 s to write, 0.7 s to read."""
        data = hub_merge()
        name, entry = next(item for item in data["tensors"].items() if item[1].get("notes"))
        data["tensors"] = {f"{name}.{i}": entry for i in range(20_000)}
        record = typed(data)
        started = time.process_time()
        write_record(record, tmp_path)
        written = time.process_time()
        assert len(read_merge_record(tmp_path).tensors) == 20_000
        assert written - started < 4
        assert time.process_time() - written < 6


class TestWrong:
    @pytest.mark.parametrize(
        ("path", "value", "told"),
        [
            ("tensors/lm_head.weight/sha256", 5, "tensors.lm_head.weight.sha256: input should be a valid string"),
            ("tensors/lm_head.weight/sha256", "A" * 64, "tensors.lm_head.weight.sha256: string should match pattern"),
            ("tensors/lm_head.weight/shape", [1, "2"], "tensors.lm_head.weight.shape.1: input should be a valid int"),
            ("tensors/lm_head.weight/shape", [-1], "tensors.lm_head.weight.shape.0: input should be greater than"),
            ("tensors/lm_head.weight/shape", [2**63], "tensors.lm_head.weight.shape.0: input should be less than"),
            ("tensors/lm_head.weight/shape", [10**400], "tensors.lm_head.weight.shape.0: input should be less than"),
            ("tensors/lm_head.weight/x", 1, "tensors.lm_head.weight.x: there is no such field"),
            ("tensors/lm_head.weight", None, "tensors.lm_head.weight: input should be an object"),
            ("files", ["../model.safetensors"], "files.0: expected a path inside the output folder"),
            ("files", ["/etc/passwd"], "files.0: expected a path inside"),
            ("files", ["C:x"], "files.0: expected a path inside"),
            ("files", ["a\\..\\..\\b"], "files.0: expected a path inside"),
            ("files", ["a\0"], "files.0: expected a path inside"),
            ("files", [""], "files.0: expected a path inside"),
            ("checksums", {"../x": "0" * 64}, "checksums.../x.[key]: expected a path inside"),
            ("task_parts", {"t": {"file": "a/../../x", "tensors": []}}, "task_parts.t.file: expected a path inside"),
            ("adapters", {"\n": None}, 'adapters."\\n": input should be an object'),
            ("adapters", {"../t": {}}, "adapters.../t.[key]: expected a path inside"),
            ("adapters", {"a/b": {}}, "adapters.a/b.[key]: expected a name that a folder can have"),
            ("adapters", {"t": {"tiny": {}}}, "adapters.t.tiny.bytes: this field is missing (and 7"),
            ("sources", [], "sources: tuple should have at least 1 item"),
            ("sources/1/role", "friend", "sources.1.role: input should be 'base' or 'task'"),
            ("sources/1/terms", [{}, {}], "sources.1: expected one entry in terms for the model and one for its"),
            ("versions", {}, "versions.hf_tsv: this field is missing (and 4 more mistakes). Make"),
            ("kind", "cake", "kind: input tag 'cake' found using 'kind' does not match any of the expected tags"),
            ("format", "2", "format: input should be 2"),
            ("format", 0, "format: input should be 2"),
            ("format", True, "format: input should be 2"),
            ("format", 10**400, "format: unable to parse input string as an integer, exceeded maximum size"),
            ("seconds", "1.5", "seconds: input should be a valid number. Make the output again, or download it again"),
            ("evaluation", {"tasks": {}}, "evaluation.suite: this field is missing (and 2 more mistakes)"),
        ],
    )
    def test_is_told_with_the_field(self, path: str, value: Any, told: str, tmp_path: Path) -> None:
        if "/" in path and path.startswith("sources"):
            record = hub_merge()
            record["sources"][1][path.rpartition("/")[2]] = value
            content = json.dumps(record)
        else:
            content = changed(path, value)
        problem = problem_of(tmp_path, content)
        assert problem.startswith(f"hf_tsv.json: {told}")
        assert len(problem) < 300

    def test_ranks_are_numbers_or_dense(self, tmp_path: Path) -> None:
        record = adapters_record()
        record["adapters"]["code"]["faithful"]["ranks"] = {"a.weight": "whole"}
        problem = problem_of(tmp_path, json.dumps(record))
        assert "adapters.math.faithful.ranks.a.weight: expected a whole number or 'dense'" in problem

    def test_adapters_and_their_checkpoints_are_of_the_same_tasks(self, tmp_path: Path) -> None:
        problem = problem_of(tmp_path, json.dumps(adapters_record() | {"checkpoint_bytes": {"math": 1}}))
        assert "expected adapters and checkpoint_bytes to name the same tasks" in problem

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "hf_tsv.json: is not JSON: EOF"),
            (b"\xff\xfe", "hf_tsv.json: is not JSON: "),
            (b'{"kind": "\xff"}', "hf_tsv.json: is not JSON: invalid unicode"),
            (b"[" * 10**7, "hf_tsv.json: is not JSON: recursion limit"),
            (b'{"a":' * 10**7, "hf_tsv.json: is not JSON: recursion limit"),
            (b"[]", "hf_tsv.json: input should be an object"),
            (b"5", "hf_tsv.json: input should be an object"),
            (b"{}", "hf_tsv.json: kind: this field is missing"),
            (b'{"kind": "merge", "seconds": 1' + b"0" * 5000 + b"}", "hf_tsv.json: "),
        ],
        ids=["empty", "binary", "not utf-8", "deep lists", "deep objects", "list", "number", "object", "long number"],
    )
    def test_what_is_no_record_at_all(self, content: bytes, told: str, tmp_path: Path) -> None:
        assert problem_of(tmp_path, content).startswith(told)

    def test_a_huge_file_is_not_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with (tmp_path / "hf_tsv.json").open("wb") as file:
            file.truncate(record_file.MAX_BYTES + 1)
        with pytest.raises(OutputError, match="hf_tsv.json: is larger than 512 MiB, so it is not a record"):
            read_record(tmp_path)

    def test_a_folder_without_one(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="has no hf_tsv.json, so it is not an output of hf-tsv"):
            read_record(tmp_path)
        (tmp_path / "hf_tsv.json").mkdir()
        with pytest.raises(OutputError, match="hf_tsv.json: can't be read"):
            read_record(tmp_path)

    def test_another_kind_than_is_needed(self, tmp_path: Path) -> None:
        write_record(typed(hub_merge()), tmp_path)
        with pytest.raises(OutputError, match="kind: expected adapters but got merge"):
            read_adapters_record(tmp_path)
        write_record(typed(adapters_record()), tmp_path)
        with pytest.raises(OutputError, match="kind: expected a merge but got adapters"):
            read_merge_record(tmp_path)


class TestOtherFormats:
    @pytest.mark.parametrize("kind", ["merge", "adapters", "restored"])
    def test_a_record_of_0_1_0_is_refused_with_what_to_do(self, kind: str, tmp_path: Path) -> None:
        problem = problem_of(tmp_path, (FORMAT_1 / f"{kind}.json").read_bytes())
        assert problem.startswith("hf_tsv.json: was made by hf-tsv 0.1.0 as format 1, and this version")
        assert problem.endswith(
            f"reads format {FORMAT}. Make the output again with this version, or read it with pip install hf-tsv==0.1.0"
        )

    def test_a_version_that_is_none_is_not_quoted(self, tmp_path: Path) -> None:
        problem = problem_of(tmp_path, '{"format": 1, "versions": {"hf_tsv": "0.1.0; rm -rf ~"}}')
        assert "made by an earlier hf-tsv as format 1" in problem
        assert "rm -rf" not in problem

    def test_a_newer_one_asks_for_a_newer_version(self, tmp_path: Path) -> None:
        assert "is of format 7, which this version" in problem_of(tmp_path, '{"format": 7}')
        assert "is of format 3" in problem_of(tmp_path, changed("format", 3))

    def test_commands_tell_it_and_exit_with_1(self, tmp_path: Path) -> None:
        (tmp_path / "hf_tsv.json").write_bytes((FORMAT_1 / "merge.json").read_bytes())
        for command in (("card",), ("verify", "--sample", "0")):
            result = run(command[0], tmp_path, *command[1:])
            assert result.exit_code == 1
            assert "was made by hf-tsv 0.1.0" in result.stderr.replace("\n", " ")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def damage(draw: st.DrawFn, data: Any) -> Any:
    """Plain data with one place in it replaced by something else, or gone."""
    if isinstance(data, dict) and data and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(data)))
        if draw(st.integers(0, 9)) == 0:
            return {other: value for other, value in data.items() if other != key}
        return {**data, key: damage(draw, data[key])}
    if isinstance(data, list) and data and draw(st.integers(0, 4)):
        i = draw(st.integers(0, len(data) - 1))
        return [*data[:i], damage(draw, data[i]), *data[i + 1 :]]
    return draw(VALUES)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_record_is_told_or_has_a_card(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever is done to a record: it is refused in a line, or a card can be written of it."""
    sound = EXAMPLES[data.draw(st.sampled_from(sorted(EXAMPLES)))]()
    folder = tmp_path_factory.mktemp("damaged")
    output(folder, lock_of(sound))
    text = json.dumps(data.draw(st.composite(lambda draw: damage(draw, sound))()))
    (folder / "hf_tsv.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        card = render_card(read_record(folder), folder)
    except HfTsvError as error:
        card = str(error)
    assert card.startswith("---\n") or card.count("\n") == 0


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output of every kind, with all that may lie beside a merge."""
    folder = models.zoo(models.bert, tmp_path_factory.mktemp("outputs"), tasks=2)
    hf_tsv.merge(models.recipe(folder, "tall_mask", tasks=2), folder / "masks")
    hf_tsv.merge(models.recipe(folder, tasks=2, more="residuals: {rank: 1}\n"), folder / "residuals")
    hf_tsv.compress(models.recipe(folder, tasks=2), folder / "adapters", "rank=2")
    hf_tsv.merge_as_adapter(models.recipe(folder, tasks=2), folder / "as_adapter", "rank=2")
    hf_tsv.restore(folder / "adapters", "t0", folder / "restored")
    return folder


def misfits(value: Any, schema: dict[str, Any], whole: dict[str, Any]) -> list[str]:
    """What of a value isn't as a JSON schema says, by the part of the standard that ours uses."""
    if "$ref" in schema:
        return misfits(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema or "oneOf" in schema:
        found = [misfits(value, one, whole) for one in schema.get("anyOf") or schema["oneOf"]]
        return [] if [] in found else found[0]
    if "const" in schema or "enum" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [f"{value!r} is not in {schema}"]
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
    if schema.get("type", "boolean") != "boolean" and not isinstance(value, types[schema["type"]]):
        return [f"{value!r} is not {schema}"]
    if schema.get("type") == "array" and "items" in schema:
        return [misfit for item in value for misfit in misfits(item, schema["items"], whole)]
    if schema.get("type") != "object":
        return []
    wrong = [f"{key} is missing" for key in schema.get("required", []) if key not in value]
    for key, item in value.items():
        of_item = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
        if of_item is False:
            wrong.append(f"{key} is unknown")
        elif of_item is not True:
            wrong += misfits(item, of_item, whole)
    return wrong


class TestSchema:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("masks", MergeRecord),
            ("residuals", MergeRecord),
            ("adapters", AdaptersRecord),
            ("as_adapter", AdaptersRecord),
            ("restored", RestoredRecord),
        ],
    )
    def test_every_output_is_what_the_schema_says(self, outputs: Path, name: str, kind: type) -> None:
        record: Record = read_record(outputs / name)
        assert type(record) is kind
        schema = json_schema("record")
        assert misfits(json.loads((outputs / name / "hf_tsv.json").read_text("utf-8")), schema, schema) == []

    def test_the_schema_refuses_what_reading_refuses(self, outputs: Path) -> None:
        schema = json_schema("record")
        sound = json.loads((outputs / "masks" / "hf_tsv.json").read_text("utf-8"))
        for wrong in (sound | {"x": 1}, sound | {"kind": "cake"}, sound | {"files": 5}, sound | {"format": 1}):
            assert misfits(wrong, schema, schema)

    def test_the_command_prints_it(self) -> None:
        assert json.loads(run("schema").stdout) == json_schema("record")
        line = json.loads(run("schema", "evaluation").stdout)
        assert line["required"] == ["key", "score", "examples", "task", "model", "metric"]
        assert run("schema", "cake").exit_code == 2


def test_the_verbs_return_what_the_file_holds(outputs: Path, tmp_path: Path) -> None:
    record = hf_tsv.merge(models.recipe(outputs, tasks=2), tmp_path / "out")
    assert record == read_merge_record(tmp_path / "out")
    assert record.sources[0] == SourceEntry(
        role="base",
        task=None,
        model=f"{outputs}/base",
        revision=None,
        fingerprint=record.sources[0].fingerprint,
        terms=(Terms(),),
    )
    assert record.checksums.keys() >= {"config.json", "recipe.yaml", "recipe.lock.yaml"}
    restored = hf_tsv.restore(outputs / "adapters", "t1", tmp_path / "t1")
    assert restored == read_record(tmp_path / "t1")


class TestRestored:
    """A restored checkpoint has a record, but no recipe: what needs one says so."""

    @pytest.mark.parametrize("command", [("card",), ("push", "user/name")])
    def test_has_no_card_and_is_not_pushed(self, outputs: Path, command: tuple[str, ...]) -> None:
        result = run(command[0], outputs / "restored", *command[1:])
        assert result.exit_code == 1
        assert "restored checkpoint" in result.stderr.replace("\n", " ")
