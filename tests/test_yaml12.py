"""Recipes read YAML as people mean it."""

import pytest
import yaml

from expunge import yaml12

TEXT = "{use: npo, on: forget, lr: 1e-4, whole: 1, half: .5, said: yes, sure: true, none: null, big: .inf, text: '1e5'}"
VALUES = {
    "use": "npo", "on": "forget", "lr": 1e-4, "whole": 1, "half": 0.5, "said": "yes", "sure": True, "none": None,
    "big": float("inf"), "text": "1e5",
}


def test_the_design_s_own_term_is_read_as_written():
    found = yaml12.read(TEXT)
    assert found == VALUES
    assert type(found["whole"]) is int


@pytest.mark.parametrize("read", [yaml12.read, yaml.safe_load])
def test_what_is_written_is_read_back_by_us_and_by_others(read):
    assert read(yaml12.write(VALUES)) == VALUES


def test_other_programs_keep_their_rules():
    assert yaml.safe_load("on: 1") == {True: 1}
