from pathlib import Path

import pytest

from poss_export.errors import InputError
from poss_export.server.settings import KEYS_VARIABLE, Keys, Limits, read_keys


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n  two  \n")
    monkeypatch.setenv(KEYS_VARIABLE, "three, four\nfive")
    keys = read_keys(file)
    assert keys
    assert all(keys.admit(key) for key in ("one", "two", "three", "four", "five"))
    assert not any(keys.admit(key) for key in ("", "one ", "# ours", "three,", "thre", "\udcff"))
    assert "one" not in repr(vars(keys))


def test_no_keys_at_all() -> None:
    assert not read_keys()
    assert not Keys()


def test_files_and_variables_without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    with pytest.raises(InputError, match=r"cannot read .*expected a file of API keys") as caught:
        read_keys(file)
    assert caught.value.options == ("api_key_file",)
    file.write_text("# none\n\n")
    with pytest.raises(InputError, match="holds no API key; write one a line"):
        read_keys(file)
    monkeypatch.setenv(KEYS_VARIABLE, " , ")
    with pytest.raises(InputError, match=f"{KEYS_VARIABLE} holds no API key"):
        read_keys()


def test_limits_are_above_zero() -> None:
    with pytest.raises(InputError, match="the limit of seconds is 0; it must be above 0"):
        Limits(seconds=0)
