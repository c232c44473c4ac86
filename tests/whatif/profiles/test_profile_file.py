import json
from dataclasses import replace

import pytest

from tests.whatif.known import known_profile, known_run
from workbench.errors import ResultError
from workbench.experiment.result.result_file import jsonable
from workbench.whatif.profiles.measured_profile import profile_of
from workbench.whatif.profiles.profile_file import read_profile

PROFILE = known_profile()


def test_a_profile_is_the_same_after_writing_and_reading(tmp_path):
    found = profile_of(known_run())
    assert read_profile(found.write(tmp_path)) == found


def test_a_byte_order_mark_is_accepted(tmp_path):
    path = PROFILE.write(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_profile(path) == PROFILE


WHOLE = json.dumps(jsonable(PROFILE))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a profile: it is empty"),
        (WHOLE[:300].encode(), "is not a profile: it is not valid JSON .* line 1 column 2"),
        ((WHOLE + WHOLE).encode(), "is not a profile: it is not valid JSON .Extra data: line 1"),
        (WHOLE.encode("utf-16"), "is not a profile: it is not text in UTF-8"),
        (b"[]", r"is not a profile: it must hold a JSON object, got '\[\]'"),
        (WHOLE.replace('"machine"', '"maschine"').encode(), "is not a profile: machine is missing"),
        (WHOLE.replace('"block_tokens": 128', '"block_tokens": "a"').encode(),
         "is not a profile: block_tokens is 'a', but it must be a valid integer"),
        (WHOLE.replace("[0.01,", "[NaN,", 1).encode(),
         "is not a profile: prefill.coefficients.0 is nan, but it must be a finite number"),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_refused_with_its_cause(tmp_path, content, says):
    (tmp_path / "profile.json").write_bytes(content)
    with pytest.raises(ResultError, match=says):
        read_profile(tmp_path / "profile.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 99}, "must be a profile of schema 1, got 99"),
        ({"machine": {"ram": 1}}, "damaged profile: machine has no cpu"),
        ({"parameters": {}}, "damaged profile: parameters has no engine"),
        ({"parameters": {**PROFILE.parameters, "requests": "many"}},
         "damaged profile: its parameters are wrong .requests must be an integer, got 'many'"),
        ({"kv_tokens": {"prefill": 9}}, "damaged profile: kv_tokens has no decode"),
        ({"kv_tokens": {**PROFILE.kv_tokens, "decode": 0}}, "kv_tokens of decode must be at least"),
        ({"overheads_s": ()}, "damaged profile: overheads_s is empty"),
        ({"block_tokens": 0}, "damaged profile: block_tokens must be above 0, got 0"),
        ({"simulated": False}, "simulated is false, but its parameters have engine=simulated"),
        ({"machine": {**PROFILE.machine, "platform": "cuda"}}, "but its machine has platform=cuda"),
        ({"connector": "lmcache"}, "connector is lmcache, but its parameters have connector=nixl"),
    ],
)  # fmt: skip
def test_a_damaged_profile_is_refused(tmp_path, change, says):
    with pytest.raises(ResultError, match=says):
        read_profile(replace(PROFILE, **change).write(tmp_path))


@pytest.mark.parametrize(
    ("line", "parameters", "says"),
    [
        ("vllm --max-model-len 8192", {}, "context_tokens=24576, but .* --max-model-len 8192"),
        ("vllm --max-model-len 24576", {"engine_args": "--seed 1"}, "engine_args --seed, but its"),
        ("vllm --max-model-len 24576 --dtype float16", {"dtype": "bfloat16"}, "dtype=bfloat16"),
        ("vllm --max-model-len 24576", {"dtype": "bfloat16"}, "its command lines have no --dtype"),
    ],
)  # fmt: skip
def test_parameters_that_contradict_the_command_lines_are_refused(tmp_path, line, parameters, says):
    real = {**PROFILE.parameters, "engine": "vllm", **parameters}
    machine = {**PROFILE.machine, "platform": "cpu"}
    edited = replace(
        PROFILE, command_lines=(line,), simulated=False, machine=machine, parameters=real
    )
    with pytest.raises(ResultError, match=says):
        read_profile(edited.write(tmp_path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"terms": ("steps", "tokens", "squares")}, "prefill lacks a term or a range"),
        ({"ranges": {}}, "prefill lacks a term or a range"),
        ({"ranges": {"tokens": (9.0, 8.0)}}, "prefill has the range 9 to 8 of tokens"),
        ({"resamples": ()}, "prefill lacks coefficients or points"),
        ({"measured_s": ()}, "prefill lacks coefficients or points"),
        ({"coefficients": (-0.1, 0.0, 0.0)}, "a negative coefficient of steps .-0.1"),
        ({"coefficients": (1e300, 0.0, 0.0)}, "an absurd coefficient of steps .1e.300"),
        ({"resamples": ((0.0, 1.0, 0.0),)}, "an absurd coefficient of tokens .1"),
    ],
)  # fmt: skip
def test_a_damaged_fit_is_refused(tmp_path, change, says):
    damaged = replace(PROFILE, prefill=replace(PROFILE.prefill, **change))
    with pytest.raises(ResultError, match=says):
        read_profile(damaged.write(tmp_path))
