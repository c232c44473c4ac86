import pytest

from workbench.serve.processes import logs
from workbench.serve.vllm import FATAL

# What vLLM 0.32 and LMCache 0.5.6 write when they do not start: (log, the line that tells).
LOGS = {
    "port taken": (
        """\
(APIServer pid=71) INFO 11-20 12:00:01 [serve.py:98] vLLM API server version 0.32.0
(APIServer pid=71) Traceback (most recent call last):
(APIServer pid=71)   File "/venv/lib/python3.11/site-packages/vllm/launch.py", line 32, in listen
(APIServer pid=71)     sock.bind(addr)
(APIServer pid=71) OSError: [Errno 98] Address already in use
""",
        "OSError: [Errno 98] Address already in use",
    ),
    "port taken, as uvicorn words it": (
        """\
INFO:     Started server process [74]
ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 9): address already \
in use
INFO:     Application shutdown complete.
""",
        "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 9): address"
        " already in use",
    ),
    "port taken, as ZeroMQ words it": (
        """\
  File "zmq/backend/cython/_zmq.py", line 190, in zmq.backend.cython._zmq._check_rc
zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:39323')

ERROR:    Application startup failed. Exiting.
""",
        "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:39323')",
    ),
    "model missing": (
        """\
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/huggingface_hub/utils/_validators.py", line 1, in check
    raise HFValidationError(
huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name': '/no/model'.
""",
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name':"
        " '/no/model'.",
    ),
    "KV space too small": (
        """\
\x1b[32m(EngineCore pid=9)\x1b[0m ERROR 11-20 12:00:04 [core.py:901] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-20 12:00:04 [core.py:901] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-20 12:00:04 [core.py:901] ValueError: To serve at least one request \
with the model's max seq len (24576), (0.04 GiB KV cache is needed, which is larger than the \
available KV cache memory (0.02 GiB).
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above. \
Failed core proc(s): {}
""",
        "ValueError: To serve at least one request with the model's max seq len (24576), (0.04 GiB"
        " KV cache is needed, which is larger than the available KV cache memory (0.02 GiB).",
    ),
    "root cause above": (
        """\
(EngineCore pid=9) ERROR 11-20 12:00:04 [core.py:901] ConnectionError: LMCache server does not \
answer at tcp://127.0.0.1:5555
(APIServer pid=8) RuntimeError: Engine core initialization failed. See root cause above.
""",
        "ConnectionError: LMCache server does not answer at tcp://127.0.0.1:5555",
    ),
    "only a general line": (
        "RuntimeError: Engine core initialization failed. See root cause above.\n",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ),
    "no error at all": ("loading\n\n  Killed\n\n", "  Killed"),
    "silence": ("", "its log is empty"),
}


@pytest.mark.parametrize("case", LOGS)
def test_the_reason_is_the_line_that_tells(case, tmp_path):
    text, reason = LOGS[case]
    (tmp_path / "decode-0.log").write_text(text)
    assert logs.reason(logs.lines(tmp_path / "decode-0.log")) == reason


def test_a_log_that_was_never_made_gives_no_reason(tmp_path):
    assert logs.reason(logs.lines(tmp_path / "none.log")) == "its log is empty"


def test_only_what_cannot_be_recovered_from_is_fatal():
    fatal = [case for case, (text, _) in LOGS.items() if logs.fatal(text.splitlines(), FATAL)]
    assert fatal == ["KV space too small"]


def test_a_reason_is_not_longer_than_one_can_read():
    assert len(logs.reason(["ValueError: " + "x" * 1000])) == 400
