"""Images of docker or podman, whichever answers, and what is said when none can be used."""

from pathlib import Path

import pytest

from tests.fake_docker import (
    DIGEST,
    ID,
    NO_DAEMON,
    NO_GPU,
    NO_PROGRAM,
    NO_SPACE,
    SOCKET_DENIED,
    UNKNOWN_FLAG,
    FakeDocker,
)
from workbench.errors import WorkbenchError
from workbench.hardware.images import Image, explained, image
from workbench.hardware.interpreter import _asked_about, interpreter
from workbench.hardware.machine import facts

NAME = "vllm/vllm-openai:v0.32.0"


@pytest.fixture(autouse=True)
def asked_anew() -> None:
    image.cache_clear()


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither docker nor podman is on PATH."""
    monkeypatch.setenv("PATH", "/no/such/folder")


@pytest.fixture
def docker(tmp_path: Path, path: None, monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    made = FakeDocker(tmp_path / "docker")
    monkeypatch.setenv("PATH", made.path, prepend=":")
    return made


@pytest.fixture
def podman(tmp_path: Path, docker: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    made = FakeDocker(tmp_path / "podman", "podman")
    monkeypatch.setenv("PATH", made.path, prepend=":")
    return made


def refused(name: str = NAME) -> str:
    with pytest.raises(WorkbenchError) as error:
        image(name)
    sentence = str(error.value)
    assert "(example: " in sentence and len(sentence.split()) <= 45
    return sentence


def test_an_image_is_known_by_its_digest(docker):
    docker.has(NAME, Env=["PATH=/bin", "PYTHONPATH=/theirs"])
    found = image(NAME)
    assert (found.program, found.version, found.id, found.digest) == (
        "docker", "28.2.2", ID, DIGEST
    )  # fmt: skip
    assert found.python_path == "/theirs"


def test_podman_is_taken_where_docker_does_not_answer_or_lacks_the_image(docker, podman):
    podman.has(NAME)
    assert image(NAME).program == "podman"
    image.cache_clear()
    docker.breaks("version", NO_DAEMON, 1)
    assert image(NAME).program == "podman"


def test_a_missing_image_is_not_pulled(docker, podman):
    assert "got 'no/such:1' (example: docker pull no/such:1)" in refused("no/such:1")
    assert not any("pull" in call[0] for call in (*docker.calls, *podman.calls))
    docker.breaks("version", NO_DAEMON, 1)
    assert "(example: podman pull no/such:1)" in refused("no/such:1")


def test_without_docker_or_podman_it_says_how_to_go_on(path):
    assert refused().startswith("place=container needs docker or podman, and neither is on PATH")


@pytest.mark.parametrize(
    ("said", "begins", "example"),
    [
        (NO_DAEMON, "docker must be running, but it does not", "sudo systemctl start docker"),
        (SOCKET_DENIED, "docker must accept this user", "sudo usermod -aG docker $USER"),
    ],
)
def test_a_docker_that_does_not_answer_is_one_sentence(docker, said, begins, example):
    docker.breaks("version", said, 1)
    assert refused().startswith(begins) and example in refused()


@pytest.mark.parametrize(
    ("said", "program", "sentence"),
    [
        (NO_SPACE, "docker", "the disk of docker must have free space, but it is full."),
        (NO_GPU, "docker", "docker must be set up for NVIDIA GPUs, but it said: could not select"),
        ("Error: setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=0", "podman",
         "podman must be set up for NVIDIA GPUs, but it said: setting up CDI devices"),
        ("Error: stat /dev/kfd: no such file or directory", "podman",
         "podman must reach the AMD GPUs"),
        (NO_PROGRAM, "docker", "image must be one with Python and vLLM"),
        (UNKNOWN_FLAG, "docker", "container_args must be options of docker run (unknown flag: --f"),
        (SOCKET_DENIED, "docker", "docker must accept this user"),
        ("docker: Error response from daemon: something new.", "docker",
         "docker could not start a container of vllm/vllm-openai:v0.32.0: something new"),
    ],
)  # fmt: skip
def test_why_a_container_does_not_start_is_one_sentence(said, program, sentence):
    used = Image(name=NAME, id=ID, digest=DIGEST, program=program, version="1", args=("--foo",))
    told = explained(said, used)
    assert told.startswith(sentence) and len(told.split()) <= 45 and "\n" not in told


def test_an_image_says_its_versions_once(docker, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    docker.has(NAME, Env=["PYTHONPATH=/theirs"])
    found = interpreter("", image(NAME))
    assert found.path == "python3" and not found.own
    # The pretended container has this environment's packages.
    assert found.versions == interpreter().versions
    assert found.env()["PYTHONPATH"].endswith(":/theirs") and set(found.env()) == {"PYTHONPATH"}
    (question,) = [call for call in docker.calls if call[0] == "run"]
    assert "--rm" in question and question[question.index("--pull") + 1] == "never"
    for folder in found.reads:
        assert f"{folder}:{folder}:ro" in question
    here = facts().with_engine(found)
    assert here.versions["image"] == DIGEST and here.versions["docker"] == "28.2.2"
    # Another kernel reads what was kept.
    _asked_about.cache_clear()
    interpreter("", image(NAME))
    assert len([call for call in docker.calls if call[0] == "run"]) == 1


def test_an_image_whose_options_may_mount_packages_is_asked_in_each_kernel(
    docker, tmp_path, monkeypatch
):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    docker.has(NAME)
    interpreter("", image(NAME, ("--volume", "/a:/a")))
    assert list(tmp_path.glob("asked-*")) == []


def test_a_question_without_an_answer_leaves_no_container(docker, tmp_path, monkeypatch):
    docker.has(NAME)
    with pytest.raises(WorkbenchError, match=r"no answer within 2 s"):
        image(NAME).last_line("python3", "-c", "import time; time.sleep(60)", env={}, timeout_s=2)
    assert docker.containers == []


def test_an_image_without_a_python_that_can_be_asked_is_refused(docker, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    docker.has(NAME)
    docker.breaks("run", "SyntaxError", 1)
    with pytest.raises(WorkbenchError, match="one whose python3 is Python"):
        interpreter("", image(NAME, ("--old",)))


def test_a_path_with_a_colon_is_mounted_whole():
    line = Image.elsewhere(NAME).run_line(
        "python3", label="a", reads=["/models/a:b", "/plain"], writes=["/cache/a:b"]
    )
    options = [line[at : at + 2] for at, word in enumerate(line) if word in ("--volume", "--mount")]
    assert options == [
        ("--mount", "type=bind,source=/models/a:b,target=/models/a:b,readonly"),
        ("--volume", "/plain:/plain:ro"),
        ("--mount", "type=bind,source=/cache/a:b,target=/cache/a:b"),
    ]
