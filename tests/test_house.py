"""The repository itself: pins that plain pip reads everywhere, and files that fit every machine."""

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
# The brackets keep these patterns from finding themselves.
PLACES = r"/[h]ome/|/[U]sers/|/[r]oot/"
REGISTRIES = r"[p]ypi\.org|files\.[p]ythonhosted|index[-]url|/[s]imple/"


def tracked_files():
    """List what git tracks or would track; skip where the tree is no checkout (an sdist)."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing says which files belong to the project")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_every_pin_is_a_name_a_version_and_at_most_a_marker():
    pin = re.compile(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.+!]*( ; [\w .'<>=!*()]+)?")
    assert [line for line in PINS if not pin.fullmatch(line)] == []


def test_every_dependency_has_a_pin_that_its_bounds_allow():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    pins = [Requirement(line) for line in PINS]
    for requirement in map(Requirement, wanted):
        if requirement.name == project["name"]:
            continue
        versions = [str(p.specifier).removeprefix("==") for p in pins if p.name == requirement.name]
        assert versions, f"{requirement} has no pin: run `make pins`"
        assert all(map(requirement.specifier.contains, versions)), (str(requirement), versions)


def test_no_file_names_a_place_on_one_machine_or_a_registry():
    forbidden, found = re.compile(f"{PLACES}|{REGISTRIES}"), []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture or a table in binary form
        name = path.relative_to(ROOT)
        found += [f"{name}:{i}: {x[:80]}" for i, x in enumerate(lines, 1) if forbidden.search(x)]
    assert found == []
