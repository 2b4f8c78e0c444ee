"""The table of planted faults keeps up with the library; `make mutations` plants them."""

import ast

import pytest
from mutations import FAULTS, ROOT, with_fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.rule)
def test_a_fault_can_be_planted(fault):
    source = (ROOT / fault.path).read_text(encoding="utf-8")
    planted = with_fault(fault, source)
    if fault.path.suffix == ".py":
        ast.parse(planted)
    assert all((ROOT / "tests" / name).is_file() for name in fault.tests.split())


def test_each_rule_is_named_once():
    assert len({fault.rule for fault in FAULTS}) == len(FAULTS) >= 25
