"""What the README says can be typed can be typed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgegen.cli import COMMANDS

README = (Path(__file__).parent.parent / "README.md").read_text()
PARAGRAPHS = {
    found[1]: found[0]
    for found in re.finditer(r"^\*\*`edgegen (\w+).*?(?=^\*\*`|^Exit codes)", README, re.M | re.S)
}


def test_every_command_has_its_paragraph_and_every_paragraph_its_command():
    assert set(PARAGRAPHS) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_the_readme_names_is_there(command):
    asked = [sys.executable, "-m", "edgegen", command, "--help"]
    told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", PARAGRAPHS[command])) - {
        "-fp32",
        "-int8",
    }
    assert {option for option in options if not re.search(rf"{option}\b", told)} == set()


def test_the_make_targets_that_the_readme_names_are_there():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_every_local_link_and_picture_leads_somewhere():
    pictures = re.findall(r'src(?:set)?="([^"]+)"', README)
    for link in pictures + re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (Path(__file__).parent.parent / link).exists(), link


@pytest.mark.parametrize("name", re.findall(r"docs/[\w-]+\.(?:png|svg)", README))
def test_a_picture_is_small_and_fetches_nothing(name):
    found = (Path(__file__).parent.parent / name).read_bytes()
    assert len(found) < 150_000
    if name.endswith(".svg"):
        assert not re.search(rb"(href|src|url)[=(]\W*https?:", found)
