import ssl

import httpx
import pytest

from workbench.control import connect_problem, server_address, tls_context
from workbench.errors import ParameterError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_load_and_control_calls_trust_what_the_environment_names(name, monkeypatch, certificate):
    everybody = tls_context()
    monkeypatch.setenv(name, str(certificate if name == "SSL_CERT_FILE" else certificate.parent))
    own = tls_context()
    assert own is not everybody
    assert own is tls_context()  # read once
    assert own.verify_mode == ssl.CERT_REQUIRED


def test_without_variables_public_authorities_are_trusted():
    assert len(tls_context().get_ca_certs()) > 50


@pytest.mark.parametrize(
    ("name", "file", "sentence"),
    [
        ("SSL_CERT_FILE", "none", "SSL_CERT_FILE .* existing file, got .*export"),
        ("SSL_CERT_DIR", "none", "SSL_CERT_DIR .* existing folder, got .*export"),
        ("SSL_CERT_FILE", "ca.pem", "must be a PEM file with certificates"),
    ],
)
def test_a_variable_that_leads_nowhere_is_refused(name, file, sentence, monkeypatch, tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    monkeypatch.setenv(name, str(tmp_path / file))
    with pytest.raises(ParameterError, match=sentence):
        tls_context()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://h:8000", "http://h:8000"),
        (" http://h:8000/ ", "http://h:8000"),
        ("http://h:8000/v1", "http://h:8000"),
        ("http://h:8000/v1//", "http://h:8000"),
        ("https://h/team/v1/completions", "https://h/team"),
        ("https://h/v1/chat/completions", "https://h"),
        ("https://h/v10", "https://h/v10"),
        ("", ""),
    ],
)
def test_the_path_of_the_api_is_no_part_of_an_address(url, address):
    assert server_address(url) == address


def test_a_failure_that_has_nothing_to_do_with_tls_is_none_of_it():
    assert connect_problem(httpx.ConnectError("refused")) == ""
