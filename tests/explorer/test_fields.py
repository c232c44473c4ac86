from dataclasses import fields

import pytest

from workbench.errors import ParameterError
from workbench.explorer.fields import checked, fields_of, named_in
from workbench.params.notebooks import NOTEBOOKS, check_params
from workbench.params.pd_sweep import PdSweep


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_parameter_is_a_field_in_a_group_of_its_notebook(notebook):
    found = fields_of(notebook)
    assert {field.name for field in found} == {spec.name for spec in fields(NOTEBOOKS[notebook])}
    assert "Other" not in {field.group for field in found}
    assert all(field.help for field in found)


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_an_untouched_form_has_the_defaults(notebook):
    found = fields_of(notebook)
    texts = {field.name: field.default for field in found}
    assert checked(notebook, found, texts) == NOTEBOOKS[notebook]()


def test_a_filled_form_is_read_as_from_the_command_line():
    found = fields_of("pd_sweep")
    texts = {field.name: field.default for field in found}
    typed = {"topology": "1p1d, 2a", "rounds": "5", "rates_per_s": "1, 2.5", "opponents": False}
    params = checked("pd_sweep", found, texts | typed)
    assert params == PdSweep(topology="1p1d, 2a", rounds=5, rates_per_s=[1.0, 2.5], opponents=False)


@pytest.mark.parametrize(
    ("name", "text"), [("rounds", "none"), ("topology", "p4d"), ("rates_per_s", "1,-2")]
)
def test_a_wrong_value_gives_the_error_of_the_notebook_and_names_its_field(name, text):
    found = fields_of("pd_sweep")
    texts = {field.name: field.default for field in found} | {name: text}
    with pytest.raises(ParameterError) as expected:
        check_params("pd_sweep", {name: text})
    with pytest.raises(ParameterError) as error:
        checked("pd_sweep", found, texts)
    assert str(error.value) == str(expected.value)
    assert named_in(str(error.value), found) == name
