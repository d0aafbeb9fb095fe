"""References to code: by module, by file, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompile.errors import InputError
from edgecompile.reference import is_function, load_function


def test_forms() -> None:
    assert all(is_function(t) for t in ("a.b:c", "a:c", "x/y.py:make", "./y.py:make"))
    assert not any(is_function(t) for t in ("a", "a.py", "a:b:c", "a b:c", ":c", "a:", "C:/x.onnx"))


def test_a_file_and_its_edits(tmp_path: Path) -> None:
    """An edited file is read again, in one process."""
    file = tmp_path / "mine.py"
    file.write_text("def make():\n    return 7\n")
    assert load_function(f"{file}:make")() == 7
    file.write_text("def make():\n    return 8\n")
    assert load_function(f"{file}:make")() == 8


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("{tmp}/none.py:make", "none.py does not exist"),
        ("nowhere_at_all:make", "no module named 'nowhere_at_all'"),
        ("justaword", "expected pkg.module:function or path/file.py:function"),
        ("{tmp}/mine.py:mak", "the module has no 'mak'; did you mean make?"),
        ("{tmp}/syntax.py:make", "line 1: "),
        ("{tmp}/imports.py:make", "it imports 'a_module_that_is_not_there', which is not installed"),
    ],
)
def test_errors_are_one_line(ref: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def make():\n    return 7\n")
    (tmp_path / "syntax.py").write_text("def make(:\n")
    (tmp_path / "imports.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(InputError) as caught:
        load_function(ref.format(tmp=tmp_path))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_error_inside_the_users_code_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_function(f"{tmp_path}/broken.py:x")
