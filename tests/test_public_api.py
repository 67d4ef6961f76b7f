"""The public surface: pinned, sorted, documented."""

import inspect

import hf_tsv


def test_the_public_names_are_these() -> None:
    assert hf_tsv.__all__ == sorted(hf_tsv.__all__)
    assert set(hf_tsv.__all__) == {
        *(
            "AdapterOptions",
            "HfTsvError",
            "Hub",
            "Limits",
            "Options",
            "Pushing",
            "Search",
            "Verification",
            "compress",
            "evaluate",
            "inspect",
            "load_recipe",
            "load_task",
            "merge",
            "merge_as_adapter",
            "merge_modules",
            "merge_state_dicts",
            "plan",
            "push",
            "restore",
            "tune",
            "verify",
        ),
    }


def test_every_public_name_is_there_and_documented() -> None:
    for name in hf_tsv.__all__:
        value = getattr(hf_tsv, name)
        assert inspect.isclass(value) or inspect.isfunction(value), name
        assert inspect.getdoc(value), name
